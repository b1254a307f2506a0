# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients that leave: while they wait, before the first byte, in a stream; each in the way its kind does.

All cases run at once, each with a peer and a model of its own.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest
from balancer.harness import wait_for
from chaos.bed import Bed, Row, held, peers
from load.client import Ask, chat

MakeBed = Callable[..., Bed]
MakeRow = Callable[[str], Row]
MOMENTS = ["waiting", "before the first byte", "streaming"]
LIMIT = 1.0  # seconds in which the balancer notices
SLACK = 0.3


LOG = """
log_format ends escape=json '{{"id":"$llm_id","at":$msec,"status":$status}}';
access_log {path} ends;
"""


class Tail:
    """When each request ended, by its id: from a log of our own, since the access log is written with a delay."""

    def __init__(self, bed: Bed) -> None:
        self.path = bed.balancer.dir / "ends.log"
        (bed.balancer.dir / "conf.d" / "ends.conf").write_text(LOG.format(path=self.path))
        bed.balancer.restart()
        self.seen: dict[str, tuple[float, int]] = {}
        self.ended = threading.Event()
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        with self.path.open() as log:
            while not self.ended.wait(0.02):
                for text in log:
                    line = json.loads(text)
                    at = time.monotonic() - time.time() + line["at"]
                    self.seen.setdefault(line["id"], (at, line["status"]))


class Plain:
    """A socket that is closed."""

    tls = False

    def __init__(self, bed: Bed, name: str, body: dict[str, Any]) -> None:
        self.sock = self.connect(bed)
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {name}\r\n"
        self.sock.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    def connect(self, bed: Bed) -> socket.socket:
        return socket.create_connection(("127.0.0.1", bed.balancer.port), 5)

    def leave(self) -> float:
        at = time.monotonic()
        self.sock.close()
        return at


class Tls(Plain):
    """A TLS client that says goodbye (close_notify) first, as most do."""

    tls = True

    def connect(self, bed: Bed) -> socket.socket:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(super().connect(bed))

    def leave(self) -> float:
        at = time.monotonic()
        assert isinstance(self.sock, ssl.SSLSocket)
        self.sock.settimeout(0.1)
        with contextlib.suppress(OSError, ValueError):
            self.sock.unwrap()
        self.sock.close()
        return at


class Curl:
    """curl, stopped with Ctrl-C."""

    tls = False
    options: tuple[str, ...] = ()

    def __init__(self, bed: Bed, name: str, body: dict[str, Any]) -> None:
        url = f"{'https' if self.tls else 'http'}://127.0.0.1:{bed.balancer.port}/v1/chat/completions"
        command = ["curl", "--silent", "--no-buffer", "--insecure", *self.options, "-H", f"X-Request-Id: {name}"]
        command += ["-H", "Content-Type: application/json", "--data", json.dumps(body), url]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def leave(self) -> float:
        at = time.monotonic()
        self.process.terminate()
        self.process.wait()
        return at


class Http2(Curl):
    """curl over HTTP/2."""

    tls = True
    options = ("--http2",)


class OpenAI:
    """The real openai client: it leaves when its time-out passes, or when the stream is closed."""

    tls = True

    def __init__(self, bed: Bed, name: str, body: dict[str, Any]) -> None:
        self.left = threading.Event()
        self.at = 0.0
        self.thread = threading.Thread(target=self.run, args=(bed.balancer.port, name, body))
        self.thread.start()

    def run(self, port: int, name: str, body: dict[str, Any]) -> None:
        http = openai.DefaultHttpxClient(verify=False)
        client = openai.OpenAI(
            base_url=f"https://127.0.0.1:{port}/v1", api_key="-", max_retries=0, timeout=1.5, http_client=http
        )
        extra = {"sim_service": body["sim_service"]}
        try:
            answer = client.chat.completions.create(
                model=body["model"],
                messages=body["messages"],
                max_tokens=body["max_tokens"],
                stream=bool(body.get("stream")),
                extra_body=extra,
                extra_headers={"X-Request-Id": name},
            )
            for _ in answer:
                if self.left.is_set():
                    break
            answer.close()  # type: ignore[union-attr]
        except openai.APITimeoutError:
            pass
        self.at = time.monotonic()

    def leave(self) -> float:
        self.left.set()
        self.thread.join(5)
        return self.at


KINDS: dict[str, Any] = {"plain": Plain, "TLS": Tls, "HTTP/2": Http2, "openai": OpenAI, "curl": Curl}


def case(bed: Bed, tail: Tail, kind: str, moment: str, model: str) -> str:
    """Let one client leave; return what was wrong, or nothing."""
    process, name, problems = bed.processes[0], f"{kind}-{moment}".replace(" ", "-").replace("/", ""), []
    stream = moment == "streaming"
    if moment == "waiting":
        blocker = (Tls if KINDS[kind].tls else Plain)(
            bed, f"blocker-{model}", chat(9, model=model, max_tokens=30, stream=True)
        )
        wait_for(lambda: process.report(model)[model]["running"] == 1, 3, "the slot is taken")
    client = KINDS[kind](bed, name, chat(9, model=model, max_tokens=90 if stream else 1, stream=stream))
    if moment != "waiting":
        wait_for(lambda: process.report(model)[model]["running"] == 1, 3, "the engine works")
    time.sleep(0.6)
    left = client.leave()
    try:
        noticed, status = wait_for(lambda: tail.seen.get(name), LIMIT + 1.5, "noticed")
    except AssertionError:
        return f"{kind}, {moment}: not noticed; "
    if noticed - left > LIMIT + SLACK:
        problems.append(f"noticed after {noticed - left:.2f} s")
    if status not in {200, 499}:
        problems.append(f"logged as {status}")
    entries = [entry for entry in process.report(model)[model]["log"] if entry["id"] == name]
    if moment == "waiting":
        if entries:
            problems.append("an engine got it")
        blocker.leave()
    else:
        closed = [entry["left"] for entry in entries if "left" in entry]
        if not closed or closed[0] - left > LIMIT + SLACK:
            problems.append(f"peer's connection closed: {[round(at - left, 2) for at in closed]}")
    try:
        wait_for(lambda: bed.balancer.peer(model)["busy"] == 0, 1.5, "the slot is free")
    except AssertionError:
        problems.append("the slot is not free")
    return f"{kind}, {moment}: {', '.join(problems)}; " if problems else ""


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_client_leaves(bed: MakeBed, row: MakeRow, certificate: tuple[str, str], tls: bool) -> None:
    line = row(f"client leaves, {'https' if tls else 'http'}")
    here = bed(tls=certificate if tls else None)
    cases = [(kind, moment) for kind, made in KINDS.items() if made.tls is tls for moment in MOMENTS]
    specs = peers(len(cases), 41 + tls, "c", slots=1)
    for spec in specs:
        spec.models = [spec.name]
    here.fleet(*specs)
    tail = Tail(here)
    here.route()
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        found = [pool.submit(case, here, tail, *each, spec.name) for each, spec in zip(cases, specs, strict=True)]
        problems = "".join(each.result() for each in found)
    tail.ended.set()
    line.requests = len(cases)
    line.say(problems or f"all noticed within {LIMIT:.0f} s")
    assert problems == ""
    here.settled()


def test_engine_goes_on(bed: MakeBed, row: MakeRow) -> None:
    """An engine that works on for a client that left keeps its slot until it says that it is idle."""
    line, here = row("client leaves, the engine goes on"), bed()
    process = here.fleet(*peers(1, 43, slots=1, keep_working=True))
    here.route()
    with here.load([Ask(0, chat(4), leave_after=0.5)]):
        pass
    left = time.monotonic()
    time.sleep(1.5)
    state = here.balancer.state()
    assert process.report()["n1"]["running"] == 1
    assert held(state) == 1, "as the engine reports"
    with here.load([Ask(0, chat(0.1))]) as load:
        pass
    line.requests = 2
    line.say(f"the next was served {time.monotonic() - left:.1f} s after the first left")
    (result,) = load.results
    assert result.ok, brief_of(result)
    entries = process.report()["n1"]["log"]
    assert entries[1]["got"] >= entries[0]["end"], "the next one was not put behind it in the engine"
    assert entries[1]["got"] - entries[0]["end"] <= 2
    here.settled()


def brief_of(result: Any) -> str:
    return f"{result.status} {result.ending} {result.code} {result.error}"
