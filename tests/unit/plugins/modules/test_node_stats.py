# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run as Ansible runs it, against a server that answers as llama.cpp does, and a SIMULATED Ollama."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.module_utils._engines import Found
from ansible_collections.llm.cluster.plugins.module_utils._stats import _llama_cpp
from ansible_collections.llm.cluster.plugins.modules import node_stats

Run = Callable[..., dict[str, Any]]
DIGEST = "sha256:" + "a5" * 32

# Shortened from a real server's answers.
SLOT = '{"id":%d,"n_ctx":2048,"speculative":false,"is_processing":%s,"id_task":101}'
METRICS = """# HELP llamacpp:requests_processing Number of requests processing.
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# HELP llamacpp:requests_deferred Number of requests deferred.
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 3
"""
ANSWERS = {
    "/health": (200, '{"status":"ok"}'),
    "/props": (200, '{"default_generation_settings":{"n_ctx":2048},"total_slots":3,"build_info":"b6123-1a2b3c4"}'),
    "/slots": (200, f"[{SLOT % (0, 'true')},{SLOT % (1, 'true')},{SLOT % (2, 'false')}]"),
    "/metrics": (200, METRICS),
}
LOADING = (503, '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}')
SWITCHED_OFF = (501, '{"error":{"code":501,"message":"This server does not support metrics endpoint."}}')
HANGS = (0, "")


@contextlib.contextmanager
def engine(**changed: tuple[int, str]) -> Iterator[int]:
    """Serve answers, some of them changed; yield the port."""
    answers = {**ANSWERS, **{"/" + name: answer for name, answer in changed.items()}}
    leave = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answers.get(self.path, (404, "{}"))
            if not status:
                leave.wait(30)
                return
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_arguments: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        leave.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs the module's main() with real arguments and returns what it prints."""
    monkeypatch.setattr(_llama_cpp, "running_release", lambda _unit, _seconds: "2026.1.1")

    def run_module(*models: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        arguments = {
            "engine": "llama_cpp",
            "models": list(models),
            "address": "127.0.0.1",
            "models_dir": str(tmp_path / "models"),
            "timeout": 2,
            "_ansible_check_mode": True,
            **arguments,
        }
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            node_stats.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert not result.get("failed"), result
        return result

    return run_module


def test_all_that_is_documented(run: Run) -> None:
    with engine() as port:
        result = run({"name": "m", "port": port, "digest": DIGEST}, slots=4)
    assert result["changed"] is False
    assert result["engine"] == {"kind": "llama_cpp", "version": "b6123-1a2b3c4", "healthy": True, "reason": ""}
    assert result["slots"] == {"busy": 2, "total": 3}, "the engine's own word goes before the option"
    assert result["waiting"] == 3
    assert result["unread"] == []
    (model,) = result["models"]
    assert (model["name"], model["wanted"], model["status"]) == ("m", DIGEST, "missing")
    documented = yaml.safe_load(node_stats.RETURN)
    assert set(documented) == set(result) - {"changed", "invocation", "warnings"}
    assert set(documented["models"]["contains"]) == set(model) == set(Found.__dataclass_fields__)
    for part in ("engine", "cpu", "memory", "disk", "slots"):
        assert (
            set(documented[part]["contains"]) == set(documented[part].get("sample", result[part])) == set(result[part])
        )


def test_an_idle_node_is_read_in_less_than_a_second(run: Run) -> None:
    with engine() as port:
        began = time.monotonic()
        run({"name": "m", "port": port})
        assert time.monotonic() - began < 1


def test_instances_together(run: Run) -> None:
    with engine() as one, engine(slots=(200, f"[{SLOT % (0, 'false')}]"), metrics=SWITCHED_OFF) as two:
        result = run({"name": "a", "port": one}, {"name": "b", "port": two})
    assert result["engine"]["healthy"]
    assert result["slots"] == {"busy": 2, "total": 4}
    assert result["waiting"] == 3
    (unread,) = result["unread"]
    assert unread == {"part": "waiting", "reason": "b: HTTP 501: This server does not support metrics endpoint."}


def test_one_instance_down(run: Run) -> None:
    with engine() as one, engine() as gone:
        pass
    with engine() as one:
        result = run({"name": "a", "port": one}, {"name": "b", "port": gone}, slots=8)
    assert (result["engine"]["healthy"], result["engine"]["reason"]) == (False, "b: connection refused")
    assert result["slots"] == {"busy": 2, "total": 8}
    assert {unread["part"] for unread in result["unread"]} == {"version", "slots", "waiting"}
    assert {unread["reason"] for unread in result["unread"]} == {"b: connection refused"}
    assert len(result["models"]) == 2, "what is on the disk doesn't need the engine"


@pytest.mark.parametrize(
    ("changed", "healthy", "reason", "unread"),
    [
        ({"health": LOADING}, False, "m: HTTP 503: Loading model", {}),
        ({"health": HANGS}, False, "m: no answer within 0.5 s", {}),
        ({"slots": HANGS}, True, "", {"slots": "m: no answer within 0.5 s"}),
        ({"slots": (200, "{}")}, True, "", {"slots": "m: the answer to /slots is not a list of slots"}),
        ({"slots": (200, "<html>")}, True, "", {"slots": "m: the answer is not JSON"}),
        ({"metrics": (200, "")}, True, "", {"waiting": "m: /metrics doesn't say how many requests wait"}),
        ({"props": (200, "[]")}, True, "", {"version": "m: the answer to /props is not an object"}),
    ],
)
def test_parts_that_cannot_be_read(
    run: Run, changed: dict[str, tuple[int, str]], healthy: bool, reason: str, unread: dict[str, str]
) -> None:
    with engine(**changed) as port:
        began = time.monotonic()
        result = run({"name": "m", "port": port}, timeout=0.5)
        assert time.monotonic() - began < 3
    assert (result["engine"]["healthy"], result["engine"]["reason"]) == (healthy, reason)
    assert {part["part"]: part["reason"] for part in result["unread"]} == unread
    assert result["memory"]["total"] > 0, "the other parts are there"


def test_a_version_that_says_nothing_is_asked_of_the_process(run: Run) -> None:
    with engine(props=(200, '{"build_info":"b0-unknown"}')) as port:
        assert run({"name": "m", "port": port})["engine"]["version"] == "2026.1.1"


def test_parts_of_the_host_that_hang_or_fail(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("Stale file handle")

    monkeypatch.setattr(node_stats, "read_disk", lambda _path: time.sleep(30))
    monkeypatch.setattr(node_stats, "read_memory", fail)
    with engine() as port:
        result = run({"name": "m", "port": port}, timeout=0.5)
    assert (result["disk"], result["memory"]) == (None, None)
    reasons = {part["part"]: part["reason"] for part in result["unread"]}
    assert reasons == {"disk": "no answer within 1 s", "memory": "Stale file handle"}
    assert result["cpu"]["cpus"] > 0


def test_models_that_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("not a folder")
    with engine() as port:
        result = run({"name": "m", "port": port})
    assert (result["models"], result["held"]) == (None, None)
    assert [part["part"] for part in result["unread"]] == ["models"]


def test_a_node_that_should_have_no_model(run: Run) -> None:
    result = run(slots=0)
    assert result["engine"]["reason"] == "no model is meant for this node"
    assert (result["models"], result["unread"]) == ([], [])


def test_ollama_tells_neither_slots_nor_waiting(run: Run) -> None:
    answers = {"api/version": (200, '{"version":"0.33.3"}'), "api/ps": (200, '{"models":[]}')}
    with engine(**answers) as port:
        result = run({"name": "m"}, engine="ollama", port=port, slots=4)
    assert result["engine"] == {"kind": "ollama", "version": "0.33.3", "healthy": True, "reason": ""}
    assert (result["slots"], result["waiting"], result["unread"]) == ({"busy": None, "total": 4}, None, [])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(HANGS, "no answer within 0.5 s"), ((200, "{}"), "is no Ollama"), ((500, "x"), "HTTP 500: x")],
)
def test_ollama_that_does_not_answer(run: Run, answer: tuple[int, str], reason: str) -> None:
    with engine(**{"api/version": answer}) as port:
        result = run({"name": "m"}, engine="ollama", port=port, slots=4, timeout=0.5)
    assert (result["engine"]["version"], result["engine"]["healthy"]) == (None, False)
    assert reason in result["engine"]["reason"]


@pytest.mark.parametrize(
    ("command", "release"),
    [
        (
            "/opt/llama-cpp/releases/wheel-2026.10.11549/venv/bin/python\0/opt/llama-cpp/bin/llama-server\0",
            "2026.10.11549",
        ),
        ("/srv/x/releases/archive-b6123-cuda/bin/llama-server", "b6123-cuda"),
        ("/usr/bin/llama-server\0--port\08000", None),
    ],
)
def test_release_of_a_command(command: str, release: str | None) -> None:
    assert _llama_cpp.release_of(command) == release
