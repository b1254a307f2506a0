# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A SIMULATED fleet: engines with exact service times, slots and a prefix cache, that fail on demand.

They are not the real thing and prove nothing about it. One process serves one or many engines on addresses of their own
(127.0.x.y), so a test can really kill it, stop it (SIGSTOP) or cut it off. ``Process`` is the test's handle on one; run
as a program, this file is the process, told what to do by JSON lines on its standard input.

What a request asks for stands in its body: ``sim_service`` seconds in all, or, without it, the engine's own model of
time: prefill of what its prefix cache does not hold, then ``max_tokens`` tokens with a gap between them. Some proxies
drop fields that they do not know: the words ``sim_service=0.25`` in a message do the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from simulated.caches import SIMILAR, Cache, SharedCache, SlotCache
from simulated.loading import BusyError, Loading

TESTS = Path(__file__).resolve().parents[1]
SERVICE = re.compile(r"sim_service=([0-9.]*[0-9])")


@dataclasses.dataclass
class Spec:
    """What an engine is like; ``tell`` changes it while it runs.

    mode: ok | error500 | busy503 | busy429 | die (closes before any byte) | silent | break_stream (reset after two
    events) | end_stream (clean end without its marker) | stall_stream | bad_status | wrong_length | endless_head |
    endless_body | endless_event; a request gets it with the probability ``share``, else it is served well. poison:
    what a request that holds the word POISON does to it: error500 | exit (the process dies).
    """

    name: str
    address: str
    port: int = 8000
    slots: int = 4
    models: list[str] = dataclasses.field(default_factory=lambda: ["m"])
    strict: bool = False  # 404 to a model that it doesn't have
    mode: str = "ok"
    share: float = 1.0
    poison: str = "error500"
    health: str = "ok"  # ok | loading | silent
    speed: float = 1.0  # of the work: 0.2 is five times slower
    first: float = 0.0  # seconds to the first token, beside the prefill
    prefill: float = 0.0  # seconds per 1,000 characters that the cache does not hold
    gap: float = 0.0  # seconds between tokens
    tokens: int = 4
    cache_blocks: int = 0  # of all slots together
    cache: str = "shared"  # shared | slot (each holds what it did last); from the start on
    queueing: str = "llama_cpp"  # only for a slot | ollama (until its model is in memory, then for a slot)
    load: float = 0.0  # seconds until a model is in memory, with Ollama's queueing
    max_queue: int = 512  # requests that may wait for a model, with Ollama's queueing; others get 503
    keep_alive: bool = True
    keep_working: bool = False  # goes on when the client left, as llama.cpp does with what is not streamed
    seed: int = 1


class Engine:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.cache = cache_of(spec)
        self.loading = Loading()
        self.random = random.Random(f"{spec.seed} {spec.name}")
        self.waiting: list[asyncio.Future[None]] = []
        self.running = 0
        self.most = 0
        self.probes = 0
        self.log: list[dict[str, Any]] = []
        self.connections: set[Connection] = set()

    async def enter(self) -> None:
        """Take a slot; beyond them requests wait inside the engine, as with real ones."""
        if self.running >= self.spec.slots:
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(place)
            try:
                await place  # the slot is handed over: running stays as it is
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self.leave()
                else:
                    self.waiting.remove(place)
                raise
        else:
            self.running += 1
        self.most = max(self.most, self.running)

    def leave(self) -> None:
        while self.waiting:
            place = self.waiting.pop(0)
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1

    @contextlib.asynccontextmanager
    async def slot(self, model: str) -> AsyncIterator[None]:
        """Have a slot inside of this."""
        spec = self.spec
        async with contextlib.AsyncExitStack() as stack:
            if spec.queueing == "ollama":
                await stack.enter_async_context(self.loading.loaded(model, spec.max_queue, spec.load))
            await self.enter()
            # Told before the last bytes go out would be a lie of ours; real engines, too, send first.
            stack.callback(self.leave)
            yield

    def report(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "running": self.running,
            "waiting": len(self.waiting),
            "most": self.most,
            "probes": self.probes,
            "connections": len(self.connections),
            "log": self.log,
        }


def cache_of(spec: Spec) -> Cache:
    if spec.cache == "shared":
        return SharedCache(spec.cache_blocks)
    return SlotCache(spec.cache_blocks, spec.slots, SIMILAR if spec.queueing == "llama_cpp" else -1.0)


def prompt_of(body: dict[str, Any]) -> str:
    return "".join(f"<{m.get('role')}>{m.get('content')}" for m in body.get("messages") or [])


def says(body: dict[str, Any]) -> str:
    """The first word of the last message: it names a request also where no header of it arrives here."""
    messages = body.get("messages") or [{}]
    text = messages[-1].get("content")
    return text.split(" ", 1)[0][:40] if isinstance(text, str) else ""


class Connection(asyncio.Protocol):
    """One connection; requests come one after the other."""

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None
        self.entry: dict[str, Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.discard(self)
        if self.task and not self.task.done():
            if self.entry and "left" not in self.entry:
                self.entry["left"] = time.monotonic()
            # What an engine does with a client that left is its own affair.
            stuck = self.entry and self.entry["outcome"] in {"silent", "stall_stream"}
            if stuck or not self.engine.spec.keep_working:
                self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.task is None or self.task.done():
            self.next()

    def next(self) -> None:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        if " HTTP/1." not in lines[0]:
            self.transport.abort()  # some proxies try HTTP/2 first
            return
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        size = int(headers.get("content-length", 0))
        if len(self.buffer) < end + 4 + size:
            return
        body = self.buffer[end + 4 : end + 4 + size]
        self.buffer = self.buffer[end + 4 + size :]
        method, path, _ = lines[0].split(" ", 2)
        if method == "GET":
            self.get(path, headers)
            return
        self.task = asyncio.get_running_loop().create_task(self.serve(path, headers, body))

    def send(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def json(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        keep = "" if self.engine.spec.keep_alive else "Connection: close\r\n"
        head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n{keep}\r\n"
        self.send(head.encode() + data)
        if keep:
            self.transport.close()

    def get(self, path: str, headers: dict[str, str]) -> None:
        engine, spec = self.engine, self.engine.spec
        if path == "/health":
            engine.probes += 1
            if spec.health == "silent":
                return
            self.json({"status": "ok"}, 200 if spec.health == "ok" else 503)
        elif path.startswith("/slots"):
            self.json([{"id": i, "is_processing": i < engine.running} for i in range(spec.slots)])
        elif path == "/v1/models":
            self.json({"object": "list", "data": [{"id": m, "object": "model"} for m in spec.models]})
        else:
            self.json({"error": {"message": "no such route"}}, 404)
        if headers.get("connection", "").lower() == "close":
            self.transport.close()

    async def serve(self, path: str, headers: dict[str, str], data: bytes) -> None:
        engine = self.engine
        self.entry = entry = {"id": headers.get("x-request-id"), "got": time.monotonic(), "outcome": "running"}
        engine.log.append(entry)
        if b"POISON" in data:
            entry["poison"] = True
            if engine.spec.poison == "exit":
                os._exit(1)
        mode = engine.spec.mode if engine.random.random() < engine.spec.share else "ok"
        try:
            if b"POISON" in data:
                entry["outcome"] = "error500"
                self.json({"error": {"message": "cannot read the image", "code": 500}}, 500)
            elif engine.spec.strict and json.loads(data).get("model") not in engine.spec.models:
                entry["outcome"] = "no_model"
                self.json({"error": {"message": "no such model", "code": 404}}, 404)
            elif mode in FAULTS:
                entry["outcome"] = mode
                await FAULTS[mode](self)
            else:
                body = json.loads(data)
                async with engine.slot(body.get("model")):
                    entry["start"] = time.monotonic()
                    prompt = prompt_of(body)
                    place, cached = engine.cache.begin(prompt)
                    entry.update(chars=len(prompt), cached=cached, says=says(body))
                    try:
                        await self.work(body, prompt, cached, mode, entry)
                    finally:
                        engine.cache.end(place)
                        entry["end"] = time.monotonic()
        except BusyError as error:
            entry["outcome"] = "busy"
            self.json({"error": {"message": str(error), "type": "api_error", "param": None, "code": None}}, 503)
        except asyncio.CancelledError:
            entry["outcome"] = "left"
        finally:
            self.task = None
        if not self.transport.is_closing():
            self.next()

    async def work(self, body: dict[str, Any], prompt: str, cached: int, mode: str, entry: dict[str, Any]) -> None:
        """Answer; of the prompt so many characters are cached."""
        spec = self.engine.spec
        # The second name is OpenAI's newer one for it, which some proxies put in place of the first.
        tokens = int(body.get("max_tokens") or body.get("max_completion_tokens") or spec.tokens)
        stream = bool(body.get("stream"))
        service = body.get("sim_service")
        if service is None and (said := SERVICE.search(prompt)):
            service = said[1]
        if service is None:
            first = spec.first + spec.prefill * (len(prompt) - cached) / 1000
            gap = spec.gap
        else:
            first = gap = float(service) / (tokens if stream else 1)
        began = asyncio.get_running_loop().time()
        passed = first / spec.speed
        usage = {
            "prompt_tokens": len(prompt) // 4,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": cached // 4},
        }
        model = body.get("model")
        if not stream:
            await asyncio.sleep((first + gap * (tokens - 1) if service is None else first) / spec.speed)
            message = {"role": "assistant", "content": "word " * tokens}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            value = {"object": "chat.completion", "model": model, "from": spec.name, "choices": choices, "usage": usage}
            entry["outcome"] = "done"
            self.json(value)
            return
        for i in range(tokens):
            await asyncio.sleep(max(0.0, began + passed - asyncio.get_running_loop().time()))
            passed += gap / spec.speed
            if i == 0:
                self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            if i == 2 and mode in ("break_stream", "end_stream", "stall_stream"):
                entry["outcome"] = mode
                if mode == "break_stream":
                    self.send(b'c\r\ndata: {"choi')
                    await asyncio.sleep(0.01)
                    self.transport.abort()
                elif mode == "end_stream":
                    self.send(b"0\r\n\r\n")
                else:
                    await asyncio.sleep(3600)
                return
            at = time.monotonic()
            delta = {"index": 0, "delta": {"content": f"word{i} "}, "finish_reason": None}
            self.event({"object": "chat.completion.chunk", "model": model, "at": at, "choices": [delta]})
        last = {"index": 0, "delta": {}, "finish_reason": "stop"}
        self.event({"object": "chat.completion.chunk", "model": model, "choices": [last], "usage": usage})
        entry["outcome"] = "done"
        self.send(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    def event(self, value: object) -> None:
        data = b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    # Faults

    async def error500(self) -> None:
        self.json({"error": {"message": "it broke"}}, 500)

    async def busy503(self) -> None:
        self.json({"error": {"message": "loading"}}, 503)

    async def busy429(self) -> None:
        self.json({"error": {"message": "busy"}}, 429)

    async def die(self) -> None:
        self.transport.abort()

    async def silent(self) -> None:
        await asyncio.sleep(3600)

    async def bad_status(self) -> None:
        self.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async def wrong_length(self) -> None:
        self.send(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"a":')
        await asyncio.sleep(0.05)
        self.transport.close()

    async def endless(self, head: bytes, piece: bytes) -> None:
        self.send(head)
        for _ in range(20000):
            self.send(piece)
            # Only as fast as the other side reads.
            while self.transport.get_write_buffer_size() > 1 << 20:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0)

    async def endless_head(self) -> None:
        await self.endless(b"HTTP/1.1 200 OK\r\n", b"X-More: " + b"a" * 16000 + b"\r\n")

    async def endless_body(self) -> None:
        await self.endless(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"4000\r\n" + b" " * 16384 + b"\r\n",
        )

    async def endless_event(self) -> None:
        await self.endless(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'e\r\ndata: {"a": "bb\r\n',
            b"4000\r\n" + b"b" * 16384 + b"\r\n",
        )


FAULTS = {
    name: getattr(Connection, name)
    for name in (
        *("error500", "busy503", "busy429", "die", "silent", "bad_status", "wrong_length"),
        *("endless_head", "endless_body", "endless_event"),
    )
}


# The process's side of the control channel


async def control(engines: dict[str, Engine]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        order = json.loads(line)
        named = [engines[name] for name in order.get("names") or engines]
        answer: Any = True
        if order["do"] == "set":
            for engine in named:
                engine.spec = dataclasses.replace(engine.spec, **order["changes"])
        elif order["do"] == "report":
            answer = [engine.report() for engine in named]
            if order.get("forget"):
                for engine in named:
                    engine.log = [entry for entry in engine.log if entry["outcome"] == "running"]
                    engine.most = engine.running
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def main(specs: list[dict[str, Any]]) -> None:
    engines = {}
    loop = asyncio.get_running_loop()
    for fields in specs:
        spec = Spec(**fields)
        engine = engines[spec.name] = Engine(spec)
        make = functools.partial(Connection, engine)
        await loop.create_server(make, spec.address, spec.port, backlog=1024, reuse_address=True)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await control(engines)


# The test's side


class Process:
    """One process that serves engines: to be told, killed, stopped, started again."""

    def __init__(self, *specs: Spec) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.process: subprocess.Popen[str]
        self.lock = threading.Lock()
        self.start()

    def start(self) -> None:
        fields = [dataclasses.asdict(spec) for spec in self.specs.values()]
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-P", "-m", "simulated.fleet", json.dumps(fields)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "ready\n", "a simulated engine did not start"

    def order(self, do: str, names: tuple[str, ...], **fields: Any) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        with self.lock:
            self.process.stdin.write(json.dumps({"do": do, "names": names, **fields}) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def tell(self, *names: str, **changes: Any) -> None:
        """Change the engines named (or all), for requests to come."""
        for name in names or tuple(self.specs):
            self.specs[name] = dataclasses.replace(self.specs[name], **changes)
        self.order("set", names, changes=changes)

    def report(self, *names: str, forget: bool = False) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in self.order("report", names, forget=forget)}

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """As kill -9: connections are reset or closed by the kernel, nothing listens."""
        self.process.kill()
        self.process.wait()
        self.close_pipes()

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def proceed(self) -> None:
        self.signal(signal.SIGCONT)

    def gone(self) -> bool:
        return self.process.poll() is not None

    def close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()

    def destroy(self) -> None:
        if not self.gone():
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        self.close_pipes()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
