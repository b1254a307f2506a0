# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real nginx with the shipped template and the shipped Lua, as a plain process in a temporary folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.client
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from balancer.engines import Engine

ROOT = pathlib.Path(__file__).resolve().parents[2]
LUA = ROOT / "roles/balancer/files/lua"
TEMPLATE = ROOT / "roles/balancer/templates/nginx.conf.j2"
KEY = "sk-test-1234567890"
FAST = {
    "connect_timeout": 0.5,
    "first_byte_timeout": 5,
    "stream_idle_timeout": 1,
    "queue_timeout": 3,
    "retry_budget": 1,  # the workers are shared by all tests
    "probe_interval": 0.3,
    "probe_timeout": 0.3,
    "max_body_bytes": 2 << 20,
    "max_answer_bytes": 4 << 20,
}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def nginx_version() -> tuple[int, ...]:
    # nginx version: nginx/1.22.1 (Debian)
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return tuple(int(part) for part in said.split("/")[1].split()[0].split("."))


def wait_for(condition: Callable[[], Any], seconds: float = 5, what: str = "condition") -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self.unix_path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.unix_path)


class Balancer:
    """nginx with our configuration."""

    def __init__(self, workers: int = 2, tls: tuple[str, str] | None = None) -> None:
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="llm-balancer-", dir="/tmp"))
        self.dir.chmod(0o755)
        self.port = free_port()
        self.tls = tls
        self.variables: dict[str, Any] = {
            "balancer_user": "www-data",
            "balancer_workers": workers,
            "balancer_worker_connections": 4096,
            "balancer_rlimit_nofile": 8192,
            "balancer_shutdown_timeout": 20,
            "balancer_modules_dir": os.environ.get("LLM_TEST_NGINX_MODULES", "/etc/nginx/modules-enabled"),
            "balancer_extra_conf_dir": self.dir / "conf.d",
            "balancer_pid_file": self.dir / "nginx.pid",
            "balancer_error_log": self.dir / "error.log",
            "balancer_log_level": "info",
            "balancer_access_log": self.dir / "access.log",
            "balancer_temp_dir": self.dir / "tmp",
            "balancer_lua_dir": LUA,
            "balancer_state_dir": self.dir / "state",
            "balancer_state_dict_mb": 16,
            "balancer_slots_dict_mb": 8,
            "balancer_prefix_dict_mb": 8,
            "balancer_metrics_dict_mb": 8,
            "balancer_status_allow": ["127.0.0.1"],
            "balancer_admin_socket": self.dir / "admin.sock",
            "balancer_addresses": ["127.0.0.1"],
            "balancer_port": self.port,
            "balancer_backlog": 4096,
            "balancer_tls": "files" if tls else "",
            "balancer_tls_certificate": tls and tls[0],
            "balancer_tls_certificate_key": tls and tls[1],
            "balancer_http2": True,
            "balancer_http2_apart": nginx_version() >= (1, 25, 1),
            "balancer_max_body_bytes": 4 << 20,
            "balancer_header_timeout": 15,
            "balancer_body_timeout": 30,
            "balancer_send_timeout": 60,
            "balancer_keepalive_timeout": 75,
            "balancer_peer_header": True,
        }
        for name in ("conf.d", "tmp", "state"):
            (self.dir / name).mkdir()
        if os.geteuid() == 0:
            user = pwd.getpwnam("www-data")
            os.chown(self.dir / "state", user.pw_uid, user.pw_gid)
        self.process: subprocess.Popen | None = None
        self.render()
        self.start()

    def render(self, **changes: Any) -> None:
        self.variables.update(changes)
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
        text = environment.from_string(TEMPLATE.read_text()).render(ansible_managed="test", **self.variables)
        (self.dir / "nginx.conf").write_text(text)

    def start(self) -> None:
        # nginx takes the hang-up of a terminal for a reload: that it ends with us must be asked for.
        command = ["setpriv", "--pdeathsig", "TERM", "nginx", "-c", str(self.dir / "nginx.conf"), "-g", "daemon off;"]
        with (self.dir / "stderr.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_for(self.answers, 5, "nginx listens")
        except AssertionError:
            raise AssertionError((self.dir / "stderr.log").read_text() + self.errors()) from None

    def answers(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), 0.2),
            socket.socket(socket.AF_UNIX) as admin,
        ):
            admin.connect(str(self.variables["balancer_admin_socket"]))
            return True
        return False

    def signal(self, number: int) -> None:
        assert self.process
        self.process.send_signal(number)

    def reload(self) -> None:
        before = set(self.worker_pids())
        self.signal(signal.SIGHUP)
        wait_for(lambda: set(self.worker_pids()) - before, 5, "new workers")

    def worker_pids(self) -> list[int]:
        assert self.process
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def restart(self) -> None:
        self.stop()
        self.start()

    def destroy(self) -> None:
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)

    def errors(self) -> str:
        return (self.dir / "error.log").read_text() if (self.dir / "error.log").exists() else ""

    def log(self) -> list[dict[str, Any]]:
        time.sleep(0.6)  # nginx writes it in batches
        return [json.loads(line) for line in (self.dir / "access.log").read_text().splitlines()]

    def logged(self, request_id: str) -> Any:
        return wait_for(lambda: next((line for line in self.log() if line["id"] == request_id), None), 3, "log line")

    # Admin

    def admin(self, method: str, path: str, value: object = None) -> Answer:
        connection = UnixConnection(str(self.variables["balancer_admin_socket"]))
        body = value if isinstance(value, (bytes, str)) or value is None else json.dumps(value)
        connection.request(method, path, body)
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.headers), response.read())
        connection.close()
        return answer

    def state(self) -> Any:
        return self.admin("GET", "/state").json

    def peer(self, name: str) -> Any:
        return next(peer for peer in self.state()["peers"] if peer["name"] == name)

    def busy(self) -> int:
        return sum(peer["busy"] for peer in self.state()["peers"])

    def put(self, table: dict[str, Any], ready: bool = True) -> Answer:
        answer = self.admin("PUT", "/routing", table)
        if answer.status == 200 and ready:
            self.wait_up([peer["name"] for peer in table["peers"]])
        return answer

    def probe(self, file: pathlib.Path) -> Any:
        """Run this Lua file in a worker; the JSON that it says."""
        port = free_port()
        shutil.copy(file, self.dir)  # where nginx's user may read it
        location = f"location / {{ content_by_lua_file {self.dir}/{file.name}; }}"
        (self.dir / "conf.d" / "probe.conf").write_text(f"server {{ listen 127.0.0.1:{port}; {location} }}\n")
        self.reload()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/")
        return json.loads(connection.getresponse().read())

    def wait_up(self, names: Iterable[str]) -> None:
        def up() -> bool:
            return all(peer["health"] == "up" for peer in self.state()["peers"] if peer["name"] in names)

        wait_for(up, 5, f"peers are up: {names}")

    # Clients

    def connection(self, timeout: float = 20) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(  # noqa: PLR0917 a request has that many parts
        self,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        body: object = None,
        headers: dict[str, str] | None = None,
        key: str | None = KEY,
        timeout: float = 20,
    ) -> Answer:
        connection = self.connection(timeout)
        sent = {"Content-Type": "application/json"}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        sent.update(headers or {})
        data = body if isinstance(body, (bytes, str)) or body is None else json.dumps(body)
        try:
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, response.read())
        finally:
            connection.close()

    @contextlib.contextmanager
    def stream(self, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
        """An answer that is read as it comes."""
        connection = self.connection()
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)
        try:
            yield connection.getresponse()
        finally:
            connection.close()

    def chat(self, stream: bool | None = None, model: str = "m", **kwargs: Any) -> Answer:
        body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        if stream is not None:
            body["stream"] = stream
        return self.ask(body=body, **kwargs)


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def table(*engines: Engine, limits: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A routing table over these engines; an engine's `peer` changes its entry."""
    peers = []
    for engine in engines:
        entry = {
            "name": engine.name,
            "node": engine.name,
            "engine": engine.kind,
            "address": engine.address,
            "port": engine.port,
            "models": engine.models,
            "slots": 4,
            "weight": 1.0,
            "backup": False,
            "labels": {},
        }
        entry.update(engine.peer)
        peers.append(entry)
    return {
        "schema": 1,
        "default_model": "m",
        "require_key": True,
        "peers": peers,
        "keys": [{"name": "tester", "sha256": hashed(KEY)}],
        "limits": {**FAST, **(limits or {})},
        **fields,
    }


def check_log(text: str) -> None:
    for word in ("stack traceback", "lua entry thread aborted", "[alert]", "[crit]", "[emerg]", "exited on signal 11"):
        assert word not in text, text[-4000:]


MakeBalancer = Callable[..., Balancer]
MakeEngine = Callable[..., Engine]
