# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which versions Ollama has in memory after a switch, against a SIMULATED server.

As in the real one what is in memory is known by its weights, not by its name, and shows the name and digest that it
was loaded by.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._engines import EngineError, ModelSpec, Settings
from ansible_collections.llm.cluster.plugins.module_utils._engines import ollama as engines
from simulated import ollama


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ollama.Server]:
    for name, value in {"KEEP_ALIVE": "-1", "NOPRUNE": "1", "MAX_LOADED_MODELS": "2"}.items():
        monkeypatch.setenv(f"OLLAMA_{name}", value)
    server = ollama.Server(("127.0.0.1", 0), ollama.Store(tmp_path / "models"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def engine(server: ollama.Server, tmp_path: Path) -> engines.Ollama:
    settings = Settings(models_dir=str(tmp_path / "models"), partial_dir=str(tmp_path / "partial"), timeout=10)
    return engines.Ollama(settings, "127.0.0.1", server.server_address[1])


def version(server: ollama.Server, weights: bytes, template: str = "", config: bytes = b"{}") -> str:
    """Put a version into the store, kept under a name of our own; return its digest."""

    def blob(content: bytes, kind: str) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        server.store.blob(digest).write_bytes(content)
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    layers = [blob(weights, ollama.WEIGHTS)]
    layers += [blob(template.encode(), ollama.READ_TO_LIST[0])] if template else []
    manifest = json.dumps({"config": blob(config, "config"), "layers": layers}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    server.store.write(ollama.Name.parse(f"llm-cluster-kept/any:{digest[:12]}"), manifest)
    return f"sha256:{digest}"


def serve(engine: engines.Ollama, name: str, digest: str, load: bool = True) -> bool:
    spec = ModelSpec(name, engine="ollama", unit=name.replace(":", "-"), digest=digest, keep_alive="-1")
    look = engine.look(spec)
    if not look.active:
        engine.activate(spec, look)
    return load and engine.load(spec)


def in_memory(server: ollama.Server) -> set[tuple[str, str]]:
    return {(runner.model.name.short(), f"sha256:{runner.model.digest}") for runner in server.scheduler.loaded()}


def test_room_is_made_before_a_new_version_is_loaded(engine: engines.Ollama, server: ollama.Server) -> None:
    # Left to itself the server drops what comes first by digest: that would be the other model.
    weights = sorted((b"first", b"second"), key=lambda content: hashlib.sha256(content).hexdigest())
    other, old, new = [version(server, content) for content in (*weights, b"third")]
    serve(engine, "a:1", old)
    serve(engine, "b:1", other)
    assert serve(engine, "a:1", new)
    assert in_memory(server) == {("a:1", new), ("b:1", other)}
    assert not serve(engine, "a:1", new)


def test_a_switch_drops_the_old_version_although_nothing_is_loaded(
    engine: engines.Ollama, server: ollama.Server
) -> None:
    old, new = version(server, b"old"), version(server, b"new")
    serve(engine, "a:1", old)
    serve(engine, "a:1", new, load=False)
    assert in_memory(server) == set()


def test_another_template_for_the_same_weights(engine: engines.Ollama, server: ollama.Server) -> None:
    old, new = version(server, b"weights", "one"), version(server, b"weights", "two")
    serve(engine, "a:1", old)
    assert serve(engine, "a:1", new)
    assert in_memory(server) == {("a:1", new)}


def test_weights_that_another_name_serves_stay(engine: engines.Ollama, server: ollama.Server) -> None:
    shared, new = version(server, b"shared"), version(server, b"new")
    serve(engine, "a:1", shared)
    serve(engine, "alias:1", shared)
    serve(engine, "a:1", new)
    assert in_memory(server) == {("a:1", shared), ("a:1", new)}


def test_what_is_removed_leaves_the_memory(engine: engines.Ollama, server: ollama.Server) -> None:
    old, new = version(server, b"old"), version(server, b"new")
    serve(engine, "a:1", old)
    serve(engine, "a:1", new)
    engine.remove(ModelSpec("a:1", engine="ollama", unit="a-1", state="absent"))
    assert in_memory(server) == set()


def test_a_damaged_model_can_be_removed(engine: engines.Ollama, server: ollama.Server) -> None:
    digest = version(server, b"weights")
    serve(engine, "a:1", digest)
    for path in server.store.blobs.iterdir():
        path.unlink()
    engine.remove(ModelSpec("a:1", engine="ollama", unit="a-1", state="absent"))
    assert "a:1" not in engine.models()


def wanted(name: str, digest: str) -> list[ModelSpec]:
    return [ModelSpec(name, engine="ollama", unit=name.replace(":", "-"), digest=digest)]


def test_what_is_pruned_leaves_the_memory_but_not_with_weights_that_stay(
    engine: engines.Ollama, server: ollama.Server
) -> None:
    one, two, other = version(server, b"weights", "one"), version(server, b"weights", "two"), version(server, b"other")
    serve(engine, "extra:1", one)
    serve(engine, "extra:2", other)
    serve(engine, "a:1", two)
    assert in_memory(server) == {("extra:1", one), ("extra:2", other)}
    engine.prune(wanted("a:1", two), frozenset(), 1)
    assert in_memory(server) == {("extra:1", one)}
    assert set(engine.models()) == {"a:1"}


def test_a_damaged_model_can_be_pruned(engine: engines.Ollama, server: ollama.Server) -> None:
    old, new = version(server, b"old", config=b'{"model_type": "1M"}'), version(server, b"new")
    serve(engine, "extra:1", old)
    serve(engine, "a:1", new)
    server.store.blob("sha256:" + hashlib.sha256(b'{"model_type": "1M"}').hexdigest()).unlink()
    engine.prune(wanted("a:1", new), frozenset(), 1)
    assert set(engine.models()) == {"a:1"}


def test_another_name_of_a_served_version_is_pruned_without_a_trace(
    engine: engines.Ollama, server: ollama.Server
) -> None:
    digest = version(server, b"weights")
    serve(engine, "a:1", digest)
    serve(engine, "alias:1", digest)
    engine.prune(wanted("a:1", digest), frozenset(), 1)
    assert {model.name.model for model in server.store.models()} == {"a", "any"}
    assert in_memory(server) == {("a:1", digest)}


def test_mended_weights_are_dropped_under_any_name(engine: engines.Ollama, server: ollama.Server) -> None:
    one, two = version(server, b"weights", "one"), version(server, b"weights", "two")
    serve(engine, "alias:1", one)
    serve(engine, "a:1", two)
    spec = wanted("a:1", two)[0]
    engine.activate(spec, engine.look(spec))
    assert in_memory(server) == set()


def test_what_ollama_saw_without_weights_needs_its_restart(engine: engines.Ollama, server: ollama.Server) -> None:
    digest = version(server, b"weights")
    serve(engine, "a:1", digest, load=False)
    weights = server.store.blob("sha256:" + hashlib.sha256(b"weights").hexdigest())
    weights.unlink()
    with pytest.raises(EngineError, match="404"):
        engine.server.load("a:1", -1)
    weights.write_bytes(b"weights")
    with pytest.raises(EngineError, match="systemctl restart ollama"):
        serve(engine, "a:1", digest)


def test_an_embedding_model_is_loaded(engine: engines.Ollama, server: ollama.Server) -> None:
    digest = version(server, b"weights", config=b'{"capabilities": ["embedding"]}')
    serve(engine, "a:1", digest)
    assert in_memory(server) == {("a:1", digest)}
