# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a balancer costs where the engine costs nothing: latency, throughput, processor time of a request."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median

from balancer.harness import free_port
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import Meter
from bench.scenarios import MissingError, balancers
from bench.systems import Peer, System, running
from load import wrk
from load.stub import Stub

TITLE = "Overhead"
SIZES = (1, 16, 64)  # kB
CONNECTIONS = (1, 32)
ROUNDS = 3


def points(full: bool, systems: list[str]) -> list[Point]:
    return [Point.of("overhead", name, seconds=4 if full else 1) for name in balancers(systems)]


def run(point: Point, system: System, folder: Path) -> Figures:
    if why := wrk.missing():
        raise MissingError(why)
    figures: Figures = {}
    with Stub(folder, [("127.0.0.1", free_port())]) as stub:
        peer = Peer("stub", *stub.place, slots=256)
        with running(system, [peer], folder):
            wrk.warm_up((system.address, system.port), folder)
            for size in SIZES:
                for connections in CONNECTIONS:
                    figures |= compare(system, stub.place, folder, size, connections, point.get("seconds"))
    return figures


def compare(  # noqa: PLR0917 what wrk is told
    system: System, direct: tuple[str, int], folder: Path, size: int, connections: int, seconds: float
) -> Figures:
    """In turns with direct. Of p50 and rates the best of the rounds, because what disturbs only ever slows.

    Of p99 the median: a slow answer now and then is what it is there to show.
    """
    straights, throughs, costs = [], [], []
    for _ in range(ROUNDS):
        straights.append(wrk.wrk(direct, folder, size * 1024, connections, seconds))
        with Meter(system) as meter:
            throughs.append(wrk.wrk((system.address, system.port), folder, size * 1024, connections, seconds))
        costs.append(meter.used / max(1, throughs[-1].requests))
    name = f"{size}kB_{connections}"
    figures: Figures = {
        f"{name}_direct_p50_ms": min(each.half for each in straights),
        f"{name}_direct_p99_ms": median(each.most for each in straights),
        f"{name}_direct_per_s": max(each.rate for each in straights),
        f"{name}_per_s": max(each.rate for each in throughs),
        f"{name}_cpu_ms": 1000 * min(costs),
        f"{name}_bad": sum(each.bad for each in throughs),
    }
    # A round may have been too short for a single answer.
    if answered := [each for each in throughs if each.requests]:
        figures[f"{name}_p50_ms"] = min(each.half for each in answered)
        figures[f"{name}_p99_ms"] = median(each.most for each in answered)
    return figures


DIRECT = re.compile(r"\d+kB_\d+_direct_\w+")


def pooled(rows: list[Row]) -> list[Row]:
    """With the same direct figures in all rows, their medians: what was measured in turns with each is one thing.

    Its p99 differs by more than balancers do.
    """
    names = dict.fromkeys(name for row in rows for name in row.figures if DIRECT.fullmatch(name))
    direct = {name: median(row.get(name) for row in rows if row.get(name) is not None) for name in names}
    return [Row(row.point, {**row.figures, **direct}) for row in rows]


def added(row: Row, name: str, part: str) -> float | None:
    """Milliseconds over direct. row: from pooled()."""
    mine, direct = row.get(f"{name}_{part}_ms"), row.get(f"{name}_direct_{part}_ms")
    return None if mine is None or direct is None else mine - direct


HOW = f"""\
One engine that answers at once (nginx with a fixed answer, which leaves the body unread), asked by wrk in a closed
loop: each connection asks again once it has its answer, so a system that stalls is asked less. {ROUNDS} rounds in turns
with direct, after a second that is not counted: of p50, requests/s and processor time the best, of p99 the median.
*Added* is over direct, the median of all that was measured
directly in turns with the systems. Balancer, wrk and engine share the same cores: alone, a balancer gets more through.
"""


def section(rows: list[Row]) -> str:
    text = HOW
    for size in SIZES:
        text += f"\n**Bodies of {size} kB**\n\n" + lines(rows, *(f"{size}kB_{each}" for each in CONNECTIONS))
    return text + "\n![Throughput and latency of each system](benchmarks/overhead.svg)\n"


def lines(rows: list[Row], one: str, many: str) -> str:
    return table(
        [*order(rows), *directly(rows)],
        ("system", ""),
        ("p50, 1 connection, ms", f"{one}_p50_ms"),
        ("added", lambda row: added(row, one, "p50")),
        ("p99", f"{one}_p99_ms"),
        ("added", lambda row: added(row, one, "p99")),
        ("processor time of a request", f"{one}_cpu_ms"),
        ("requests/s, 32 connections", f"{many}_per_s"),
        ("p50, ms", f"{many}_p50_ms"),
        ("p99", f"{many}_p99_ms"),
        ("processor time of a request", f"{many}_cpu_ms"),
        ("failed", failed),
    )


def failed(row: Row) -> float | None:
    """Of all rounds and sizes."""
    counts = [value for name, value in row.figures.items() if name.endswith("_bad") and isinstance(value, (int, float))]
    return sum(counts) if counts else None


def directly(rows: list[Row]) -> list[Row]:
    """A row of what wrk saw without any balancer. rows: from pooled()."""
    found = {name.replace("_direct", ""): value for name, value in rows[0].figures.items() if DIRECT.fullmatch(name)}
    return [Row(Point.of("overhead", "direct"), found)] if found else []
