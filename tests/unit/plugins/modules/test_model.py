# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run as Ansible runs it: against a file server that misbehaves, and a SIMULATED Ollama and registry."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.module_utils import _fetch
from ansible_collections.llm.cluster.plugins.module_utils._engines import _gguf_store, _reconcile, llama_cpp
from ansible_collections.llm.cluster.plugins.modules import model
from simulated import ollama
from simulated._faults import Document, FaultyServer
from simulated.registry import Registry

Run = Callable[..., dict[str, Any]]

OLD, NEW = (hashlib.shake_256(name.encode()).digest(300_000) for name in ("old", "new"))


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the module's main() with real arguments and returns what it prints."""

    def run_module(check: bool = False, **arguments: Any) -> dict[str, Any]:
        arguments["_ansible_check_mode"] = check
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            model.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run_module


def everything(path: Path) -> list[str]:
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


# --- llama.cpp ------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror() -> Iterator[FaultyServer]:
    server = FaultyServer()
    server.documents = {"/old.gguf": Document(OLD), "/new.gguf": Document(NEW)}
    server.start()
    yield server
    server.stop()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def have(run: Run, mirror: FaultyServer, store: Path) -> Run:
    """Return a function that wants one model from the mirror on a llama.cpp node."""

    def run_module(content: bytes, check: bool = False, path: str = "", **more: Any) -> dict[str, Any]:
        path = path or ("/old.gguf" if content == OLD else "/new.gguf")
        entry = {"name": "tiny:1", "digest": digest_of(content), "source": {"url": mirror.url + path}}
        return run(check, engine="llama_cpp", models_dir=str(store), models=[entry], **{"network_timeout": 5, **more})

    return run_module


def served(store: Path) -> bytes:
    return (store / "current" / "tiny-1.gguf").read_bytes()


def test_check_apply_apply_check(have: Run, store: Path, mirror: FaultyServer, tmp_path: Path) -> None:
    for content, before in ((OLD, ""), (NEW, digest_of(OLD))):
        there = everything(tmp_path)
        predicted = have(content, check=True)
        assert everything(tmp_path) == there
        assert predicted["changed"]
        done = have(content)
        assert done["changed"]
        assert predicted["diff"] == done["diff"]
        assert done["diff"]["after"] == f"tiny:1: {digest_of(content)}\n"
        assert (done["models"][0]["digest_before"], done["models"][0]["digest_after"]) == (before, digest_of(content))
        assert done["models"][0]["bytes"] == len(content)
        assert served(store) == content
        mirror.requests.clear()
        for check in (False, True):
            again = have(content, check=check)
            assert not again["changed"]
            assert again["diff"]["before"] == again["diff"]["after"]
        assert mirror.requests == []
    assert sorted(path.name for path in store.glob("sha256-*.gguf")) == sorted(
        digest_of(content).replace(":", "-") + ".gguf" for content in (OLD, NEW)
    )


def test_a_verified_file_is_hashed_again_only_if_it_changed(
    have: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(OLD)
    hashed: list[str] = []

    def count(path: str) -> str:
        hashed.append(path)
        return real(path)

    real = _gguf_store.sha256_file
    monkeypatch.setattr(_gguf_store, "sha256_file", count)
    have(OLD)
    assert hashed == []
    blob = next(store.glob("sha256-*.gguf"))
    os.utime(blob, ns=(1, 1))
    assert not have(OLD)["changed"]
    assert hashed == [str(blob)]
    assert not have(OLD)["changed"]
    assert hashed == [str(blob)]


@pytest.mark.parametrize("years", [-30, 30])
def test_the_clock_may_be_wrong(
    have: Run, store: Path, mirror: FaultyServer, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    """A node whose time of day jumps: what is there stays known, what broke off goes on, what is damaged is found."""
    have(OLD)
    skewed = time.time() + years * 365 * 86400
    monkeypatch.setattr(time, "time", lambda: skewed)
    assert not have(OLD)["changed"]
    monkeypatch.setattr(_fetch.time, "sleep", lambda seconds: None)
    mirror.fault("/new.gguf", cut_after=100_000, times=1)
    mirror.fault("/new.gguf", status=503, times=100)
    assert have(NEW)["failed"]
    assert served(store) == OLD
    mirror.clear_faults()
    assert have(NEW)["models"][0]["resumed"] == 100_000
    assert served(store) == NEW
    os.utime(store / "current" / "tiny-1.gguf", (skewed, skewed))
    assert not have(NEW)["changed"]


@pytest.mark.parametrize("damage", ["other bytes", "shorter", "gone"])
def test_a_damaged_file_is_fetched_again(have: Run, store: Path, damage: str) -> None:
    have(OLD)
    blob = next(store.glob("sha256-*.gguf"))
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(OLD[:-1] + (b"?" if damage == "other bytes" else b""))
    predicted = have(OLD, check=True)
    assert predicted["changed"]
    done = have(OLD)
    assert done["changed"]
    assert predicted["diff"] == done["diff"]
    assert done["diff"]["before"] == f"tiny:1: {digest_of(OLD)}, damaged\n"
    assert served(store) == OLD
    assert not have(OLD)["changed"]


def test_a_damaged_file_that_is_served_is_mended_by_fetching(
    have: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(OLD)
    next(store.glob("sha256-*.gguf")).write_bytes(b"damaged")
    running = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=time.clock_gettime(1))
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: dict.fromkeys(units, running))
    assert have(OLD, state="fetched")["changed"]
    assert served(store) == OLD
    assert have(OLD)["restart_units"] == ["tiny-1"]


def test_a_damaged_file_is_not_served_while_the_mirror_is_down(have: Run, store: Path, mirror: FaultyServer) -> None:
    have(OLD)
    next(store.glob("sha256-*.gguf")).write_bytes(b"damaged")
    mirror.documents.clear()
    assert "404" in have(OLD)["msg"]
    assert not (store / "current" / "tiny-1.gguf").exists()


def test_a_wrong_file_never_serves(have: Run, store: Path, mirror: FaultyServer, tmp_path: Path) -> None:
    have(OLD)
    failed = have(NEW, path="/old.gguf")
    assert failed["failed"]
    assert digest_of(OLD) in failed["msg"]
    assert digest_of(NEW) in failed["msg"]
    assert failed["models"][0]["digest_before"] == digest_of(OLD)
    assert served(store) == OLD
    assert not list((tmp_path / "partial").glob("*.part"))


def test_a_broken_download_goes_on_in_the_next_run(
    have: Run, store: Path, mirror: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(OLD)
    monkeypatch.setattr(_fetch.time, "sleep", lambda seconds: None)
    mirror.fault("/new.gguf", cut_after=100_000, times=1)
    # More often than it is tried; a lasting one would be seen before the download began.
    mirror.fault("/new.gguf", status=503, times=100)
    failed = have(NEW)
    assert failed["failed"]
    assert "run again" in failed["msg"]
    assert served(store) == OLD
    assert [path.stat().st_size for path in (tmp_path / "partial").glob("*.part")] == [100_000]
    mirror.clear_faults()
    done = have(NEW)["models"][0]
    assert (done["resumed"], done["bytes"]) == (100_000, 200_000)
    assert served(store) == NEW


@pytest.mark.parametrize(
    ("free", "memory", "says"),
    [
        (200_000, 10**9, r"needs 300\.0 kB \(300000 bytes\) more.*200\.0 kB \(200000 bytes\) are free"),
        (10**9, 200_000, r"300\.0 kB.*memory of 200\.0 kB.*models_check_memory"),
    ],
)
def test_a_model_too_large_is_refused_before_anything_is_fetched(
    have: Run,
    tmp_path: Path,
    mirror: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
    *,
    free: int,
    memory: int,
    says: str,
) -> None:
    monkeypatch.setattr(_reconcile, "free_bytes", lambda path: free)
    monkeypatch.setattr(_reconcile, "total_memory", lambda: memory)
    for check in (True, False):
        failed = have(OLD, check=check)
        assert failed["failed"]
        assert re.search(says, failed["msg"])
    assert [method for method, _, _ in mirror.requests] == ["HEAD", "HEAD"]
    assert everything(tmp_path) == []
    if memory < free:
        assert have(OLD, check_memory=False)["changed"]


@pytest.mark.parametrize("where", ["the partial file", "the store"])
def test_the_disk_fills_up(have: Run, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    have(OLD)

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "the store":
            patch.setattr(_gguf_store.GgufStore, "adopt", full)
        else:
            patch.setattr(_fetch.Partial, "write", full)
        failed = have(NEW)
    assert failed["failed"]
    assert "Make room" in failed["msg"]
    assert "Traceback" not in failed["msg"]
    assert served(store) == OLD
    assert not (store / (digest_of(NEW).replace(":", "-") + ".gguf")).exists()
    assert have(NEW)["changed"]
    assert served(store) == NEW


def test_another_run_holds_the_store(have: Run, store: Path, tmp_path: Path) -> None:
    have(OLD)
    keeper = _gguf_store.GgufStore(str(store), str(tmp_path / "partial"))
    with keeper.lock(1):
        failed = have(NEW, lock_timeout=0.2)
    assert str(os.getpid()) in failed["msg"]
    assert have(NEW)["changed"]


def test_absent(have: Run, run: Run, store: Path, mirror: FaultyServer) -> None:
    have(OLD)
    two = [
        {"name": "tiny:1", "digest": digest_of(OLD)},
        {"name": "twin", "digest": digest_of(OLD)},
    ]
    run(engine="llama_cpp", models_dir=str(store), models=two)
    for name, left in (("tiny:1", 1), ("twin", 0)):
        wanted = {"engine": "llama_cpp", "models_dir": str(store), "models": [{"name": name}], "state": "absent"}
        assert run(check=True, **wanted)["changed"]
        assert run(**wanted)["diff"] == {"before": f"{name}: {digest_of(OLD)}\n", "after": f"{name}: absent\n"}
        assert not run(**wanted)["changed"]
        assert len(list(store.glob("sha256-*.gguf"))) == left


@pytest.mark.parametrize(
    ("entry", "engine", "says"),
    [
        ({"name": "a", "source": {"url": "http://127.0.0.1:9/x"}}, "llama_cpp", "sha256sum"),
        ({"name": "a", "digest": "sha256:12"}, "llama_cpp", "64 hexadecimal"),
        ({"name": "a", "digest": digest_of(OLD)}, "llama_cpp", "neither source.url nor source.file"),
        ({"name": "a", "source": {"registry": "a"}}, "llama_cpp", "not from a registry"),
        ({"name": "a", "source": {"url": "http://x/"}}, "ollama", "source.registry"),
        ({"name": "a", "digest": digest_of(OLD), "unit": "../a"}, "llama_cpp", "unit's name"),
        ({"name": "a", "digest": digest_of(OLD), "source": {"url": "http://127.0.0.1:9/x"}}, "llama_cpp", "llm_models"),
        ({"name": "a"}, "ollama", "systemctl status ollama"),
    ],
)
def test_what_cannot_work_says_what_to_do(run: Run, store: Path, entry: dict, engine: str, says: str) -> None:
    failed = run(engine=engine, models_dir=str(store), models=[entry], port=9)
    assert failed["failed"]
    assert says in failed["msg"]
    assert not store.exists()


def test_two_models_of_one_unit(run: Run, store: Path) -> None:
    models = [{"name": name, "digest": digest_of(OLD)} for name in ("a:b", "a-b")]
    assert "a:b and a-b" in run(engine="llama_cpp", models_dir=str(store), models=models)["msg"]


def test_chunks_from_the_controller(run: Run, store: Path, tmp_path: Path) -> None:
    entry = {"name": "tiny:1", "digest": digest_of(OLD), "size": len(OLD), "source": {"file": "/srv/tiny.gguf"}}
    wanted = {"engine": "llama_cpp", "models_dir": str(store), "models": [entry]}
    chunk = tmp_path / "chunk"

    def append(at: int, content: bytes, digest: str = "") -> dict[str, Any]:
        chunk.write_bytes(content)
        transfer = {"step": "append", "digest": digest_of(OLD), "offset": at, "chunk": str(chunk)}
        return run(**wanted, transfer={**transfer, "sha256": digest or digest_of(content)})

    assert run(**wanted)["missing"] == [{"name": "tiny:1", "digest": digest_of(OLD), "have": 0, "size": len(OLD)}]
    assert run(**wanted, check=True)["changed"]
    assert append(0, OLD[:100_000])["have"] == 100_000
    assert "damaged" in append(100_000, OLD[100_000:200_000], digest_of(b""))["msg"]
    assert "another run" in append(200_000, OLD[200_000:])["msg"]
    assert run(**wanted)["missing"][0]["have"] == 100_000
    assert append(100_000, b"x" * 100_000)["have"] == 200_000
    assert append(100_000, OLD[100_000:150_000])["have"] == 150_000
    assert append(100_000, OLD[100_000:])["have"] == len(OLD)
    done = run(**wanted)
    assert done["changed"]
    assert "missing" not in done
    assert served(store) == OLD
    assert not run(**wanted)["changed"]


# --- llama.cpp, from other nodes ------------------------------------------------------------------------------------


@pytest.fixture
def peer() -> Iterator[FaultyServer]:
    """Stand in for another node's share that has the new version."""
    server = FaultyServer()
    server.documents = {"/blobs/" + digest_of(NEW).replace(":", "-"): Document(NEW)}
    server.start()
    yield server
    server.stop()


@pytest.fixture
def token(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text("a token of this run\n", encoding="ascii")
    return str(path)


GONE = "http://127.0.0.1:9"


def test_fetched_is_not_served_and_present_only_switches(have: Run, store: Path, mirror: FaultyServer) -> None:
    have(OLD)
    predicted = have(NEW, check=True, state="fetched")
    done = have(NEW, state="fetched")
    assert predicted["diff"] == done["diff"]
    assert done["diff"] == {
        "before": f"tiny:1: {digest_of(OLD)}\n",
        "after": f"tiny:1: {digest_of(OLD)}, holds {digest_of(NEW)}\n",
    }
    entry = done["models"][0]
    assert (entry["digest_before"], entry["digest_after"]) == (digest_of(OLD), digest_of(OLD))
    assert (entry["held"], entry["bytes"]) == ([digest_of(NEW)], len(NEW))
    assert served(store) == OLD
    for check in (True, False):
        again = have(NEW, check=check, state="fetched")
        assert not again["changed"]
        assert again["diff"]["before"] == again["diff"]["after"]
    mirror.documents.clear()
    switched = have(NEW)["models"][0]
    assert (switched["bytes"], switched["digest_before"], switched["held"]) == (0, digest_of(OLD), [digest_of(OLD)])
    assert served(store) == NEW
    # The way back needs no download either.
    assert have(OLD)["models"][0]["held"] == [digest_of(NEW)]
    assert served(store) == OLD


def test_fetching_restarts_nothing(have: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: dict.fromkeys(units, RUNNING))
    for check in (True, False):
        assert have(OLD, check=check, state="fetched")["restart_units"] == []


@pytest.mark.parametrize("source", ["url", "file", ""])
def test_other_nodes_go_before_the_source(
    run: Run, store: Path, mirror: FaultyServer, peer: FaultyServer, token: str, *, source: str
) -> None:
    sources = {"url": {"url": mirror.url + "/new.gguf"}, "file": {"file": "/srv/new.gguf"}, "": {}}
    entry = {"name": "tiny:1", "digest": digest_of(NEW), "size": len(NEW), "source": sources[source]}
    wanted = {"engine": "llama_cpp", "models_dir": str(store), "token_file": token}
    done = run(**wanted, models=[{**entry, "peers": [GONE, peer.url]}], network_timeout=1)
    assert done["changed"], done
    assert served(store) == NEW
    assert mirror.requests == []


def test_the_source_ends_what_another_node_began(
    run: Run, store: Path, mirror: FaultyServer, peer: FaultyServer, token: str
) -> None:
    peer.fault(".*", cut_after=100_000, times=1)
    peer.fault(".*", status=404)
    entry = {"name": "tiny:1", "digest": digest_of(NEW), "source": {"url": mirror.url + "/new.gguf"}}
    wanted = {"engine": "llama_cpp", "models_dir": str(store), "token_file": token, "network_timeout": 1}
    assert run(**wanted, models=[{**entry, "peers": [peer.url]}])["changed"]
    assert served(store) == NEW
    assert [asked for _, _, asked in mirror.requests] == ["bytes=100000-"]


def test_a_file_that_no_node_has_comes_from_the_controller(run: Run, store: Path, tmp_path: Path, token: str) -> None:
    entry = {"name": "tiny:1", "digest": digest_of(OLD), "size": len(OLD), "source": {"file": "/srv/tiny.gguf"}}
    wanted = {
        "engine": "llama_cpp",
        "models_dir": str(store),
        "models": [{**entry, "peers": [GONE]}],
        "token_file": token,
        "network_timeout": 1,
    }
    alone = run(**wanted, transfer={"step": "alone"})
    assert alone["failed"]
    assert "/srv/tiny.gguf" in alone["msg"]
    assert "without async" in alone["msg"]
    assert "missing" not in run(**wanted, transfer={"step": "ask"})
    missing = {"name": "tiny:1", "digest": digest_of(OLD), "have": 0, "size": len(OLD)}
    assert run(**wanted)["missing"] == [missing]
    chunk = tmp_path / "chunk"
    chunk.write_bytes(OLD)
    transfer = {"step": "append", "digest": digest_of(OLD), "offset": 0, "chunk": str(chunk), "size": len(OLD)}
    run(**wanted, transfer={**transfer, "sha256": digest_of(OLD)})
    part = tmp_path / "partial" / (digest_of(OLD).replace(":", "-") + ".gguf.part")
    assert Path(f"{part}.size").read_text(encoding="ascii") == str(len(OLD))
    assert run(**wanted)["changed"]
    assert served(store) == OLD
    assert [path.name for path in part.parent.iterdir()] == [".lock"]


def test_the_token_has_to_be_there(run: Run, store: Path, peer: FaultyServer) -> None:
    entry = {"name": "tiny:1", "digest": digest_of(NEW), "peers": [peer.url]}
    failed = run(engine="llama_cpp", models_dir=str(store), models=[entry], token_file="/nowhere/token")
    assert "/nowhere/token" in failed["msg"]


# --- what runs while it is fetched ----------------------------------------------------------------------------------


class StillServer(ThreadingHTTPServer):
    """Gives the first half of the new version, and then nothing."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StillHandler)
        self.end = threading.Event()


class StillHandler(BaseHTTPRequestHandler):
    server: StillServer

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(NEW)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(NEW[: len(NEW) // 2])
        self.wfile.flush()
        self.server.end.wait(30)


def test_a_run_that_is_ended_keeps_what_came(store: Path, tmp_path: Path) -> None:
    partial = tmp_path / "partial"
    with StillServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        source = {"url": f"http://127.0.0.1:{server.server_address[1]}/new.gguf"}
        entry = {"name": "tiny:1", "digest": digest_of(NEW), "source": source}
        arguments = {"engine": "llama_cpp", "models_dir": str(store), "models": [entry], "network_timeout": 30}
        text = json.dumps({"ANSIBLE_MODULE_ARGS": arguments})
        with subprocess.Popen(
            [sys.executable, "-c", ALONE, text], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": PATHS}
        ) as process:
            assert process.stdout
            wait_until(lambda: json.loads((partial / "progress.json").read_text())["bytes"] == len(NEW) // 2)
            said = json.loads((partial / "progress.json").read_text())
            assert said == {"model": "tiny:1", "bytes": len(NEW) // 2, "total": len(NEW), "pid": process.pid}
            process.terminate()
            answer = json.loads(process.stdout.read())
        server.end.set()
        server.shutdown()
    assert "run again" in answer["msg"]
    part = digest_of(NEW).replace(":", "-") + ".gguf.part"
    assert sorted(path.name for path in partial.iterdir()) == [".lock", part]
    assert (partial / part).stat().st_size == len(NEW) // 2


PATHS = os.pathsep.join(path for path in sys.path if path)
ALONE = """
import sys
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.modules import model
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.argv[1].encode(), "legacy"
model.main()
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if condition():
                return
        threading.Event().wait(0.02)
    raise AssertionError("it did not come to that")


class Engine(ThreadingHTTPServer):
    """Answers what the module asks a llama.cpp instance."""

    daemon_threads = True
    loading = 0
    name = "tiny:1"
    completes = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), EngineHandler)


class EngineHandler(BaseHTTPRequestHandler):
    server: Engine

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def answer(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self) -> None:
        if self.path == "/health" and self.server.loading:
            self.server.loading -= 1
            self.answer(503, {"error": {"message": "Loading model"}})
            return
        self.answer(200, {"status": "ok"} if self.path == "/health" else {"data": [{"id": self.server.name}]})

    def do_POST(self) -> None:
        assert json.loads(self.rfile.read(int(self.headers["Content-Length"])))["max_tokens"] == 1
        if self.server.completes:
            self.answer(200, {"choices": [{"text": " world"}]})
        else:
            self.answer(500, {"error": {"message": "out of memory"}})


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ({"loading": 2}, ""),
        ({"loading": 10_000}, "not healthy within 1 s"),
        ({"name": "other"}, "serves other instead of tiny:1"),
        ({"completes": False}, "fails a one-token prompt: 500: out of memory"),
    ],
)
def test_loaded(have: Run, engine: Engine, condition: dict[str, Any], says: str) -> None:
    have(OLD)
    vars(engine).update(condition)
    done = have(OLD, state="loaded", port=engine.server_address[1], timeout=1)
    assert not done["changed"]
    assert done.get("failed", False) == bool(says)
    if says:
        assert says in done["msg"]
        assert "journalctl -u llama-cpp@tiny-1.service" in done["msg"]


def test_a_served_version_may_stay(have: Run, engine: Engine, store: Path, mirror: FaultyServer) -> None:
    assert have(OLD, replace=False)["changed"], "where nothing is served there is nothing to replace"
    mirror.requests.clear()
    for check in (True, False):
        left = have(NEW, check=check, replace=False, state="loaded", port=engine.server_address[1], timeout=1)
        assert (left["changed"], left["outdated"], left["restart_units"]) == (False, ["tiny:1"], [])
        assert left["diff"]["before"] == left["diff"]["after"]
        assert digest_of(NEW) in left["models"][0]["note"]
    assert served(store) == OLD
    assert not [request for request in mirror.requests if request[0] == "GET"]
    next(store.glob("sha256-*.gguf")).write_bytes(b"damaged")
    assert have(OLD, replace=False)["changed"], "a damaged file is mended all the same"
    done = have(NEW)
    assert (done["changed"], done["outdated"]) == (True, [])
    assert served(store) == NEW


def test_loaded_means_the_wanted_version(have: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    have(OLD)
    running = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=1e12, pid=1)
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: dict.fromkeys(units, running))
    for content, failed in ((OLD, False), (NEW, True)):
        line = f"7f-80 r--s 0 8:1 9 /m/sha256-{digest_of(content)[7:]}.gguf"
        monkeypatch.setattr(llama_cpp, "read_maps", lambda pid, line=line: line)
        done = have(OLD, state="loaded", port=engine.server_address[1], timeout=1)
        assert done.get("failed", False) == failed
    assert f"has {digest_of(NEW)} in memory instead of {digest_of(OLD)}" in done["msg"]


BOOT = "boot"
RUNNING = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=100.0)


@pytest.mark.parametrize(
    ("state", "switched", "need"),
    [
        (llama_cpp.UnitState(), {}, "install"),
        (llama_cpp.UnitState(installed=True), {}, "start"),
        (llama_cpp.UnitState(installed=True, active=True, started=100.0), {}, "start"),
        (RUNNING, {}, ""),
        (RUNNING, {"digest": "a", "boot": BOOT, "monotonic": 99.0}, ""),
        (RUNNING, {"digest": "a", "boot": BOOT, "monotonic": 101.0}, "restart"),
        (RUNNING, {"digest": "a", "boot": "an earlier one", "monotonic": 101.0}, ""),
        (RUNNING, {"digest": "a"}, "restart"),
        (RUNNING, {"digest": "b", "boot": BOOT, "monotonic": 99.0}, "restart"),
    ],
)
def test_what_an_instance_needs(state: llama_cpp.UnitState, switched: dict[str, Any], need: str) -> None:
    assert llama_cpp.unit_needs(state, "a", switched, BOOT) == need


def test_instances_are_named(have: Run, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: dict.fromkeys(units, RUNNING))
    assert have(OLD, check=True)["restart_units"] == ["tiny-1"]
    assert have(OLD)["restart_units"] == ["tiny-1"]
    assert have(OLD)["restart_units"] == ["tiny-1"]
    failed = have(OLD, state="loaded", port=engine.server_address[1], timeout=1)
    assert "Restart it" in failed["msg"]
    later = llama_cpp.UnitState(installed=True, active=True, enabled=True, started=1e12)
    monkeypatch.setattr(llama_cpp, "unit_states", lambda units: dict.fromkeys(units, later))
    done = have(OLD, state="loaded", port=engine.server_address[1], timeout=5)
    assert done["restart_units"] == []
    assert not done["changed"]


def test_an_instance_needs_its_settings(tmp_path: Path) -> None:
    settings = tmp_path / "tiny.env"
    text = f"EnvironmentFiles={settings} (ignore_errors=no)\nId=llama-cpp@tiny.service\nLoadState=loaded\n"
    state = llama_cpp.parse_units(text)["llama-cpp@tiny.service"]
    assert not state.set_up
    settings.touch()
    assert state.set_up
    assert llama_cpp.UnitState(installed=True).set_up
    assert not llama_cpp.UnitState().set_up
    optional = llama_cpp.parse_units(text.replace("=no", "=yes"))["llama-cpp@tiny.service"]
    assert optional.settings == ""


def test_systemctl_is_understood() -> None:
    text = (
        "Id=llama-cpp@a.service\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\n"
        "ExecMainStartTimestampMonotonic=12500000\n\n"
        "Id=llama-cpp@b.service\nLoadState=not-found\nActiveState=inactive\nUnitFileState=\n"
        "ExecMainStartTimestampMonotonic=0\n"
    )
    assert llama_cpp.parse_units(text) == {
        "llama-cpp@a.service": llama_cpp.UnitState(installed=True, active=True, enabled=True, started=12.5),
        "llama-cpp@b.service": llama_cpp.UnitState(),
    }


# --- Ollama ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ollama.Server]:
    monkeypatch.setenv("OLLAMA_NOPRUNE", "1")
    monkeypatch.setattr(_fetch.time, "sleep", lambda seconds: None)
    server = ollama.Server(("127.0.0.1", 0), ollama.Store(tmp_path / "ollama"))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pull(run: Run, node: ollama.Server, registry: Registry, tmp_path: Path) -> Run:
    """Return a function that wants one model from the registry on an Ollama node."""

    def run_module(digest: str = "", name: str = "", check: bool = False, **more: Any) -> dict[str, Any]:
        mirrored = f"{registry.netloc}/library/tiny:1"
        entry = {"name": name or mirrored, "digest": digest, "source": {"registry": mirrored}, "insecure": True}
        fixed = {"engine": "ollama", "port": node.server_address[1], "models_dir": str(tmp_path / "ollama")}
        return run(check, **{"models": [entry], **fixed, "network_timeout": 5, **more})

    return run_module


KEPT = "llm-cluster-kept/"


def all_names(node: ollama.Server) -> dict[str, str]:
    return {found.name.short(): "sha256:" + found.digest for found in node.store.models()}


def names(node: ollama.Server) -> dict[str, str]:
    """Return the models, without versions that are kept."""
    return {name: digest for name, digest in all_names(node).items() if not name.startswith(KEPT)}


def kept(node: ollama.Server) -> set[str]:
    """Return the versions that are kept."""
    return {digest for name, digest in all_names(node).items() if name.startswith(KEPT)}


def want_login(registry: Registry) -> None:
    """Have the registry refuse what looks and fetches without a login; Ollama, which comes third, has one."""
    registry.fault("/v2/library/tiny/manifests/1", status=401, times=2)


@pytest.mark.parametrize("name", ["", "tiny:1", "mine/tiny"])
def test_ollama_check_apply_apply_check(pull: Run, node: ollama.Server, registry: Registry, name: str) -> None:
    shown = {"": f"{registry.netloc}/library/tiny:1", "mine/tiny": "mine/tiny:latest"}.get(name, name)
    before = ""
    for content in (b"one" * 50_000, b"two" * 50_000):
        digest = registry.publish("tiny:1", content).digest
        predicted = pull(digest, name, check=True)
        assert names(node) == ({shown: before} if before else {})
        done = pull(digest, name)
        assert done["changed"]
        assert done["diff"] == predicted["diff"]
        assert (done["models"][0]["digest_before"], done["models"][0]["digest_after"]) == (before, digest)
        assert names(node) == {shown: digest}
        registry.requests.clear()
        for check in (False, True):
            assert not pull(digest, name, check=check)["changed"]
            assert not pull(digest.replace("sha256:", ""), name, check=check)["changed"]
        assert not pull("", name)["changed"]
        assert registry.requests == []
        before = digest


@pytest.mark.parametrize("name", ["", "tiny:1"])
def test_a_tag_that_moved_is_refused_before_it_is_pulled(
    pull: Run, node: ollama.Server, registry: Registry, name: str
) -> None:
    wanted = registry.publish("tiny:1", b"one" * 50_000).digest
    pull(wanted, name)
    there = names(node)
    moved = registry.publish("tiny:1", b"two" * 50_000).digest
    registry.requests.clear()
    assert not pull(wanted, name)["changed"]
    for check in (True, False):
        failed = pull("sha256:" + "0" * 64, name, check=check)
        assert "0" * 64 in failed["msg"]
        assert moved in failed["msg"]
        assert wanted in failed["msg"]
    assert names(node) == there
    assert {path for _, path, _ in registry.requests} == {"/v2/library/tiny/manifests/1"}


@pytest.mark.parametrize("name", ["", "tiny:1"])
@pytest.mark.parametrize("served_before", [True, False])
def test_a_tag_that_moves_between_question_and_pull(
    pull: Run,
    node: ollama.Server,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: str,
    served_before: bool,
) -> None:
    first = registry.publish("tiny:1", b"one" * 50_000).digest
    if served_before:
        pull(first, name)
    there = names(node)
    wanted = registry.publish("tiny:1", b"two" * 50_000).digest
    real = ollama.pull

    def moving(*args: Any) -> Iterator[Any]:
        registry.publish("tiny:1", b"three" * 50_000)
        return real(*args)

    monkeypatch.setattr(ollama, "pull", moving)
    want_login(registry)
    failed = pull(wanted, name)
    assert failed["failed"]
    assert wanted in failed["msg"]
    assert names(node) == there
    assert kept(node) == set()


def test_an_error_inside_the_stream_is_an_error(pull: Run, node: ollama.Server, registry: Registry) -> None:
    published = registry.publish("tiny:1", b"one" * 50_000)
    want_login(registry)
    registry.fault(f"/v2/library/tiny/blobs/{published.blobs[0]}", wrong_bytes=True)
    failed = pull(published.digest)
    assert "digest mismatch" in failed["msg"]
    assert names(node) == {}
    registry.clear_faults()
    want_login(registry)
    assert pull(published.digest)["changed"]
    assert names(node)


def test_a_pull_that_ends_without_success_is_none(
    pull: Run, node: ollama.Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.publish("tiny:1", b"one" * 50_000).digest
    real = ollama.pull
    tries: list[int] = []

    def broken(*args: Any) -> Iterator[Any]:
        tries.append(1)
        steps = real(*args)
        yield next(steps)
        if len(tries) > 3:
            yield from steps

    monkeypatch.setattr(ollama, "pull", broken)
    want_login(registry)
    failed = pull(digest)
    assert "failed 3 times" in failed["msg"]
    assert "without success" in failed["msg"]
    want_login(registry)
    assert pull(digest)["changed"]


def test_a_pull_in_which_nothing_moves(
    pull: Run, node: ollama.Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.publish("tiny:1", b"one" * 50_000).digest

    def still(*args: Any) -> Iterator[Any]:
        for _ in range(100):
            threading.Event().wait(0.02)
            yield {"status": "pulling abc", "digest": digest, "total": 100, "completed": 10}

    monkeypatch.setattr(ollama, "pull", still)
    want_login(registry)
    failed = pull(digest, network_timeout=0.3)
    assert "nothing moved for 0 s" in failed["msg"]
    assert "run again" in failed["msg"]


def test_ollama_disk_is_checked_before(
    pull: Run, node: ollama.Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.publish("tiny:1", b"one" * 50_000).digest
    monkeypatch.setattr(_reconcile, "free_bytes", lambda path: 100_000)
    assert "are free" in pull(digest)["msg"]
    assert names(node) == {}


def test_a_registry_that_is_not_there(run: Run, node: ollama.Server) -> None:
    models = [{"name": "a", "source": {"registry": "127.0.0.1:9/library/a:1"}, "insecure": True}]
    failed = run(engine="ollama", port=node.server_address[1], models=models)
    assert "http://127.0.0.1:9/v2/library/a/manifests/1" in failed["msg"]
    assert "source.registry" in failed["msg"]


def test_check_mode_before_ollama_is_installed(run: Run, registry: Registry) -> None:
    digest = registry.publish("tiny:1").digest
    entry = {"name": "a", "digest": digest, "source": {"registry": f"{registry.netloc}/library/tiny:1"}}
    done = run(check=True, engine="ollama", port=9, models=[{**entry, "insecure": True}])
    assert done["changed"]
    assert done["models"][0]["note"] == "Ollama does not answer yet"


def test_ollama_loaded(pull: Run, node: ollama.Server, registry: Registry) -> None:
    first = registry.publish("tiny:1", b"one" * 50_000).digest
    done = pull(first, "tiny:1", state="loaded")
    assert done["diff"]["after"] == f"tiny:1: {first}, in memory\n"
    again = pull(first, "tiny:1", state="loaded")
    assert not again["changed"]
    second = registry.publish("tiny:1", b"two" * 50_000).digest
    assert pull(second, "tiny:1", state="loaded")["changed"]
    assert not pull(second, "tiny:1", state="loaded", check=True)["changed"]


def test_ollama_served_version_may_stay(pull: Run, node: ollama.Server, registry: Registry) -> None:
    first = registry.publish("tiny:1", b"one" * 50_000).digest
    pull(first, "tiny:1", state="loaded")
    second = registry.publish("tiny:1", b"two" * 50_000).digest
    left = pull(second, "tiny:1", state="loaded", replace=False)
    assert (left["changed"], left["outdated"]) == (False, ["tiny:1"])
    assert names(node) == {"tiny:1": first}
    assert in_memory(node) == [first]


def in_memory(node: ollama.Server) -> list[str]:
    return ["sha256:" + runner.model.digest for runner in node.scheduler.loaded()]


def test_ollama_drops_the_old_version_out_of_memory(pull: Run, node: ollama.Server, registry: Registry) -> None:
    first = registry.publish("tiny:1", b"one" * 50_000).digest
    pull(first, "tiny:1", state="loaded")
    second = registry.publish("tiny:1", b"two" * 50_000).digest
    pull(second, "tiny:1")
    assert in_memory(node) == []
    assert pull(second, "tiny:1", state="loaded")["changed"]
    assert in_memory(node) == [second]


def test_ollama_versions_with_the_same_weights(pull: Run, node: ollama.Server, registry: Registry) -> None:
    first = registry.publish("tiny:1", b"one" * 50_000).digest
    pull(first, "tiny:1", state="loaded")
    document = registry.documents["/v2/library/tiny/manifests/1"]
    document.content = document.content.replace(b'"schemaVersion":2', b'"schemaVersion":2,"annotations":{}')
    second = digest_of(document.content)
    assert pull(second, "tiny:1", state="loaded")["changed"]
    assert in_memory(node) == [second]
    assert not pull(second, "tiny:1", state="loaded")["changed"]


def test_ollama_fetched_then_present(pull: Run, node: ollama.Server, registry: Registry) -> None:
    first = registry.publish("tiny:1", b"one" * 50_000).digest
    pull(first, "tiny:1")
    published = registry.publish("tiny:1", b"two" * 50_000)
    second = published.digest
    predicted = pull(second, "tiny:1", state="fetched", check=True)
    done = pull(second, "tiny:1", state="fetched")
    assert predicted["diff"] == done["diff"]
    assert done["diff"]["after"] == f"tiny:1: {first}, holds {second}\n"
    assert done["models"][0]["held"] == [second]
    assert done["models"][0]["bytes"] == sum(len(node.store.blob(digest).read_bytes()) for digest in published.blobs)
    assert names(node) == {"tiny:1": first}
    assert kept(node) == {second}
    registry.documents.clear()
    for check in (True, False):
        assert not pull(second, "tiny:1", state="fetched", check=check)["changed"]
    switched = pull(second, "tiny:1")["models"][0]
    assert (switched["bytes"], switched["digest_before"], switched["held"]) == (0, first, [first])
    assert (names(node), kept(node)) == ({"tiny:1": second}, {first})
    # The way back, without a registry that has it.
    assert pull(first, "tiny:1")["changed"]
    assert (names(node), kept(node)) == ({"tiny:1": first}, {second})


def test_ollama_is_fetched_while_the_server_is_down(
    run: Run, node: ollama.Server, registry: Registry, tmp_path: Path
) -> None:
    digest = registry.publish("tiny:1", b"one" * 50_000).digest
    source = {"registry": f"{registry.netloc}/library/tiny:1"}
    wanted = {
        "engine": "ollama",
        "port": 9,
        "models_dir": str(tmp_path / "ollama"),
        "models": [{"name": "tiny:1", "digest": digest, "source": source, "insecure": True}],
    }
    assert run(**wanted, state="fetched")["changed"]
    assert kept(node) == {digest}
    assert "systemctl status ollama" in run(**wanted)["msg"]


def share_of(node: ollama.Server, manifest: bytes) -> FaultyServer:
    """Return a server that stands in for a node's share."""
    server = FaultyServer()
    server.documents = {f"/blobs/{path.name}": Document(path.read_bytes()) for path in node.store.blobs.iterdir()}
    server.documents["/blobs/" + digest_of(manifest).replace(":", "-")] = Document(manifest)
    server.start()
    return server


def test_ollama_from_another_node_when_the_registry_no_longer_has_it(
    run: Run, pull: Run, node: ollama.Server, registry: Registry, *, token: str, tmp_path: Path
) -> None:
    digest = registry.publish("tiny:1", b"one" * 50_000).digest
    manifest = registry.documents["/v2/library/tiny/manifests/1"].content
    pull(digest, "tiny:1")
    share = share_of(node, manifest)
    registry.documents.clear()
    moved = registry.publish("tiny:1", b"two" * 50_000).digest
    registry.requests.clear()
    (tmp_path / "other").mkdir()
    source = {"registry": f"{registry.netloc}/library/tiny:1"}
    entry = {"name": "tiny:1", "digest": digest, "source": source, "insecure": True}
    wanted = {
        "engine": "ollama",
        "state": "fetched",
        "models_dir": str(tmp_path / "other"),
        "partial_dir": str(tmp_path / "other-partial"),
        "token_file": token,
        "network_timeout": 1,
    }
    failed = run(**wanted, models=[{**entry, "peers": [GONE]}])
    assert digest in failed["msg"]
    assert moved in failed["msg"]
    assert {path for _, path, _ in registry.requests} == {"/v2/library/tiny/manifests/1"}
    registry.requests.clear()
    done = run(**wanted, models=[{**entry, "peers": [GONE, share.url]}])
    share.stop()
    assert done["changed"], done
    assert registry.requests == []
    assert done["models"][0]["held"] == [digest]
    other = ollama.Store(tmp_path / "other")
    assert ["sha256:" + found.digest for found in other.models()] == [digest]
    # For the next node in the chain.
    shared = tmp_path / "other-partial" / "manifests" / digest.replace(":", "-")
    assert shared.read_bytes() == manifest
    assert not list((tmp_path / "other-partial").glob("*.part*"))


def test_ollama_goes_on_where_it_stopped(
    pull: Run, node: ollama.Server, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = registry.publish("tiny:1", b"one" * 50_000)
    weights = f"/v2/library/tiny/blobs/{published.blobs[0]}"
    registry.fault(weights, cut_after=100_000, times=1)
    registry.fault(weights, status=503, times=100)
    failed = pull(published.digest)
    assert "run again" in failed["msg"]
    assert all_names(node) == {}
    part = tmp_path / "partial" / (published.blobs[0].replace(":", "-") + ".part")
    assert part.stat().st_size == 100_000
    registry.clear_faults()
    done = pull(published.digest)["models"][0]
    assert done["resumed"] == 100_000
    assert names(node)
    assert not part.exists()


def test_ollama_wrong_bytes_never_get_into_the_store(
    pull: Run, node: ollama.Server, registry: Registry, tmp_path: Path
) -> None:
    published = registry.publish("tiny:1", b"one" * 50_000)
    registry.fault(f"/v2/library/tiny/blobs/{published.blobs[0]}", wrong_bytes=True)
    failed = pull(published.digest)
    assert published.blobs[0] in failed["msg"]
    assert all_names(node) == {}
    assert not node.store.blob(published.blobs[0]).exists()
    assert not list((tmp_path / "partial").glob("*.part"))


@pytest.mark.parametrize("state", ["present", "fetched"])
@pytest.mark.parametrize("damage", ["other bytes", "shorter", "gone"])
def test_ollama_damaged_blob_is_fetched_again(
    pull: Run, node: ollama.Server, registry: Registry, damage: str, state: str
) -> None:
    published = registry.publish("tiny:1", b"one" * 50_000)
    pull(published.digest, "tiny:1", state="loaded")
    blob = node.store.blob(published.blobs[0])
    if damage == "gone":
        blob.unlink()
    else:
        blob.write_bytes(b"?" * (150_000 if damage == "other bytes" else 10))
    predicted = pull(published.digest, "tiny:1", check=True, state=state)
    assert blob.exists() == (damage != "gone")
    done = pull(published.digest, "tiny:1", state=state)
    assert done["changed"]
    assert predicted["diff"] == done["diff"]
    assert done["diff"]["before"] == f"tiny:1: {published.digest}, damaged\n"
    assert blob.read_bytes() == b"one" * 50_000
    assert in_memory(node) == []
    assert kept(node) == set()
    assert not pull(published.digest, "tiny:1")["changed"]


def test_ollama_damaged_blob_is_not_served_while_the_registry_is_down(
    pull: Run, node: ollama.Server, registry: Registry
) -> None:
    published = registry.publish("tiny:1", b"one" * 50_000)
    pull(published.digest)
    node.store.blob(published.blobs[0]).write_bytes(b"?" * 150_000)
    registry.fault(".*", status=404)
    assert "404" in pull(published.digest)["msg"]
    assert not node.store.blob(published.blobs[0]).exists()


def test_ollama_keeps_what_it_serves_when_the_switch_fails(
    pull: Run, node: ollama.Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry.publish("tiny:1", b"one" * 50_000).digest
    pull(first, "tiny:1")
    second = registry.publish("tiny:1", b"two" * 50_000).digest

    def refuse(handler: ollama.Handler) -> None:
        raise ollama.ApiError(500, "no copy today")

    with monkeypatch.context() as patch:
        patch.setitem(ollama.ROUTES, ("POST", "/api/copy"), refuse)
        failed = pull(second, "tiny:1")
    assert "no copy today" in failed["msg"]
    assert f"has {first} as before" in failed["msg"]
    assert names(node) == {"tiny:1": first}
    assert pull(second, "tiny:1")["models"][0]["bytes"] == 0
    assert names(node) == {"tiny:1": second}


def test_a_store_that_is_not_the_servers(pull: Run, node: ollama.Server, registry: Registry, tmp_path: Path) -> None:
    digest = registry.publish("tiny:1").digest
    pull(digest, "tiny:1")
    (tmp_path / "elsewhere").mkdir()
    failed = pull(digest, "tiny:1", models_dir=str(tmp_path / "elsewhere"))
    assert "not that server's store" in failed["msg"]
    assert "There is no store" in pull(digest, state="fetched", models_dir=str(tmp_path / "none"))["msg"]


def test_what_comes_into_the_store_is_the_stores(
    pull: Run, node: ollama.Server, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "ollama").chmod(0o750)
    published = registry.publish("tiny:1")
    pull(published.digest, "tiny:1", state="fetched")
    assert oct(node.store.blob(published.blobs[0]).stat().st_mode) == "0o100640"
    (manifest,) = (path for path in node.store.manifests.rglob("*") if path.is_file())
    assert oct(manifest.stat().st_mode) == "0o100640"
    assert {oct(folder.stat().st_mode) for folder in list(manifest.parents)[:3]} == {"0o40750"}


def test_ollama_disk_is_checked_when_only_another_node_knows_the_size(
    pull: Run, node: ollama.Server, registry: Registry, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = registry.publish("tiny:1", b"one" * 50_000)
    monkeypatch.setattr(_fetch, "free_bytes", lambda path: 100_000)
    source = {"registry": f"{registry.netloc}/library/tiny:1"}
    entry = {"name": "tiny:1", "digest": published.digest, "source": source, "insecure": True, "peers": [GONE]}
    failed = pull(published.digest, models=[entry], token_file=token, network_timeout=1)
    assert "are free" in failed["msg"]
    assert not any("/blobs/" in path for _, path, _ in registry.requests)


def test_ollama_absent(pull: Run, node: ollama.Server, registry: Registry) -> None:
    pull(registry.publish("tiny:1").digest, "tiny:1")
    assert pull(name="tiny:1", state="absent", check=True)["changed"]
    assert names(node)
    assert pull(name="tiny:1", state="absent")["changed"]
    assert names(node) == {}
    assert not pull(name="tiny:1", state="absent")["changed"]


# --- what is written about it ---------------------------------------------------------------------------------------


def test_documentation_and_options_agree(check_documents: Callable[[ModuleType], None]) -> None:
    check_documents(model)
