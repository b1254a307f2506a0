# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that send what nobody should: clear 4xx, nobody else is harmed, no worker restarts."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from balancer.harness import check_log
from chaos.bed import Bed, Row, brief, peers, scaled, steady

MakeBed = Callable[..., Bed]
MakeRow = Callable[[str], Row]
PATH = "/v1/chat/completions"
GOOD = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'


def post(body: bytes, *headers: str, length: bool = True) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "Host: x", "Content-Type: application/json", "Connection: close", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


TE = "Transfer-Encoding: chunked"
# name → bytes on the wire, statuses that are right. None stands for: the connection is closed without an answer.
CASES: dict[str, tuple[bytes, set[int | None]]] = {
    "empty": (post(b""), {400}),
    "not JSON": (post(b"hello"), {400}),
    "cut off": (post(GOOD[:-5]), {400}),
    "two values": (post(GOOD + GOOD), {400}),
    "a list": (post(b"[" + GOOD + b"]"), {400}),
    "a number": (post(b"1"), {400}),
    "null": (post(b"null"), {400}),
    "NUL bytes": (post(b"\0" * 100), {400}),
    "3 MB of [": (post(b"[" * 3_000_000), {400}),
    "10 MB of [": (post(b"[" * 10_000_000), {413}),
    "3 MB of [ inside": (post(b'{"model":"m","messages":' + b"[" * 3_000_000), {400}),
    "3 MB of {": (post(b'{"a":' * 600_000), {400}),
    "unclosed string": (post(b'{"model":"m","messages":"' + b"a" * 1_000_000), {400}),
    "backslashes": (post(b'{"model":"' + b"\\" * 999_999), {400}),
    "bad UTF-8 in the model": (post(b'{"model":"\xff\xfe","messages":[]}'), {400, 404}),
    "bad UTF-8 in a key": (post(b'{"\xc3":1,"model":"m","messages":[]}'), {400}),
    "escaped key": (post(b'{"mod\\u0065l":"m","messages":[]}'), {400}),
    "same key twice": (post(b'{"model":"m","model":"other","messages":[]}'), {400}),
    "same key twice, other case": (post(b'{"model":"m","Model":"other","messages":[]}'), {400}),
    "stream twice": (post(b'{"model":"m","stream":false,"stream":true,"messages":[]}'), {400}),
    "model is a number": (post(b'{"model":7,"messages":[]}'), {400}),
    "model is a list": (post(b'{"model":["m"],"messages":[]}'), {400}),
    "model of 1 MB": (post(b'{"model":"' + b"m" * 1_000_000 + b'","messages":[]}'), {400, 404}),
    "control bytes in the model": (post(b'{"model":"m\\r\\nX: y","messages":[]}'), {400, 404}),
    "stream is a string": (post(b'{"model":"m","stream":"yes","messages":[]}'), {400}),
    "header of 80 kB": (post(GOOD, "X-Big: " + "a" * 80_000), {400, 431}),
    "5,000 headers": (post(GOOD, *[f"X-{i}: {'b' * 20}" for i in range(5000)]), {400, 431}),
    "line of 80 kB": (b"POST /" + b"a" * 80_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 414}),
    "two lengths": (post(GOOD, "Content-Length: 3"), {400}),
    "negative length": (post(GOOD, "Content-Length: -1", length=False), {400}),
    "length is no number": (post(GOOD, "Content-Length: 1e3", length=False), {400}),
    "length and chunks": (post(b"0\r\n\r\nGET /health HTTP/1.1\r\n\r\n", TE), {400}),
    "chunked twice": (post(chunked(GOOD), TE, TE, length=False), {400, 501}),
    "unknown coding": (post(chunked(GOOD), "Transfer-Encoding: xchunked", length=False), {400, 501}),
    "coding with a tab": (post(chunked(GOOD), "Transfer-Encoding:\tchunked, identity", length=False), {400, 501}),
    "space before the colon": (post(chunked(GOOD), "Transfer-Encoding : chunked", length=False), {400, 411}),
    "bad chunk size": (post(b"zz\r\n" + GOOD + b"\r\n0\r\n\r\n", TE, length=False), {400}),
    "huge chunk size": (post(b"ffffffffffffffff1\r\n" + GOOD, TE, length=False), {400, 413}),
    "bare LF": (b"POST " + PATH.encode() + b" HTTP/1.1\nHost: x\nContent-Length: 1\n\n[", {400}),
    "no host": (f"POST {PATH} HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode(), {400}),
    "two hosts": (post(GOOD, "Host: y"), {400}),
    "HTTP/9.9": (f"POST {PATH} HTTP/9.9\r\nHost: x\r\n\r\n".encode(), {400, 505}),
    "no method": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    "NUL in the path": (b"GET /v1/models%00/x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404}),
    "dots in the path": (b"GET /v1/../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404}),
    "encoded slash": (b"GET /v1%2f..%2fslots HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {400, 404}),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n", {400, 405}),
    "TRACE": (f"TRACE {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(), {400, 404, 405}),
    "routes that change a node": (
        b'POST /api/pull HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 13\r\n\r\n{"model":"m"}',
        {404},
    ),
    "slots": (b"POST /slots/0?action=erase HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", {404}),
}


def status_of(port: int, data: bytes) -> tuple[int | None, bytes]:
    """Send bytes, return the first answer's status and its body."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock:
        with contextlib.suppress(ConnectionError):  # it may answer and close before all is sent
            sock.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError, TimeoutError):
            while piece := sock.recv(65536):
                answer += piece
                head, end, body = answer.partition(b"\r\n\r\n")
                if end and b"content-length" in head.lower() and body:
                    break
    if not answer.startswith(b"HTTP/1.1 "):
        return None, answer
    return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]


@pytest.fixture(scope="module")
def attacked() -> Iterator[Bed]:
    here = Bed()
    here.fleet(*peers(2, 21, slots=8))
    here.route(limits={"max_body_bytes": 4 << 20, "first_byte_timeout": 5})
    yield here
    here.destroy()


def test_hostile_input(attacked: Bed, row: MakeRow) -> None:
    """Each is answered 4xx in our words; meanwhile others are served, and the workers stay who they are."""
    line = row("hostile input")
    workers = attacked.balancer.worker_pids()
    wrong = []
    asks = steady(100, scaled(6000, 400), 0.02, 21)
    with attacked.load(asks) as load:
        for name, (data, right) in CASES.items():
            began = time.monotonic()
            status, body = status_of(attacked.balancer.port, data)
            took = time.monotonic() - began
            words = ""
            with contextlib.suppress(ValueError, KeyError, TypeError):
                error = json.loads(body)["error"]
                words = error if isinstance(error, str) else error["message"]
            if status not in right or took > 2 or not words:
                wrong.append(f"{name}: {status} after {took:.2f} s: {body[:200]!r}")
    bad = [r for r in load.results if not r.ok]
    line.count(load.results, bad)
    line.say(f"{len(CASES)} attacks, {len(wrong)} wrong answers")
    assert wrong == [], "\n".join(wrong)
    assert bad == [], brief(bad)
    assert attacked.balancer.worker_pids() == workers
    smuggled = [entry for report in attacked.report().values() for entry in report["log"]]
    assert len(smuggled) == len(load.results), "engines got the good requests and nothing else"
    check_log(attacked.errors())
    attacked.settled()


def test_slowloris(bed: MakeBed, row: MakeRow) -> None:
    """Hundreds of clients that send a byte now and then: cut at the header time-out, nobody else waits for them."""
    line, here = row("slowloris"), bed()
    here.fleet(*peers(2, 22, slots=8))
    here.balancer.render(balancer_header_timeout=3, balancer_body_timeout=3)
    here.balancer.restart()
    here.route()
    workers = here.balancer.worker_pids()
    count = scaled(1500, 300)
    headers = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: "
    bodies = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
    socks = []
    try:
        with here.load(steady(100, 600, 0.02, 22)) as load:
            for i in range(count):
                sock = socket.create_connection(("127.0.0.1", here.balancer.port), 5)
                sock.sendall(headers if i % 2 else bodies)
                socks.append(sock)
            # Bodies get no byte more: theirs is the time between two pieces. Headers trickle: theirs is for the whole.
            end = time.monotonic() + 5
            while time.monotonic() < end:
                for sock in socks[1::2]:
                    with contextlib.suppress(OSError):
                        sock.send(b"a")
                time.sleep(0.5)
        still = 0
        for sock in socks:
            sock.settimeout(0.05)
            try:
                while sock.recv(4096):
                    pass
            except TimeoutError:
                still += 1
            except OSError:
                pass
    finally:
        for sock in socks:
            sock.close()
    bad = [r for r in load.results if not r.ok]
    line.count(load.results, bad)
    line.say(f"{count} slow clients, {still} still connected after the time-out")
    assert bad == [], brief(bad)
    assert still == 0
    assert here.balancer.worker_pids() == workers
    here.settled()
