# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thousand requests that only wait: what does that cost?"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from bench.measure.answers import kinds
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import Meter, nodes, rig
from bench.scenarios import balancers
from bench.systems import System
from load.client import Ask, chat
from load.processor import memory

TITLE = "A thousand waiting"
COUNT = 1000
SLOTS = 2
SETTLE = 6  # seconds until all of them have come


def points(full: bool, systems: list[str]) -> list[Point]:
    return [Point.of("waiting", name, seconds=20) for name in balancers(systems)] if full else []


def run(point: Point, system: System, folder: Path) -> Figures:
    """Raise a RuntimeError where the slots were not in use all the time: then nobody had to wait."""
    seconds = point.get("seconds")
    until = SETTLE + 2 + seconds  # the thousand leave then, and only afterwards the slots become free
    asks = [held(f"holds{i}", until + 3, stream=True, max_tokens=2) for i in range(SLOTS)]
    asks += [
        dataclasses.replace(held(f"waits{i}", 0.1), due=0.5 + 0.002 * i, leave_after=until - 0.002 * i, tag="waits")
        for i in range(COUNT)
    ]
    with rig(system, nodes(1, 76, slots=SLOTS), folder) as here:
        before = memory(system.pids())
        load = here.load(asks, timeout=until + 15)
        with load:
            time.sleep(SETTLE)
            with Meter(system) as meter:
                time.sleep(seconds)
            waits = sum(r.tag == "waits" and not r.total for r in load.results)
            used = memory(system.pids()) - before
        (engine,) = here.processes[0].report().values()
    thousand = [r for r in load.results if r.tag == "waits"]
    holders(engine["log"], load.began + SETTLE, load.began + SETTLE + seconds)
    if answered := sum(r.ok for r in thousand):
        raise RuntimeError(f"{answered} of those that were to wait have been answered")
    return {
        "waiting": waits,
        "answered": answered,
        "core_percent": 100 * meter.used / meter.passed,
        **({"kilobytes_each": used / 1024 / waits} if waits else {}),
        "refused": kinds(r for r in thousand if r.error != "left") or "none",
    }


def held(name: str, service: float, **fields: Any) -> Ask:
    """Holds a slot for so many seconds. They stand in the text: some proxies drop fields that they do not know."""
    return Ask(0, chat(None, f"{name} sim_service={service:g}", **fields))


def holders(log: list[dict[str, Any]], begin: float, end: float) -> None:
    """Raise a RuntimeError unless the same requests were in the slots from begin to end. log: of the engine."""
    inside = [entry for entry in log if entry.get("start", end) < begin and entry.get("end", end) >= end]
    if len(inside) != SLOTS:
        raise RuntimeError(f"{len(inside)} of {SLOTS} slots were in use all the time: nothing had to wait")


HOW = f"""\
{COUNT:,} requests that find both slots of the only node busy, and leave before one is free: that the slots were in use
for the whole time, and that none of the {COUNT:,} was answered, is checked in each run. Where nothing queues, they are
refused or wait inside the engine.
"""


def section(rows: list[Row]) -> str:
    return (
        HOW
        + "\n"
        + table(
            order(rows),
            ("system", ""),
            ("still waiting", "waiting"),
            ("answered", "answered"),
            ("of a core, %", "core_percent"),
            ("memory of each, kB", "kilobytes_each"),
            ("refused", "refused"),
        )
    )
