# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""SIMULATED engines for the balancer's tests.

They speak as much of llama.cpp's and Ollama's HTTP as the tests need, and fail on demand. They are not the real thing
and prove nothing about it; the end-to-end tests use real llama.cpp. What they give is exact service times, exact bytes,
and faults at a chosen moment. Plain sockets and threads, so that a test can break any byte.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO


@dataclass
class Seen:
    """A request that an engine got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    started: float
    outcome: str = "running"  # done | left (the other side closed) | cut (by the engine)
    ended: float = 0.0


@dataclass
class Engine:
    """One simulated engine on a port of its own.

    mode: ok | error500 | busy503 | busy429 | bad400 | not501 | die (closes before any byte) | die_in_head |
    die_in_body | garbage | silent | two_lengths | endless_head | endless_comments | break_stream (after two events) |
    end_stream (clean end without its marker) | stall_stream
    health: ok | loading (503) | silent
    """

    name: str
    kind: str = "llama_cpp"
    service_time: float = 0.0
    tokens: int = 5
    gap: float = 0.0
    mode: str = "ok"
    health: str = "ok"
    models: list[str] = field(default_factory=lambda: ["m"])
    keep_alive: bool = True
    drop_reused: bool = False  # closes a connection instead of answering a second request on it
    stubborn: bool = False  # goes on working for a client that left, as llama.cpp does but for a stream's tokens
    deaf: bool = False  # accepts connections and reads nothing, as a stopped process
    port: int = 0
    address: str = "127.0.0.1"
    retry_after: str | None = None
    version_time: float = 0.0  # seconds that it takes to say its version
    usage: dict[str, Any] | None = None  # what it reports about tokens
    peer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen: list[Seen] = []
        self.probes = 0
        self.versions = 0
        self.running = 0
        self.most = 0
        self.lock = threading.Lock()
        self.sockets: set[socket.socket] = set()
        self.listener: socket.socket | None = None
        self.start()

    # Life

    def start(self) -> None:
        listener = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, self.port))
        listener.listen(512)
        self.port = listener.getsockname()[1]
        self.listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop_listening(self) -> None:
        """New connections are refused; those that are there stay."""
        if self.listener:
            with contextlib.suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None

    def stop(self) -> None:
        """As kill -9 does it: nothing listens any more, every connection is reset."""
        self.stop_listening()
        with self.lock:
            sockets = list(self.sockets)
        for sock in sockets:
            self._reset(sock)

    @staticmethod
    def _reset(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            sock.close()

    def inference(self) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == "POST"]

    # Wire

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.sockets.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        if self.deaf:
            return
        reader = sock.makefile("rb")
        used = False
        try:
            while not (used and self.drop_reused and reader.peek(1)) and self._one(sock, reader):
                used = True
        except (OSError, ValueError):
            pass
        finally:
            with self.lock:
                self.sockets.discard(sock)
            with contextlib.suppress(OSError):
                reader.close()
                sock.close()

    def _one(self, sock: socket.socket, reader: BinaryIO) -> bool:
        line = reader.readline()
        if not line:
            return False
        method, path, _ = line.decode().split(" ", 2)
        headers: dict[str, str] = {}
        while (text := reader.readline().decode()).strip():
            name, _, value = text.partition(":")
            headers[name.strip().lower()] = value.strip()
        body = reader.read(int(headers.get("content-length", 0)))
        if method == "GET":
            return self._get(sock, path, headers)
        seen = Seen(method, path, headers, body, time.monotonic())
        with self.lock:
            self.seen.append(seen)
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            keep = self._post(sock, seen)
        except OSError:
            seen.outcome = "left"
            raise
        finally:
            self._over(seen)
        return keep and self.keep_alive

    def _over(self, seen: Seen) -> None:
        """The work is over; told before the last bytes go out, so that the next request is not counted beside it."""
        with self.lock:
            if not seen.ended:
                seen.ended = time.monotonic()
                self.running -= 1
        if seen.outcome == "running":
            seen.outcome = "done"

    def _get(self, sock: socket.socket, path: str, headers: dict[str, str]) -> bool:
        if path in ("/health", "/api/version"):
            self.probes += 1
            if path == "/api/version":
                self.versions += 1
                self._wait(sock, self.version_time)
            if self.health == "silent":
                self._wait(sock, 3600)
                return False
            status = 503 if self.health == "loading" else 200
            self._json(sock, {"status": "ok", "version": "0.33.0"}, status=status)
        elif path == "/slots" and self.kind == "llama_cpp":
            self._json(sock, [{"id": i, "is_processing": True} for i in range(self.running)])
        elif path == "/api/tags":
            models = [{"name": m, "model": m, "digest": f"d-{m}", "size": 1, "from": self.name} for m in self.models]
            self._json(sock, {"models": models})
        elif path == "/api/ps":
            self._json(sock, {"models": [{"name": m, "model": m} for m in self.models]})
        else:
            self._json(sock, {"error": "no"}, status=404)
        return headers.get("connection", "").lower() != "close"

    def _wait(self, sock: socket.socket, seconds: float) -> None:
        """Sleep, but notice when the other side closes."""
        end = time.monotonic() + seconds
        if self.stubborn:
            time.sleep(seconds)
            return
        while (left := end - time.monotonic()) > 0:
            sock.settimeout(min(left, 0.05))
            try:
                if sock.recv(1, socket.MSG_PEEK) == b"":
                    raise ConnectionError("left")
                time.sleep(min(left, 0.01))
            except TimeoutError:
                continue
            finally:
                sock.settimeout(None)

    def _json(
        self, sock: socket.socket, value: object, seen: Seen | None = None, status: int = 200, extra: str = ""
    ) -> None:
        if seen:
            self._over(seen)
        data = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{extra}\r\n"
        sock.sendall(head.encode() + data)

    def _post(self, sock: socket.socket, seen: Seen) -> bool:
        mode = self.mode
        self._wait(sock, self.service_time)
        if mode == "die":
            seen.outcome = "cut"
            self._reset(sock)
            return False
        if mode == "die_in_head":
            seen.outcome = "cut"
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Ty")
            self._reset(sock)
            return False
        if mode == "die_in_body":
            seen.outcome = "cut"
            sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a":')
            sock.shutdown(socket.SHUT_WR)
            return False
        if mode == "garbage":
            sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            return False
        if mode == "two_lengths":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc")
            return False
        if mode == "endless_head":
            with contextlib.suppress(OSError):
                sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"X-Long: " + b"a" * 200000)
                self._wait(sock, 5)
            return False
        if mode == "endless_comments":
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
            with contextlib.suppress(OSError):
                sock.sendall(head + b": still here\n\n" * 20000)
                self._wait(sock, 5)
            return False
        if mode == "silent":
            self._wait(sock, 3600)
            return False
        if mode == "error500":
            self._json(sock, {"error": {"message": f"boom {self.name}"}}, seen, status=500)
            return True
        if mode == "bad400":
            self._json(sock, {"error": {"message": "context too long"}}, seen, status=400)
            return True
        if mode == "not501":
            self._json(sock, {"error": {"message": "no embeddings"}}, seen, status=501)
            return True
        if mode in ("busy503", "busy429"):
            extra = f"Retry-After: {self.retry_after}\r\n" if self.retry_after else ""
            self._json(sock, {"error": {"message": "busy"}}, seen, status=int(mode[4:]), extra=extra)
            return True
        return self._answer(sock, seen)

    def events(self, path: str) -> list[bytes]:
        """The stream that this engine sends, event by event."""
        if path.startswith("/api/"):
            lines = [
                {"model": "m", "message": {"content": f't{i} "done":true'}, "done": False} for i in range(self.tokens)
            ]
            return [json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines] + [
                b'{"model":"m","done":true,"eval_count":5}\n'
            ]
        if path == "/v1/responses":
            deltas = [
                b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"t"}\n\n'
            ] * self.tokens
            return [*deltas, b'event: response.completed\ndata: {"type":"response.completed"}\n\n']
        if path == "/v1/messages":
            deltas = [b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n'] * self.tokens
            return [*deltas, b'event: message_stop\ndata: {"type":"message_stop"}\n\n']
        chunks = [
            b'data: {"choices":[{"delta":{"content":"t%d \xc3\xa9 [DONE]\\n\\ndata: [DONE]"}}],"from":"%s"}\n\n'
            % (i, self.name.encode())
            for i in range(self.tokens)
        ]
        report = [b"data: %s\n\n" % json.dumps({"choices": [], "usage": self.usage}).encode()] if self.usage else []
        return [*chunks, *report, b"data: [DONE]\n\n"]

    def _answer(self, sock: socket.socket, seen: Seen) -> bool:
        asked = json.loads(seen.body)
        default = seen.path in ("/api/chat", "/api/generate")
        if not asked.get("stream", default):
            self._json(
                sock,
                {
                    "object": "chat.completion",
                    "model": asked.get("model"),
                    "from": self.name,
                    "choices": [{"message": {"role": "assistant", "content": "hello"}}],
                    **({"usage": self.usage} if self.usage else {}),
                },
                seen,
            )
            return True
        kind = "application/x-ndjson" if seen.path.startswith("/api/") else "text/event-stream"
        sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for i, event in enumerate(self.events(seen.path)):
            if i == 2 and self.mode == "break_stream":
                seen.outcome = "cut"
                half = event[:5]
                sock.sendall(b"%x\r\n%s\r\n" % (len(half), half))
                time.sleep(0.02)
                self._reset(sock)
                return False
            if i == 2 and self.mode == "end_stream":
                break
            if i == 2 and self.mode == "stall_stream":
                self._wait(sock, 3600)
            # In two chunks, so that no chunk is an event.
            cut = len(event) // 2
            for part in (event[:cut], event[cut:]):
                sock.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            if self.gap:
                self._wait(sock, self.gap)
        self._over(seen)
        sock.sendall(b"0\r\n\r\n")
        return True
