# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine says is on its node: llama.cpp's store and instances, and Ollama's store with a SIMULATED server."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    Found,
    Inspection,
    ModelSpec,
    Settings,
    _gguf_store,
    llama_cpp,
    make_engine,
)
from simulated import ollama

OLD, NEW = b"old" * 1000, b"new" * 2000


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def everything(path: Path) -> dict[str, int]:
    return {str(entry.relative_to(path)): entry.lstat().st_mtime_ns for entry in path.rglob("*")}


def inspect(kind: str, home: Path, specs: list[ModelSpec], port: int = 9, **more: Any) -> Inspection:
    """Look at a node whose engine is down unless a port is given; verify unless told otherwise."""
    settings = Settings(models_dir=str(home / "models"), partial_dir=str(home / "partial"), read_only=True)
    there = everything(home)
    inspection = make_engine(kind, settings, "127.0.0.1", port).inspect(specs, more.get("verify", True))
    assert everything(home) == there, "inspect() changed something"
    return inspection


def only(inspection: Inspection) -> Found:
    (found,) = inspection.models
    return found


# --- llama.cpp ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gguf(tmp_path: Path) -> _gguf_store.GgufStore:
    """Return a store with two versions, the old one served."""
    store = _gguf_store.GgufStore(str(tmp_path / "models"), str(tmp_path / "partial"))
    store.prepare()
    for content in (OLD, NEW):
        Path(store.partial(digest_of(content))).write_bytes(content)
        store.adopt(digest_of(content))
    store.switch("tiny-1", digest_of(OLD))
    return store


def wants(content: bytes, name: str = "tiny:1") -> ModelSpec:
    return ModelSpec(name, unit=name.replace(":", "-"), digest=digest_of(content))


def remove_new(store: _gguf_store.GgufStore) -> None:
    store.discard(digest_of(NEW))
    Path(store.partial(digest_of(NEW))).write_bytes(NEW[:100])


def replace_bytes(store: _gguf_store.GgufStore, content: bytes) -> None:
    Path(store.blob(digest_of(OLD))).write_bytes(content)


@pytest.mark.parametrize(
    ("wanted", "change", "verify", "expected"),
    [
        (OLD, None, False, {"status": "ok", "held": True, "size": len(OLD)}),
        (NEW, None, False, {"status": "wrong", "held": True, "digest": digest_of(OLD)}),
        (NEW, remove_new, False, {"status": "wrong", "held": False, "have": 100}),
        (OLD, lambda store: store.unlink("tiny-1"), False, {"status": "missing", "held": True, "digest": ""}),
        (OLD, lambda store: store.discard(digest_of(OLD)), False, {"status": "corrupt", "held": False, "size": None}),
        (OLD, lambda store: replace_bytes(store, OLD[:-1]), False, {"status": "corrupt", "held": False}),
        (OLD, lambda store: replace_bytes(store, b"x" + OLD[1:]), True, {"status": "corrupt", "held": False}),
        (OLD, lambda store: os.utime(store.blob(digest_of(OLD)), ns=(1, 1)), True, {"status": "ok", "note": ""}),
    ],
)
def test_llama_cpp(
    gguf: _gguf_store.GgufStore, tmp_path: Path, wanted: bytes, change: Any, expected: dict[str, Any], *, verify: bool
) -> None:
    if change:
        change(gguf)
    found = only(inspect("llama_cpp", tmp_path, [wants(wanted)], verify=verify))
    assert {key: getattr(found, key) for key in expected} == expected
    assert (found.name, found.unit, found.wanted, found.extra) == ("tiny:1", "tiny-1", digest_of(wanted), False)


def test_llama_cpp_versions_and_units_that_nobody_wants(gguf: _gguf_store.GgufStore, tmp_path: Path) -> None:
    inspection = inspect("llama_cpp", tmp_path, [wants(NEW, "other:1"), ModelSpec("gone", "absent", unit="tiny-1")])
    assert inspection.held == {digest_of(OLD): len(OLD), digest_of(NEW): len(NEW)}
    assert [(found.name, found.status, found.extra) for found in inspection.models] == [
        ("other:1", "missing", False),
        ("tiny-1", "ok", True),
    ]
    assert inspect("llama_cpp", tmp_path / "nothing", []) == Inspection([], {})


def maps_of(digest: str, more: str = "") -> str:
    return f"7f00-7f10 r--s 00000000 08:01 12 /srv/m/sha256-{digest[7:]}.gguf{more}\n7f20-7f30 r-xp 00 08:01 1 /lib/x\n"


LATER = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=1e12, pid=7)
EARLIER = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=0.0, pid=7)


@pytest.mark.parametrize(
    ("state", "maps", "loaded"),
    [
        (LATER, maps_of(digest_of(OLD)), digest_of(OLD)),
        (LATER, maps_of(digest_of(OLD), " (deleted)"), digest_of(OLD) + " (replaced)"),
        (LATER, maps_of(digest_of(b"gone"), " (deleted)"), digest_of(b"gone")),
        (LATER, "", digest_of(NEW)),
        (EARLIER, "", digest_of(OLD)),
        (llama_cpp.UnitState(installed=True), "", ""),
    ],
)
def test_what_a_llama_cpp_instance_has_in_memory(
    gguf: _gguf_store.GgufStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    state: llama_cpp.UnitState,
    maps: str,
    loaded: str,
) -> None:
    gguf.switch("tiny-1", digest_of(NEW))
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: dict.fromkeys(units, state))
    monkeypatch.setattr(llama_cpp, "read_maps", lambda pid: maps)
    assert only(inspect("llama_cpp", tmp_path, [wants(NEW)])).loaded == loaded


def test_a_memory_map_is_read(gguf: _gguf_store.GgufStore) -> None:
    with Path(gguf.blob(digest_of(NEW))).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ):
        assert llama_cpp.mapped_digest(llama_cpp.read_maps(os.getpid())) == (digest_of(NEW), False)
    assert llama_cpp.mapped_digest(llama_cpp.read_maps(os.getpid())) == ("", False)


# --- Ollama ---------------------------------------------------------------------------------------------------------


def put(home: Path, name: str, weights: bytes) -> str:
    """Write a model into an Ollama store as Ollama does; return its digest."""
    config = json.dumps({"model_format": "gguf", "of": digest_of(weights)}).encode()
    blobs = home / "models" / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for content in (weights, config):
        (blobs / digest_of(content).replace(":", "-")).write_bytes(content)
    layers = [
        {"mediaType": "application/vnd.ollama.image.model", "digest": digest_of(weights), "size": len(weights)},
    ]
    manifest = json.dumps({"layers": layers, "config": {"digest": digest_of(config), "size": len(config)}}).encode()
    path = home / "models" / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(manifest)
    return digest_of(manifest)


TINY = "registry.ollama.ai/library/tiny/1"


def asks(digest: str = "", name: str = "tiny:1") -> ModelSpec:
    return ModelSpec(name, engine="ollama", digest=digest)


@pytest.mark.parametrize(
    ("damage", "verify", "status", "note"),
    [
        ("", True, "ok", ""),
        ("other bytes", True, "corrupt", "has other bytes than its name says"),
        ("other bytes", False, "ok", ""),
        ("shorter", False, "corrupt", "has 2999 bytes instead of 3000"),
        ("gone", False, "corrupt", "is missing"),
    ],
)
def test_ollama_blobs(tmp_path: Path, damage: str, status: str, note: str, *, verify: bool) -> None:
    digest = put(tmp_path, TINY, OLD)
    blob = tmp_path / "models" / "blobs" / digest_of(OLD).replace(":", "-")
    if damage == "gone":
        blob.unlink()
    elif damage:
        blob.write_bytes(b"x" + OLD[1:] if damage == "other bytes" else OLD[:-1])
    inspection = inspect("ollama", tmp_path, [asks(digest)], verify=verify)
    found = only(inspection)
    assert (found.name, found.digest, found.status, found.held) == ("tiny:1", digest, status, status == "ok")
    assert found.note.endswith(note)
    assert bool(found.note) == bool(note)
    assert inspection.held == ({digest: found.size} if status == "ok" else {})


def test_ollama_names(tmp_path: Path) -> None:
    old, new = put(tmp_path, TINY, OLD), put(tmp_path, "registry.ollama.ai/llm-cluster-kept/tiny-1/aaaaaaaaaaaa", NEW)
    other = put(tmp_path, "127.0.0.1:5000/library/foreign/latest", b"foreign")
    inspection = inspect("ollama", tmp_path, [asks(new), asks(name="lost"), asks(old, "alias")])
    assert set(inspection.held) == {old, new, other}
    assert [(found.name, found.digest, found.status, found.held, found.extra) for found in inspection.models] == [
        ("tiny:1", old, "wrong", True, False),
        ("lost", "", "missing", False, False),
        ("alias", "", "missing", True, False),
        ("127.0.0.1:5000/library/foreign:latest", other, "ok", False, True),
    ]


def test_ollama_half_downloaded(tmp_path: Path) -> None:
    digest = put(tmp_path, TINY, OLD)
    manifest = tmp_path / "models" / "manifests" / TINY
    shared = tmp_path / "partial" / "manifests" / digest.replace(":", "-")
    shared.parent.mkdir(parents=True)
    manifest.rename(shared)
    blob = tmp_path / "models" / "blobs" / digest_of(OLD).replace(":", "-")
    config = next(path for path in blob.parent.iterdir() if path != blob).stat().st_size
    blob.rename(tmp_path / "partial" / (blob.name + ".part"))
    os.truncate(tmp_path / "partial" / (blob.name + ".part"), 1000)
    found = only(inspect("ollama", tmp_path, [asks(digest)]))
    assert (found.status, found.have, found.held) == ("missing", 1000 + config, False)


@contextlib.contextmanager
def serving(home: Path) -> Iterator[ollama.Server]:
    """Run a SIMULATED Ollama over a store."""
    server = ollama.Server(("127.0.0.1", 0), ollama.Store(home / "models"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_ollama_tells_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_NOPRUNE", "1")
    monkeypatch.setenv("OLLAMA_KEEP_ALIVE", "-1")
    digest = put(tmp_path, TINY, OLD)
    put(tmp_path, "registry.ollama.ai/library/alias/latest", OLD)
    specs = [asks(digest), asks(digest, "alias"), asks("", "unloaded")]
    with serving(tmp_path) as server:
        engine = make_engine(
            "ollama", Settings(models_dir=str(tmp_path / "models")), "127.0.0.1", server.server_address[1]
        )
        engine.load(specs[0])
        models = inspect("ollama", tmp_path, specs, server.server_address[1]).models
    assert [found.loaded for found in models] == [digest, digest, ""]
    assert models[0].context == 4096
    assert models[0].expires > "2200"
    assert models[2].context is None
