# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a balancer costs where the engine costs nothing: latency, throughput, processor time of a request."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from balancer.harness import free_port
from bench.point import Figures, Point, Row
from bench.report.tables import order, say, table
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


def added(row: Row, name: str, part: str) -> float | None:
    """Milliseconds over direct."""
    if row.get(f"{name}_{part}_ms") is None:
        return None
    return row.get(f"{name}_{part}_ms") - row.get(f"{name}_direct_{part}_ms")


HOW = f"""\
One engine that answers at once (nginx with a fixed answer, which leaves the body unread), asked by wrk in a closed
loop: each connection asks again once it has its answer, so a system that stalls is asked less. {ROUNDS} rounds in turns
with direct, after a second that is not counted: of p50, requests/s and processor time the best, of p99 the median.
*Added* is over direct. Balancer, wrk and engine share the same cores: alone, a balancer gets more through.
"""


def section(rows: list[Row]) -> str:
    text = HOW
    for size in SIZES:
        text += f"\n**Bodies of {size} kB**\n\n" + lines(rows, *(f"{size}kB_{each}" for each in CONNECTIONS))
        text += directly(rows, *(f"{size}kB_{each}" for each in CONNECTIONS))
    return text + "\n![Throughput and latency of each system](benchmarks/overhead.svg)\n"


def lines(rows: list[Row], one: str, many: str) -> str:
    return table(
        order(rows),
        ("system", ""),
        ("added p50, 1 connection, ms", lambda row: added(row, one, "p50")),
        ("added p99, ms", lambda row: added(row, one, "p99")),
        ("requests/s, 32 connections", f"{many}_per_s"),
        ("p99, ms", f"{many}_p99_ms"),
        ("processor time of a request, ms", f"{many}_cpu_ms"),
        ("failed", lambda row: row.get(f"{one}_bad") + row.get(f"{many}_bad")),
    )


def directly(rows: list[Row], one: str, many: str) -> str:
    """What wrk saw without any balancer: the median of what it saw in turns with each."""
    found = []
    for name, connections in ((one, "one connection"), (many, f"{CONNECTIONS[-1]} connections")):
        parts = []
        for part, said in (("per_s", "{} requests/s"), ("p50_ms", "p50 {} ms"), ("p99_ms", "p99 {} ms")):
            values = [row.get(f"{name}_direct_{part}") for row in rows]
            if None not in values:  # older results have fewer of them
                parts.append(said.format(say(median(values))))
        if parts:
            found.append(f"on {connections} " + ", ".join(parts))
    return f"\nDirectly: {'; '.join(found)}.\n"
