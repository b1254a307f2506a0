# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A thousand requests that only wait: what does that cost?"""

from __future__ import annotations

import time
from pathlib import Path

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


def points(full: bool, systems: list[str]) -> list[Point]:
    return [Point.of("waiting", name, seconds=20) for name in balancers(systems)] if full else []


def run(point: Point, system: System, folder: Path) -> Figures:
    seconds = point.get("seconds")
    until = 8 + seconds  # the thousand leave then
    asks = [Ask(0, chat(until, stream=True, max_tokens=2)) for _ in range(2)]
    waiting = [Ask(0.5 + 0.002 * i, chat(0.1), leave_after=until - 0.002 * i, tag="waits") for i in range(COUNT)]
    with rig(system, nodes(2, 76, slots=1), folder) as here:
        before = memory(system.pids())
        load = here.load(asks + waiting, timeout=until + 10)
        with load:
            time.sleep(6)
            with Meter(system) as meter:
                time.sleep(seconds)
            waits = sum(r.tag == "waits" and not r.total for r in load.results)
            held = memory(system.pids()) - before
    refused = [r for r in load.results if r.tag == "waits" and r.error != "left"]
    return {
        "waiting": waits,
        "core_percent": 100 * meter.used / meter.passed,
        **({"kilobytes_each": held / 1024 / waits} if waits else {}),
        "refused": kinds(refused) or "none",
    }


HOW = f"""\
{COUNT:,} requests that find every slot busy. Where nothing queues, they are refused or wait inside the engines.
"""


def section(rows: list[Row]) -> str:
    return (
        HOW
        + "\n"
        + table(
            order(rows),
            ("system", ""),
            ("still waiting", "waiting"),
            ("of a core, %", "core_percent"),
            ("memory of each, kB", "kilobytes_each"),
            ("refused", "refused"),
        )
    )
