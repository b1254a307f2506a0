# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run as Ansible runs it, over llama.cpp's store and over Ollama's with a SIMULATED server."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.module_utils._engines import _gguf_store, _ollama_store, llama_cpp
from ansible_collections.llm.cluster.plugins.modules import model_prune
from simulated import ollama

Run = Callable[..., dict[str, Any]]

NOW, BEFORE, OLD, OTHER = (hashlib.shake_256(name.encode()).digest(1000) for name in ("now", "before", "old", "other"))


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that prunes: check (changes nothing), apply as predicted, apply again (nothing is left)."""

    def call(arguments: dict[str, Any], check: bool) -> dict[str, Any]:
        options = {"models_dir": str(tmp_path / "models"), "_ansible_check_mode": check, **arguments}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": options}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            model_prune.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    def run_module(**arguments: Any) -> dict[str, Any]:
        there = everything(tmp_path)
        predicted = call(arguments, check=True)
        assert everything(tmp_path) == there
        done = call(arguments, check=False)
        assert not done.get("failed"), done
        assert {key: predicted[key] for key in ANSWER} == {key: done[key] for key in ANSWER}
        assert done["changed"] == (done["diff"]["before"] != done["diff"]["after"])
        again = call(arguments, check=False)
        assert not again["changed"]
        assert again["diff"] == {"before": done["diff"]["after"], "after": done["diff"]["after"]}
        return done

    return run_module


ANSWER = ("changed", "removed", "freed", "diff")


def everything(path: Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def removed(answer: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(item["kind"], item["name"], item["digest"]) for item in answer["removed"]}


# --- llama.cpp ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> _gguf_store.GgufStore:
    """Return a store in which tiny-1 was switched twice, extra-1 serves OTHER, and two files are on their way."""
    store = _gguf_store.GgufStore(str(tmp_path / "models"), str(tmp_path / "partial"))
    store.prepare()
    for content in (NOW, BEFORE, OLD, OTHER):
        Path(store.partial(digest_of(content))).write_bytes(content)
        store.adopt(digest_of(content))
    for content in (OLD, BEFORE, NOW):
        store.switch("tiny-1", digest_of(content))
    store.switch("extra-1", digest_of(OTHER))
    for content in (b"wanted", b"left"):
        Path(store.partial(digest_of(content))).write_bytes(content[:3])
    return store


TINY = {"name": "tiny:1", "digest": digest_of(NOW), "unit": "tiny-1"}
WANTED = {"name": "wanted", "digest": digest_of(b"wanted")}
EXTRA_GOES = {("name", "extra-1", digest_of(OTHER)), ("version", "", digest_of(OTHER))}
LEFT_GOES = ("partial", "", digest_of(b"left"))


@pytest.mark.parametrize(
    ("options", "goes"),
    [
        ({}, {*EXTRA_GOES, ("version", "", digest_of(OLD))}),
        ({"keep_previous": 0}, {*EXTRA_GOES, ("version", "", digest_of(OLD)), ("version", "", digest_of(BEFORE))}),
        ({"keep_previous": 2}, EXTRA_GOES),
        (
            {"keep": [digest_of(OTHER)[7:], digest_of(OLD)]},
            {("name", "extra-1", digest_of(OTHER))},
        ),
    ],
)
def test_llama_cpp(
    run: Run, store: _gguf_store.GgufStore, options: dict[str, Any], goes: set[tuple[str, str, str]]
) -> None:
    done = run(engine="llama_cpp", models=[TINY, WANTED], **options)
    assert removed(done) == {*goes, LEFT_GOES}
    assert done["freed"] == 1000 * sum(kind == "version" for kind, _, _ in goes) + 3
    assert store.units() == {"tiny-1": digest_of(NOW)}
    assert set(store.partials()) == {digest_of(b"wanted")}
    gone = {digest for kind, _, digest in goes if kind == "version"}
    assert set(store.versions()) == {digest_of(content) for content in (NOW, BEFORE, OLD, OTHER)} - gone


def test_a_llama_cpp_instance_that_runs_is_left_alone(
    run: Run, store: _gguf_store.GgufStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=1e12)
    states = {"tiny-1": running, "extra-1": running}
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: {unit: states[unit] for unit in units})
    done = run(engine="llama_cpp", models=[TINY])
    assert done["units"] == ["extra-1"]
    assert digest_of(OTHER) not in {digest for _, _, digest in removed(done)}
    assert store.units()["extra-1"] == digest_of(OTHER)
    # Stopped, but still started with the host.
    states["extra-1"] = llama_cpp.UnitState(installed=True, enabled=True)
    done = run(engine="llama_cpp", models=[TINY])
    assert removed(done) == EXTRA_GOES
    assert done["units"] == ["extra-1"]


def test_a_version_in_memory_stays(run: Run, store: _gguf_store.GgufStore, monkeypatch: pytest.MonkeyPatch) -> None:
    running = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=1e12, pid=7)
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: {"tiny-1": running})
    monkeypatch.setattr(llama_cpp, "read_maps", lambda pid: f"0-1 r--s 0 8:1 1 /m/sha256-{digest_of(OLD)[7:]}.gguf")
    done = run(engine="llama_cpp", models=[TINY], keep_previous=0)
    assert ("version", "", digest_of(BEFORE)) in removed(done)
    assert digest_of(OLD) in store.versions()


@pytest.mark.parametrize("engine", ["llama_cpp", "ollama"])
def test_a_bare_node(run: Run, tmp_path: Path, engine: str) -> None:
    assert not run(engine=engine, models=[TINY], port=9)["changed"]
    assert everything(tmp_path) == []


# --- Ollama ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ollama.Server]:
    monkeypatch.setenv("OLLAMA_NOPRUNE", "1")
    monkeypatch.setenv("OLLAMA_KEEP_ALIVE", "-1")
    server = ollama.Server(("127.0.0.1", 0), ollama.Store(tmp_path / "models"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


SHARED = b"every model has this one"


def put(node: ollama.Server, name: str, weights: bytes) -> str:
    """Write a model into the store; all models share one blob. Return its digest."""
    config = json.dumps({"model_format": "gguf"}).encode()
    parts = []
    for content, kind in ((weights, "model"), (SHARED, "license"), (config, "config")):
        node.store.blob(digest_of(content)).write_bytes(content)
        media = f"application/vnd.ollama.image.{kind}"
        parts.append({"mediaType": media, "digest": digest_of(content), "size": len(content)})
    manifest = json.dumps({"schemaVersion": 2, "layers": parts[:2], "config": parts[2]}).encode()
    node.store.write(ollama.Name.parse(name), manifest)
    return digest_of(manifest)


@pytest.fixture
def filled(node: ollama.Server, tmp_path: Path) -> dict[str, str]:
    """Fill the node: tiny:1 with a history, extra:1, and two blobs on their way; return the digests."""
    store = _ollama_store.OllamaStore(str(tmp_path / "models"), str(tmp_path / "partial"))
    store.prepare()
    digests = {
        "now": put(node, "tiny:1", NOW),
        "before": put(node, "llm-cluster-kept/tiny-1:000000000001", BEFORE),
        "old": put(node, "llm-cluster-kept/tiny-1:000000000002", OLD),
        "other": put(node, "extra:1", OTHER),
    }
    store.replaced("tiny-1", digests["old"], digests["before"])
    store.replaced("tiny-1", digests["before"], digests["now"])
    store.share_all()
    Path(store.partial(digest_of(b"left"))).write_bytes(b"lef")
    return digests


def blobs(node: ollama.Server) -> set[str]:
    return {path.name.replace("-", ":") for path in node.store.blobs.iterdir()}


def listed(node: ollama.Server) -> set[str]:
    return {"sha256:" + found.digest for found in node.store.models()}


@pytest.mark.parametrize(
    ("options", "names", "versions"),
    [
        ({}, ["other"], ["other", "old"]),
        ({"keep_previous": 0}, ["other"], ["other", "old", "before"]),
        ({"keep_previous": 2}, ["other"], ["other"]),
        ({"keep": ["old", "other"]}, ["other"], []),
    ],
)
@pytest.mark.parametrize("up", [True, False])
def test_ollama(
    run: Run,
    node: ollama.Server,
    filled: dict[str, str],
    *,
    options: dict[str, Any],
    names: list[str],
    versions: list[str],
    up: bool,
) -> None:
    wanted = {"name": "tiny:1", "digest": filled["now"], "port": node.server_address[1] if up else 9}
    more = {**options, "keep": [filled[name] for name in options.get("keep", [])]}
    done = run(engine="ollama", models=[wanted], **more)
    assert removed(done) == {
        *(("name", "extra:1", filled[name]) for name in names),
        *(("version", "", filled[name]) for name in versions),
        LEFT_GOES,
    }
    assert done["freed"] == 1000 * len(versions) + 3
    assert listed(node) == set(filled.values()) - {filled[name] for name in versions}
    assert digest_of(SHARED) in blobs(node)
    assert len(blobs(node)) == 2 + 4 - len(versions)
    assert {found.name.short() for found in node.store.models() if "llm-cluster-kept" not in found.name.short()} == {
        "tiny:1"
    }


def test_ollama_what_is_in_memory(run: Run, node: ollama.Server, filled: dict[str, str]) -> None:
    for name in ("extra:1", "llm-cluster-kept/tiny-1:000000000002"):
        node.scheduler.load(node.store.get(ollama.Name.parse(name)), ollama.FOREVER, 4096)  # type: ignore[arg-type]
    wanted = {"name": "tiny:1", "digest": filled["now"], "port": node.server_address[1]}
    done = run(engine="ollama", models=[wanted])
    assert {digest for kind, _, digest in removed(done) if kind == "version"} == {filled["other"]}
    assert ["sha256:" + runner.model.digest for runner in node.scheduler.loaded()] == [filled["old"]]


def test_blobs_of_no_version(run: Run, node: ollama.Server, filled: dict[str, str], tmp_path: Path) -> None:
    wanted = {"name": "tiny:1", "digest": filled["now"], "port": 9}
    for content, age in ((b"a pull is at work", 3600), (b"forgotten", 10 * 86400)):
        path = node.store.blob(digest_of(content))
        path.write_bytes(content)
        os.utime(path, (time.time() - age, time.time() - age))
    notes = tmp_path / "partial" / "verified"
    for content in (NOW, b"gone long ago"):
        (notes / (digest_of(content).replace(":", "-") + ".json")).write_text("{}", encoding="ascii")
    done = run(engine="ollama", models=[wanted], keep_previous=2)
    assert [note.name for note in notes.iterdir()] == [digest_of(NOW).replace(":", "-") + ".json"]
    assert {item for item in removed(done) if item[0] == "blob"} == {("blob", "", digest_of(b"forgotten"))}
    assert digest_of(b"a pull is at work") in blobs(node)


def test_what_belongs_to_a_version_on_its_way_stays(
    run: Run, node: ollama.Server, filled: dict[str, str], tmp_path: Path
) -> None:
    tiny = {"name": "tiny:1", "digest": filled["now"], "port": 9}
    wanted = [tiny, {"name": "next", "digest": digest_of(b"next")}]
    done = run(engine="ollama", models=wanted, keep_previous=2)
    assert "partial" not in {kind for kind, _, _ in removed(done)}
    content = json.dumps(
        {"layers": [{"digest": digest_of(b"left"), "size": 4}, {"digest": digest_of(SHARED), "size": len(SHARED)}]}
    ).encode()
    manifest = tmp_path / "partial" / "manifests" / digest_of(content).replace(":", "-")
    manifest.write_bytes(content)
    wanted = [tiny, {"name": "next", "digest": digest_of(content)}]
    assert not run(engine="ollama", models=wanted, keep_previous=2)["changed"]
    assert manifest.exists()


def test_a_mistaken_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"engine": "ollama", "models": [], "keep_previous": -1}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        model_prune.main()
    assert "0 for none" in json.loads(capsys.readouterr().out)["msg"]


# --- what is written about it ---------------------------------------------------------------------------------------


def test_documentation_and_options_agree(check_documents: Callable[[ModuleType], None]) -> None:
    check_documents(model_prune)
