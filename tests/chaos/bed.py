# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a chaos test stands on: a real nginx, a simulated fleet behind it, an eye on what the balancer thinks of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from balancer.harness import Balancer, check_log, wait_for
from load.client import Ask, Load, Result, chat, poisson, share
from simulated.fleet import Process, Spec

FULL = os.environ.get("CHAOS") == "full"
NFT_TABLE = "llm_chaos"


def scaled(full: int, short: int) -> int:
    """A count for `make chaos`, or for the short form in `make test`."""
    return full if FULL else short


@dataclasses.dataclass
class Row:
    """One line of the table that is printed at the end."""

    fault: str
    requests: int = 0
    failed: int = 0
    p99: float = 0.0
    note: str = ""
    verdict: str = "FAILED"

    def count(self, results: list[Result], failed: list[Result]) -> None:
        self.requests += len(results)
        self.failed += len(failed)
        self.p99 = max(self.p99, share([result.total for result in results], 0.99))

    def say(self, text: str) -> None:
        self.note += ("; " if self.note else "") + text


class Watch:
    """Looks at GET /state 20 times a second and remembers each change of a peer's health."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self.changes: list[tuple[float, str, str, str]] = []  # when, peer, health, why
        self.now: dict[str, str] = {}
        self.most_waiting = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self) -> Watch:
        self.look()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def run(self) -> None:
        while not self.ended.wait(0.05):
            with contextlib.suppress(OSError, ValueError, KeyError):
                self.look()

    def look(self) -> None:
        state, at = self.balancer.state(), time.monotonic()
        self.most_waiting = max(self.most_waiting, waiting(state))
        for peer in state["peers"]:
            name, health = peer["name"], peer["health"]
            if name in self.now and self.now[name] != health:
                self.changes.append((at, name, health, peer["reason"]))
            self.now[name] = health

    def of(self, name: str, health: str | None = None) -> list[tuple[float, str]]:
        return [(at, state) for at, peer, state, _ in list(self.changes) if peer == name and health in {None, state}]

    def out(self, name: str, seconds: float, since: float) -> float:
        """Wait until the peer is out; return how long after `since` that was seen."""
        found = wait_for(
            lambda: [at for at, _ in self.of(name, "down") if at >= since], seconds, f"{name} is out: {self.changes}"
        )
        return found[0] - since

    def back(self, name: str, seconds: float, since: float) -> float:
        found = wait_for(
            lambda: [at for at, _ in self.of(name, "up") if at >= since], seconds, f"{name} is back: {self.changes}"
        )
        return found[0] - since


def waiting(state: dict[str, Any]) -> int:
    """Requests in the balancer's queue."""
    return int((state.get("queue") or {}).get("waiting") or 0)


def held(state: dict[str, Any]) -> int:
    """Slots in use, also those in which an engine still works for a client that left."""
    return sum(peer["busy"] for peer in state["peers"])


class Bed:
    def __init__(self, workers: int = 2, **kwargs: Any) -> None:
        self.balancer = Balancer(workers=workers, **kwargs)
        self.processes: list[Process] = []
        self.specs: list[Spec] = []

    def fleet(self, *specs: Spec) -> Process:
        """Start a process that serves these engines."""
        self.processes.append(Process(*specs))
        self.specs += specs
        return self.processes[-1]

    def alone(self, *specs: Spec) -> list[Process]:
        """Start a process for each of these engines."""
        return [self.fleet(spec) for spec in specs]

    def route(
        self, limits: dict[str, Any] | None = None, peers: dict[str, dict[str, Any]] | None = None, **fields: Any
    ) -> None:
        """Give the balancer the table of this fleet, with the default limits but for those given."""
        entries = [
            {
                "name": spec.name,
                "node": spec.name,
                "engine": "llama_cpp",
                "address": spec.address,
                "port": spec.port,
                "models": spec.models,
                "slots": spec.slots,
                **(peers or {}).get(spec.name, {}),
            }
            for spec in self.specs
        ]
        table = {"schema": 1, "require_key": False, "peers": entries, "limits": limits or {}, **fields}
        answer = self.balancer.put(table)
        assert answer.status == 200, answer.body

    def load(self, asks: list[Ask], **kwargs: Any) -> Load:
        return Load(self.balancer.port, asks, **kwargs)

    def report(self) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        for process in self.processes:
            if not process.gone():
                out.update(process.report())
        return out

    def errors(self) -> str:
        """The error log; what clients sent stands in it, byte for byte."""
        return (self.balancer.dir / "error.log").read_text(errors="replace")

    def attempts(self) -> int:
        """Tries with a peer, over all requests in the access log, which is written with a delay of 0.5 s."""
        time.sleep(1)
        return sum(int(line["attempts"]) for line in self.balancer.log())

    def settled(self, seconds: float = 5, killed: int = 0) -> None:
        """No slot is held, nobody waits, and nothing bad was logged, but for the death of workers that we killed."""

        def quiet() -> bool:
            state = self.balancer.state()
            return held(state) == 0 and waiting(state) == 0

        try:
            wait_for(quiet, seconds, "all slots are free and nobody waits")
        except AssertionError:
            raise AssertionError(f"slots or tickets are left: {self.balancer.state()}") from None
        lines = self.errors().splitlines()
        deaths = [line for line in lines if "exited on signal 9" in line]
        assert len(deaths) == killed, deaths
        check_log("\n".join(line for line in lines if line not in deaths))

    def destroy(self) -> None:
        for process in self.processes:
            process.destroy()
        self.balancer.destroy()


def peers(count: int, network: int, prefix: str = "n", **fields: Any) -> list[Spec]:
    """Engines n1, n2 … on 127.0.NETWORK.1 and on: an address per engine, so that each can be cut off alone."""
    return [Spec(f"{prefix}{i}", f"127.0.{network}.{i}", **fields) for i in range(1, count + 1)]


def steady(  # noqa: PLR0917 a load has that many sides
    rate: float,
    count: int,
    service: float,
    seed: int,
    streams: float = 0.0,
    spread: float = 0.5,
    make: Callable[[random.Random], dict[str, Any]] | None = None,
) -> list[Ask]:
    """Poisson arrivals; service times evenly around their mean; this share of them streamed."""
    source = random.Random(seed)
    return [
        Ask(
            due,
            {
                **chat(service * source.uniform(1 - spread, 1 + spread), f"question {i}"),
                **({"stream": True} if source.random() < streams else {}),
                **(make(source) if make else {}),
            },
        )
        for i, due in enumerate(poisson(rate, count, seed))
    ]


def unfair(results: list[Result]) -> list[Result]:
    """Those that failed though nothing of them had been sent yet, and streams that ended without a word."""
    return [r for r in results if not r.ok and not (r.ending == "error_event" and r.first)]


def brief(results: list[Result], most: int = 5) -> str:
    return "\n".join(
        f"{r.status} {r.ending} {r.code} {r.error} after {r.total:.2f} s, peer {r.peer!r}" for r in results[:most]
    )


def can_cut() -> str:
    """Why addresses cannot be cut off here; empty if they can."""
    try:
        done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "nftables is not installed"
    return "" if done.returncode == 0 else "nftables: " + done.stderr.strip()


@contextlib.contextmanager
def cut_off(address: str) -> Iterator[None]:
    """Drop all packets to and from an address of the loopback net, silently, in a table of our own."""
    rules = (
        f"add table inet {NFT_TABLE}\n"
        f"add chain inet {NFT_TABLE} hole {{ type filter hook input priority 0; }}\n"
        f"add rule inet {NFT_TABLE} hole ip daddr {address} drop\n"
        f"add rule inet {NFT_TABLE} hole ip saddr {address} drop\n"
    )
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["nft", "delete", "table", "inet", NFT_TABLE], check=True)
