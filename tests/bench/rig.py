# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated engines with one system in front of them, for one measurement."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Iterator
from pathlib import Path

from balancer.harness import free_port
from bench.measure import engines
from bench.measure.answers import kinds
from bench.scenarios import MissingError
from bench.systems import Peer, System, running
from load.client import Ask, Load, Result
from load.processor import processor_time
from simulated.fleet import Process, Spec

WARM = 20  # requests
WARM_ROUNDS = 3


@dataclasses.dataclass
class Rig:
    system: System
    specs: list[Spec]
    processes: list[Process]

    def load(self, asks: list[Ask], timeout: float = 150) -> Load:
        return Load(self.system.port, asks, address=self.system.address, timeout=timeout)

    def ask(self, asks: list[Ask], timeout: float = 150) -> list[Result]:
        """Ask all of it; return once the last one has its answer."""
        gc.collect()
        with self.load(asks, timeout) as load:
            pass
        return load.results

    def warm_up(self) -> None:
        """Some load what they need with their first requests only: that is not what is measured.

        :raises RuntimeError: when in no round all were answered
        """
        body = {"model": self.specs[0].models[0], "max_tokens": 2}
        asks = [
            Ask(0.05 * i, {**body, "stream": i % 2 == 0, "messages": [{"role": "user", "content": f"w{i} warm up"}]})
            for i in range(WARM)
        ]
        for _ in range(WARM_ROUNDS):
            results = self.ask(asks, timeout=30)
            if all(result.ok for result in results):
                break
        else:
            raise RuntimeError(f"{self.system.name} does not answer as it should, not even alone: {kinds(results)}")
        for process in self.processes:
            process.report(forget=True)

    def log(self) -> engines.Log:
        reports = {}
        for process in self.processes:
            if not process.gone():
                reports.update(process.report())
        return engines.by_name(reports)


def peers_of(specs: list[Spec]) -> list[Peer]:
    return [Peer(s.name, s.address, s.port, s.slots, tuple(s.models), s.speed) for s in specs]


@contextlib.contextmanager
def rig(system: System, specs: list[Spec], folder: Path, apart: bool = False) -> Iterator[Rig]:
    """apart: an engine each in a process of its own, so that it can be killed."""
    peers = peers_of(specs)
    if why := system.unfit(peers):
        raise MissingError(why)
    processes: list[Process] = []
    try:
        for group in [[spec] for spec in specs] if apart else [specs]:
            processes.append(Process(*group))
        with running(system, peers, folder):
            here = Rig(system, specs, processes)
            here.warm_up()
            yield here
    finally:
        for process in processes:
            process.destroy()


def nodes(count: int, network: int, **fields: object) -> list[Spec]:
    """Engines n1, n2 … on addresses of their own."""
    port = free_port()
    return [Spec(f"n{i}", f"127.0.{network}.{i}", port, **fields) for i in range(1, count + 1)]  # type: ignore[arg-type]


class Meter:
    """`with Meter(system) as meter:` counts the processor seconds that the system uses, and the seconds that pass."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.used = self.passed = 0.0

    def __enter__(self) -> Meter:
        self.pids = self.system.pids()
        self.used, self.passed = -processor_time(self.pids), -time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.used += processor_time(self.pids)
        self.passed += time.monotonic()
