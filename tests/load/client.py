# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An open-loop client: each request is sent when it is due, however the ones before it fare.

Times are counted from the moment a request was due, so a slow answer cannot hide the wait of those behind it. Plain
HTTP/1.1 over kept connections; nothing is ever sent twice. A closed loop is a chain of requests, each after the one
before it, stopped after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

DONE = b"data: [DONE]\n\n"


@dataclasses.dataclass
class Result:
    """What became of one request.

    ending: done (whole answer or stream with its marker) | status (an error before anything started) | error_event
    (a stream that ended with an explicit error) | silent (a stream that ended without either) | nothing (no answer)
    """

    id: str
    due: float
    tag: str = ""
    status: int = 0
    ending: str = "nothing"
    first: float = 0.0  # seconds from due to the first byte of the body
    token: float = 0.0  # seconds from due to the first token; of an answer that isn't streamed, to its end
    tokens: int = 0  # that came, each in an event of its own
    total: float = 0.0
    peer: str = ""
    code: str = ""
    usage: dict[str, Any] | None = None
    delays: list[float] = dataclasses.field(default_factory=list)  # of each token, engine to client
    gaps: list[float] = dataclasses.field(default_factory=list)
    error: str = ""
    late: float = 0.0  # seconds from due to the moment the client began to send it: its own fault

    @property
    def ok(self) -> bool:
        return self.ending == "done" and self.status == 200


@dataclasses.dataclass
class Ask:
    """A request to come."""

    due: float  # seconds from the beginning
    body: dict[str, Any]
    tag: str = ""
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    leave_after: float | None = None  # seconds, after which the client goes away
    after: Ask | None = None  # not before that one was answered (a conversation's turn)
    think: float = 0.0
    pause: float = 0.0  # seconds more, if that one failed


def chat(service: float | None = None, text: str = "hi", model: str = "m", **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    if service is not None:
        body["sim_service"] = round(service, 4)
    return body


def poisson(rate: float, count: int, seed: int) -> Iterable[float]:
    """Moments of arrival, in seconds from the beginning."""
    source, at = random.Random(seed), 0.0
    for _ in range(count):
        at += source.expovariate(rate)
        yield at


class Load:
    """Sends requests in a thread of its own; `with Load(...) as load:` waits for the last answer at the end."""

    def __init__(
        self,
        port: int,
        asks: list[Ask],
        *,
        key: str | None = None,
        address: str = "127.0.0.1",
        timeout: float = 90,
        on_result: Callable[[Ask, Result], None] | None = None,
    ) -> None:
        self.port, self.address, self.asks, self.key, self.timeout = port, address, asks, key, timeout
        self.on_result = on_result
        self.results: list[Result] = []
        self.open = 0
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.finished: dict[int, asyncio.Event] = {}
        self.failed: set[int] = set()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()), daemon=True)
        self.stopped = False
        self.began = 0.0

    def __enter__(self) -> Load:
        self.began = time.monotonic()
        self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind:
            self.stopped = True
        self.join()

    def join(self, seconds: float = 600) -> list[Result]:
        self.thread.join(seconds)
        assert not self.thread.is_alive(), f"{self.open} requests are still without an answer"
        return self.results

    def stop(self) -> list[Result]:
        """Send no more; wait for those under way."""
        self.stopped = True
        return self.join()

    async def run(self) -> None:
        running: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        for ask in self.asks:
            while not self.stopped and (wait := self.began + ask.due - time.monotonic()) > 0:
                await asyncio.sleep(min(wait, 0.2))
            if self.stopped:
                break
            task = loop.create_task(self.one(ask))
            running.add(task)
            task.add_done_callback(running.discard)
        while running:
            await asyncio.wait(running)
        for _, writer in self.idle:
            writer.close()

    async def one(self, ask: Ask) -> None:
        done = self.finished.setdefault(id(ask), asyncio.Event())
        due = self.began + ask.due
        if ask.after is not None:
            await self.finished.setdefault(id(ask.after), asyncio.Event()).wait()
            due = max(due, time.monotonic() + ask.think + ask.pause * (id(ask.after) in self.failed))
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.stopped:
                done.set()
                return
        result = Result(f"c{id(self) % 10**6}-{len(self.results)}-{int(due * 1e6)}", due, ask.tag)
        result.late = time.monotonic() - due
        self.results.append(result)
        self.open += 1
        try:
            async with asyncio.timeout(ask.leave_after or self.timeout):
                await self.exchange(ask, result)
        except TimeoutError:
            result.error = "left" if ask.leave_after else "no end within the time"
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            result.error = f"{type(error).__name__}: {error}"
        finally:
            result.total = time.monotonic() - due
            self.open -= 1
            if not result.ok:
                self.failed.add(id(ask))
            done.set()
        if self.on_result:
            self.on_result(ask, result)

    async def exchange(self, ask: Ask, result: Result) -> None:
        data = json.dumps(ask.body).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: test",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            f"X-Request-Id: {result.id}",
        ]
        if self.key:
            lines.append(f"Authorization: Bearer {self.key}")
        lines += [f"{name}: {value}" for name, value in ask.headers.items()]
        reader, writer = await self.connection()
        keep = False
        try:
            writer.write("\r\n".join([*lines, "\r\n"]).encode() + data)
            keep = await self.answer(reader, result)
        finally:
            if keep:
                self.idle.append((reader, writer))
            else:
                # Also when the task was cancelled: a client that leaves closes its connection at once.
                writer.transport.abort() if ask.leave_after else writer.close()

    async def connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.idle:
            reader, writer = self.idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            with contextlib.suppress(OSError):
                writer.close()
        return await asyncio.open_connection(self.address, self.port, limit=1 << 22)

    async def answer(self, reader: asyncio.StreamReader, result: Result) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        result.status = int(head[0].split(" ")[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        result.peer = headers.get("x-llm-peer", "")
        keep = headers.get("connection", "").lower() != "close"
        chunked = headers.get("transfer-encoding") == "chunked"
        if chunked and headers.get("content-type", "").startswith("text/event-stream"):
            return await self.stream(reader, result) and keep
        body = await whole(reader) if chunked else await reader.readexactly(int(headers.get("content-length", 0)))
        result.first = result.token = time.monotonic() - result.due
        value = json.loads(body)
        if result.status == 200:
            result.ending = "done"
            result.usage = value.get("usage")
        else:
            result.ending = "status"
            result.code = (value.get("error") or {}).get("code") or ""
        return keep

    async def stream(self, reader: asyncio.StreamReader, result: Result) -> bool:
        """Read a stream; say whether it ended as HTTP wants it."""
        result.ending = "silent"
        tail, before = b"", 0.0
        try:
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                piece = tail + (await reader.readexactly(size + 2))[:-2]
                now = time.monotonic()
                if not result.first:
                    result.first = now - result.due
                *events, tail = piece.split(b"\n\n")
                for event in events:
                    data = next((line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")), b"")
                    if not data:
                        continue
                    if data == b"[DONE]":
                        result.ending = "done"
                        continue
                    value = json.loads(data)
                    if value.get("error"):
                        result.ending = "error_event"
                        result.code = value["error"].get("code") or ""
                        continue
                    result.usage = value.get("usage") or result.usage
                    if not is_token(value):
                        continue
                    if "at" in value:
                        result.delays.append(now - value["at"])
                    if before:
                        result.gaps.append(now - before)
                    else:
                        result.token = now - result.due
                    result.tokens += 1
                    before = now
            await reader.readexactly(2)
        except (asyncio.IncompleteReadError, OSError):
            # After an error event the connection just ends; that nobody takes it for a whole answer is the point.
            return False
        return not tail


async def whole(reader: asyncio.StreamReader) -> bytes:
    """A body that comes in chunks, and is wanted as one."""
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


def is_token(event: dict[str, Any]) -> bool:
    """Does this event of a stream bring text? The last one, with the usage, does not."""
    choices = event.get("choices")
    return bool(choices and (choices[0].get("delta") or {}).get("content"))


def share(values: list[float], part: float) -> float:
    """The value below which this part of them lies: share(times, 0.99) is p99."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0.0
