# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The launcher of role llama_cpp reads llama-server's flags and variables; the helper waits for requests in hand."""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from unit.loading import load_file

FILES = Path(__file__).parents[3] / "roles" / "llama_cpp" / "files"


launcher = load_file(FILES / "llama_server.py")
helper = load_file(FILES / "llama_wait_idle.py")


class Strict:
    """Parameters that refuse names they don't have, as the library's extension types do."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def __setattr__(self, name, value):
        if name not in self.__dict__:
            raise AttributeError(name)
        self.__dict__[name] = value


def parameters():
    """Every target of the launcher, with None in it."""
    params = Strict()
    for option in launcher.OPTIONS:
        for target in option.target.split():
            *path, name = target.split(".")
            owner = params
            for step in path:
                owner = owner.__dict__.setdefault(step, Strict())
            owner.__dict__[name] = None
    return params


LIBRARY = SimpleNamespace(
    ggml_type=SimpleNamespace(GGML_TYPE_Q8_0=8),
    llama_flash_attn_type=SimpleNamespace(LLAMA_FLASH_ATTN_TYPE_ENABLED=1, LLAMA_FLASH_ATTN_TYPE_AUTO=-1),
    llama_load_mode=SimpleNamespace(LLAMA_LOAD_MODE_MMAP_MLOCK=3),
)


def set_by(argv=(), environ=None):
    params = parameters()
    launcher.apply(params, launcher.chosen(launcher.parser().parse_args(argv), environ or {}), LIBRARY)
    return params


@pytest.mark.parametrize(
    ("argv", "environ", "target", "value"),
    [
        (["--port", "8001"], {}, "port", 8001),
        ([], {"LLAMA_ARG_PORT": "8001"}, "port", 8001),
        (["--port", "8001"], {"LLAMA_ARG_PORT": "9"}, "port", 8001),
        (["-c", "4096"], {}, "n_ctx", 4096),
        ([], {"LLAMA_ARG_CTX_SIZE": "8192"}, "n_ctx", 8192),
        (["-np", "4"], {}, "n_parallel", 4),
        (["--host", "10.0.0.1"], {}, "hostnames", ["10.0.0.1"]),
        ([], {"LLAMA_ARG_HOST": "10.0.0.1,::1"}, "hostnames", ["10.0.0.1", "::1"]),
        (["-a", "gemma3:270m"], {}, "model_alias", {"gemma3:270m"}),
        (["-m", "/m.gguf"], {}, "model.path", "/m.gguf"),
        (["--threads", "3"], {}, "cpuparams.n_threads", 3),
        (["--metrics"], {}, "endpoint_metrics", True),
        ([], {"LLAMA_ARG_ENDPOINT_METRICS": "1"}, "endpoint_metrics", True),
        ([], {"LLAMA_ARG_ENDPOINT_METRICS": "false"}, "endpoint_metrics", False),
        (["--no-slots"], {"LLAMA_ARG_ENDPOINT_SLOTS": "1"}, "endpoint_slots", False),
        (["--no-webui"], {}, "ui", False),
        ([], {"LLAMA_ARG_WEBUI": "0"}, "ui", False),
        ([], {"LLAMA_ARG_UI": "1", "LLAMA_ARG_WEBUI": "0"}, "ui", True),
        (["-fa", "on"], {}, "flash_attn_type", 1),
        ([], {"LLAMA_ARG_FLASH_ATTN": "auto"}, "flash_attn_type", -1),
        ([], {"LLAMA_ARG_CACHE_TYPE_K": "q8_0"}, "cache_type_k", 8),
        (["-lm", "mmap+mlock"], {}, "load_mode", 3),
        (["--temp", "0.5"], {}, "sampling.temp", 0.5),
        (["--timeout", "9"], {}, "timeout_write", 9),
        (["--timeout", "9"], {}, "timeout_read", 9),
        ([], {}, "port", None),
    ],
)
def test_setting(argv, environ, target, value):
    owner = set_by(argv, environ)
    for step in target.split("."):
        owner = getattr(owner, step)
    assert owner == value


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"LLAMA_ARG_PORT": "http"}, "LLAMA_ARG_PORT"),
        ({"LLAMA_ARG_ENDPOINT_METRICS": "maybe"}, "neither on nor off"),
        ({"LLAMA_ARG_CACHE_TYPE_V": "q3_z"}, "not known to this version"),
        ({"LLAMA_ARG_CHAT_TEMPLATE_FILE": "/nowhere"}, "LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    ],
)
def test_wrong_value_is_named(environ, message):
    with pytest.raises(ValueError, match=message):
        set_by([], environ)


def test_parameter_that_the_engine_lacks_is_named():
    args = launcher.parser().parse_args(["--port", "1"])
    with pytest.raises(ValueError, match="--port is not known"):
        launcher.apply(Strict(), launcher.chosen(args, {}), LIBRARY)


def test_engine_before_october_2026_takes_one_address():
    params = Strict(hostname="")
    launcher.apply(params, launcher.chosen(launcher.parser().parse_args(["--host", "10.0.0.1"]), {}), LIBRARY)
    assert vars(params)["hostname"] == "10.0.0.1"


def test_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        launcher.parser().parse_args(["--no-such-flag"])
    assert stop.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_unknown_variables_are_named():
    environ = {"LLAMA_ARG_PORT": "1", "LLAMA_ARG_WEBUI": "0", "LLAMA_ARG_RPC": "x", "HOME": "/"}
    assert launcher.unknown_variables(environ) == ["LLAMA_ARG_RPC"]


def test_no_flag_or_variable_is_given_twice():
    flags = [flag for option in launcher.OPTIONS for flag in option.flags + option.negative]
    variables = [option.env for option in launcher.OPTIONS if option.env]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))


def test_help_needs_no_engine():
    out = subprocess.run(
        [sys.executable, str(FILES / "llama_server.py"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "LLAMA_ARG_CTX_SIZE" in out


def test_role_writes_only_variables_that_the_launcher_knows():
    template = (FILES.parent / "templates" / "instance.env.j2").read_text()
    written = set(re.findall("'(LLAMA_ARG_[A-Z_]+)'", template))
    assert written
    assert launcher.unknown_variables(written) == []


class Engine(http.server.ThreadingHTTPServer):
    """A simulated engine that is busy until `idle_at`."""

    idle_at = 0.0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/slots"


class Slots(http.server.BaseHTTPRequestHandler):
    """Simulated /slots."""

    def do_GET(self):
        assert isinstance(self.server, Engine)
        body = json.dumps([{"id": 0, "is_processing": time.monotonic() < self.server.idle_at}]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def engine():
    server = Engine(("127.0.0.1", 0), Slots)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_idle_engine_is_not_waited_for(engine):
    assert helper.wait(engine.url, 0) is True


def test_busy_engine_is_waited_for(engine):
    engine.idle_at = time.monotonic() + 0.6
    assert helper.wait(engine.url, 10) is True
    assert time.monotonic() >= engine.idle_at


def test_wait_ends_when_the_time_is_up(engine):
    engine.idle_at = time.monotonic() + 60
    assert helper.wait(engine.url, 0.3) is False


def test_engine_that_is_gone_is_not_waited_for():
    assert helper.wait("http://127.0.0.1:9/slots", 60) is True


@pytest.mark.parametrize(
    ("slots", "busy"),
    [([], False), ([{"is_processing": False}], False), ([{}, {"is_processing": True}], True), ({"error": {}}, False)],
)
def test_is_busy(slots, busy):
    assert helper.is_busy(slots) is busy
