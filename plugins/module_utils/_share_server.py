# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves a node's model files to the other nodes while a distribution runs. Module model_share starts it on the node.

A program of its own, with nothing but the standard library. It answers GET and HEAD of ``/blobs/sha256-HEX`` to known
addresses that show the token, with Range, one request per connection. A file that the node is fetching itself is sent
as it grows; one that isn't there yet is waited for as long as ``Prefer: wait=SECONDS`` asks. What it reads are
whatever bytes lie there: whoever fetches them checks the digest.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import ipaddress
import os
import re
import select
import socket
import socketserver
import stat
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

BLOCK = 128 * 1024
# How often a growing file is looked at, in seconds.
POLL = 0.02
LONGEST_WAIT = 30.0
LONGEST_HEAD = 8192
HEAD_SECONDS = 10.0
# A successor that takes nothing for so long, or a growing file that doesn't grow, ends the connection.
SEND_SECONDS = 60.0
STILL_SECONDS = 900.0
# Nobody asks any more: the run that started it is gone, without having ended it.
IDLE_SECONDS = 900.0
CONNECTIONS = 128

TARGET = re.compile(r"/blobs/sha256-([0-9a-f]{64})")
RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})?")
WAIT = re.compile(r"\bwait=(\d{1,6})")
REASONS = {
    200: "OK",
    206: "Partial Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    416: "Range Not Satisfiable",
    503: "Service Unavailable",
}


class Bucket:
    """Bounds how many bytes pass in a second; 0 for no bound. Several threads may share one."""

    # Seconds' worth that may pass at once after a pause.
    BURST = 0.1

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        if not self.rate or not count:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - self.BURST) + count / self.rate
            pause = self._free_at - now
        if pause > 0:
            time.sleep(pause)


class RefusedError(Exception):
    """A request is answered with an error status."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or {}


class NobodyAsksError(Exception):
    """Whoever started the server is gone."""


@dataclass(frozen=True)
class Request:
    """What a request asks for; ``last`` is the last byte, None for the file's."""

    method: str
    digest: str
    first: int = 0
    last: int | None = None
    ranged: bool = False
    wait: float | None = None


def parse_head(head: bytes, token: bytes) -> Request:
    """Read a request's head; raise RefusedError for what isn't answered."""
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise RefusedError(400)
    headers = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise RefusedError(400)
        headers[name.strip().lower()] = value.strip()
    shown = headers.get("authorization", "").encode("latin-1")
    if not hmac.compare_digest(shown, b"Bearer " + token):
        raise RefusedError(401)
    if words[0] not in ("GET", "HEAD"):
        raise RefusedError(405, {"Allow": "GET, HEAD"})
    target = TARGET.fullmatch(words[1])
    if not target:
        raise RefusedError(404)
    asked = RANGE.fullmatch(headers.get("range", ""))
    patience = WAIT.search(headers.get("prefer", ""))
    return Request(
        method=words[0],
        digest=target.group(1),
        first=int(asked.group(1)) if asked else 0,
        last=int(asked.group(2)) if asked and asked.group(2) else None,
        ranged=bool(asked),
        wait=min(float(patience.group(1)), LONGEST_WAIT) if patience else None,
    )


def plain_address(text: str) -> str:
    """Return an IP address in its shortest form, IPv4 also where IPv6 wraps it."""
    address = ipaddress.ip_address(text.partition("%")[0])
    return str(getattr(address, "ipv4_mapped", None) or address)


@dataclass
class Blob:
    """An open file, and the size that it has when it is whole."""

    handle: int
    size: int

    @property
    def thrown_away(self) -> bool:
        """Whether nobody will write to it any more because it was deleted."""
        return os.fstat(self.handle).st_nlink == 0

    def close(self) -> None:
        """Close the file."""
        os.close(self.handle)


class Files:
    """The files that a node has and that it is fetching."""

    def __init__(self, models_dir: str, partial_dir: str) -> None:
        self.models_dir = models_dir
        self.partial_dir = partial_dir

    def open(self, digest: str) -> Blob | None:
        """Open a file, or return None where it isn't there or its whole size isn't known yet."""
        name = "sha256-" + digest
        for path in (
            os.path.join(self.models_dir, name + ".gguf"),
            os.path.join(self.models_dir, "blobs", name),
            os.path.join(self.partial_dir, "manifests", name),
        ):
            handle = _open(path)
            if handle is not None:
                return Blob(handle, os.fstat(handle).st_size)
        for path in (
            os.path.join(self.partial_dir, name + ".gguf.part"),
            os.path.join(self.partial_dir, name + ".part"),
        ):
            handle = _open(path)
            if handle is not None:
                size = _noted_size(path)
                if size is not None:
                    return Blob(handle, size)
                os.close(handle)
        return None

    def wait_for(self, digest: str, wait: float) -> Blob | None:
        """Open a file, if need be when it comes."""
        deadline = time.monotonic() + wait
        while True:
            blob = self.open(digest)
            if blob or time.monotonic() >= deadline:
                return blob
            time.sleep(POLL)


def _open(path: str) -> int | None:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    return None


def _noted_size(path: str) -> int | None:
    try:
        with open(path + ".size", encoding="ascii") as stream:
            return int(stream.read(24))
    except (OSError, ValueError):
        return None


class Handler(socketserver.BaseRequestHandler):
    """One connection: one request."""

    server: Share

    def handle(self) -> None:
        """Answer the request."""
        said = "no request"
        try:
            self.request.settimeout(HEAD_SECONDS)
            request = parse_head(self._read_head(), self.server.token)
            said = f"{request.method} sha256-{request.digest} from byte {request.first}"
            self.request.settimeout(SEND_SECONDS)
            said += f": {self._answer(request)} bytes sent"
        except RefusedError as refused:
            said += f": {refused.status}"
            with contextlib.suppress(OSError):
                self._send_head(refused.status, {"Content-Length": "0", **refused.headers})
        except OSError as error:
            said += f": broken off ({error})"
        self.server.say(f"{self.client_address[0]}: {said}")

    def _read_head(self) -> bytes:
        deadline = time.monotonic() + HEAD_SECONDS
        data = b""
        while b"\r\n\r\n" not in data:
            block = self.request.recv(4096)
            data += block
            if not block or len(data) > LONGEST_HEAD or time.monotonic() > deadline:
                raise RefusedError(400)
        return data.partition(b"\r\n\r\n")[0]

    def _answer(self, request: Request) -> int:
        """Send the file; return how many of its bytes went out."""
        blob = self.server.files.wait_for(request.digest, request.wait or 0)
        if blob is None:
            raise RefusedError(404) if request.wait is None else RefusedError(503, {"Retry-After": "1"})
        try:
            end = blob.size if request.last is None else min(request.last + 1, blob.size)
            if request.ranged and request.first >= end:
                raise RefusedError(416, {"Content-Range": f"bytes */{blob.size}"})
            headers = {"Content-Length": str(end - request.first), "Content-Type": "application/octet-stream"}
            if request.ranged:
                headers["Content-Range"] = f"bytes {request.first}-{end - 1}/{blob.size}"
            self._send_head(206 if request.ranged else 200, {**headers, "Accept-Ranges": "bytes"})
            if request.method == "HEAD":
                return 0
            return self._send_bytes(request, blob, end) - request.first
        finally:
            blob.close()

    def _send_bytes(self, request: Request, blob: Blob, end: int) -> int:
        """Send the bytes up to the end as they come; return how far that got."""
        at, moved_at = request.first, time.monotonic()
        while at < end:
            data = os.pread(blob.handle, min(self.server.block, end - at), at)
            if data:
                self.server.bucket.take(len(data))
                self.request.sendall(data)
                at, moved_at = at + len(data), time.monotonic()
                continue
            if self._is_gone() or time.monotonic() - moved_at > STILL_SECONDS:
                break
            if blob.thrown_away:
                # The node began anew, in another file.
                again = self.server.files.open(request.digest)
                if again:
                    os.dup2(again.handle, blob.handle, inheritable=False)
                    again.close()
            time.sleep(POLL)
        return at

    def _is_gone(self) -> bool:
        """Whether the client has left."""
        if not select.select([self.request], [], [], 0)[0]:
            return False
        return not self.request.recv(1, socket.MSG_PEEK)

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} {REASONS[status]}", *(f"{name}: {value}" for name, value in headers.items())]
        self.request.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))


class Share(socketserver.ThreadingTCPServer):
    """The server: who may ask, for what, and how fast it answers."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTIONS

    def __init__(self, where: tuple[str, int], token: bytes, files: Files, allowed: list[str], max_rate: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        self.token = token
        self.files = files
        self.allowed = {plain_address(address) for address in allowed}
        self.bucket = Bucket(max_rate)
        # Small pieces where little may pass, so that it passes evenly.
        self.block = min(BLOCK, max(max_rate // 20, 4096)) if max_rate else BLOCK
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        self._busy = 0
        self._asked_at = time.monotonic()
        self._lock = threading.Lock()
        super().__init__(where, Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the connection is served at all."""
        return plain_address(client_address[0]) in self.allowed and self._room.acquire(blocking=False)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        with self._lock:
            self._busy += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()
            with self._lock:
                self._busy -= 1
                self._asked_at = time.monotonic()

    def service_actions(self) -> None:
        """End when nobody has asked for long. serve_forever calls it between requests."""
        with self._lock:
            if not self._busy and time.monotonic() - self._asked_at > IDLE_SECONDS:
                raise NobodyAsksError(f"nobody asked for {IDLE_SECONDS:.0f} s")

    def say(self, text: str) -> None:
        """Write a line to the journal."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="Serve model files to the nodes of a cluster.")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models-dir", required=True)
    parser.add_argument("--partial-dir", required=True)
    parser.add_argument("--allowed", required=True, help="addresses, separated by commas")
    parser.add_argument("--max-rate", type=int, default=0, help="bytes per second over all connections")
    parser.add_argument("--token-file", required=True)
    options = parser.parse_args()
    with open(options.token_file, "rb") as stream:
        token = stream.read().strip()
    if len(token) < 16:
        parser.error("the token has fewer than 16 characters")
    files = Files(options.models_dir, options.partial_dir)
    where = (options.address, options.port)
    with Share(where, token, files, options.allowed.split(","), options.max_rate) as share:
        try:
            share.serve_forever()
        except NobodyAsksError as reason:
            share.say(str(reason))


if __name__ == "__main__":
    main()
