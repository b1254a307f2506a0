# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A file server in memory that can be told to misbehave: what the simulated registry and release server share.

Faults are set from Python (server.fault(...)) or over HTTP, so that a playbook can set them too:

    POST /_faults   {"path": "/v0.33.3/ollama-linux-amd64.tar.zst", "cut_after": 1000, "times": 1}
    DELETE /_faults
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from dataclasses import dataclass, field, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Document:
    content: bytes
    content_type: str = "application/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What goes wrong with a path (a regular expression), and how often (-1: always)."""

    path: str
    times: int = -1
    status: int = 0  # answer with this status
    cut_after: int = -1  # close the connection after so many bytes of the body
    wrong_bytes: bool = False  # the right length, but other content
    without_headers: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Fault:
        unknown = set(value) - {item.name for item in fields(cls)}
        if unknown or "path" not in value:
            raise ValueError(f"a fault has a path and any of {[item.name for item in fields(cls)]}, not {unknown}")
        return cls(**value)


class FaultyServer(ThreadingHTTPServer):
    """Serves self.documents (path → Document), with Range requests, and remembers what was asked."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.documents: dict[str, Document] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range header
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        super().__init__(address, Handler)

    @property
    def netloc(self) -> str:
        return f"{self.server_address[0]!s}:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.netloc}"

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def fault(self, path: str, **what: Any) -> None:
        with self.lock:
            self.faults.append(Fault.from_json({"path": path, **what}))

    def clear_faults(self) -> None:
        with self.lock:
            self.faults.clear()

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times != 0 and re.fullmatch(fault.path, path):
                    fault.times -= 1 if fault.times > 0 else 0
                    return fault
            return None

    def outage(self, path: str) -> Fault | None:
        """What a HEAD request sees: a lasting fault with a status. It uses no fault up."""
        with self.lock:
            faults = [fault for fault in self.faults if fault.status and re.fullmatch(fault.path, path)]
            return next((fault for fault in faults if fault.times < 0), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        asked_range = self.headers.get("Range", "")
        self.server.requests.append((self.command, path, asked_range))
        fault = self.server.outage(path) if self.command == "HEAD" else self.server.take_fault(path)
        document = self.server.documents.get(path)
        if fault and fault.status:
            self._answer(fault.status, b'{"error":"scripted fault"}\n')
            return
        if document is None:
            self._answer(404, b'{"error":"not found"}\n')
            return
        body = document.content
        if fault and fault.wrong_bytes:
            body = bytes(byte ^ 0x55 for byte in body)
        headers = {"Content-Type": document.content_type, "Accept-Ranges": "bytes", **document.headers}
        for name in fault.without_headers if fault else []:
            headers.pop(name, None)
        status = 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked_range)
        if match:
            first, last = int(match[1]), int(match[2] or len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            status, body = 206, body[first : last + 1]
        if fault and 0 <= fault.cut_after < len(body):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: fault.cut_after])
            self.wfile.flush()
            self.close_connection = True
            return
        self._answer(status, body, headers)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if self.path != "/_faults":
                raise ValueError("only POST /_faults")
            value = json.loads(body)
            self.server.fault(value.pop("path"), **value)
        except (ValueError, KeyError, TypeError) as error:
            self._answer(400, f"{error}\n".encode())
            return
        self._answer(204)

    def do_DELETE(self) -> None:
        self.server.clear_faults()
        self._answer(204)
