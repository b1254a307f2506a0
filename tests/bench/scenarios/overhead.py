# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a balancer costs where the engine costs nothing: latency, throughput, processor time of a request."""

from __future__ import annotations

from pathlib import Path

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
    return [Point.of("overhead", name, seconds=10 if full else 1) for name in balancers(systems)]


def run(point: Point, system: System, folder: Path) -> Figures:
    if why := wrk.missing():
        raise MissingError(why)
    figures: Figures = {}
    with Stub(folder, [("127.0.0.1", free_port())]) as stub:
        peer = Peer("stub", *stub.place, slots=256)
        with running(system, [peer], folder):
            for size in SIZES:
                for connections in CONNECTIONS:
                    figures |= compare(system, stub.place, folder, size, connections, point.get("seconds"))
    return figures


def compare(  # noqa: PLR0917 what wrk is told
    system: System, direct: tuple[str, int], folder: Path, size: int, connections: int, seconds: float
) -> Figures:
    """In turns with direct; of each the best of the rounds, because what disturbs only ever slows."""
    best, rate, costs, bad = [], [], [], 0
    for _ in range(ROUNDS):
        straight = wrk.wrk(direct, folder, size * 1024, connections, seconds)
        with Meter(system) as meter:
            through = wrk.wrk((system.address, system.port), folder, size * 1024, connections, seconds)
        best.append((straight, through))
        rate.append(through.rate)
        costs.append(meter.used / max(1, through.requests))
        bad += through.bad
    name = f"{size}kB_{connections}"
    return {
        f"{name}_direct_p50_ms": min(straight.half for straight, _ in best),
        f"{name}_direct_p99_ms": min(straight.most for straight, _ in best),
        f"{name}_p50_ms": min(through.half for _, through in best),
        f"{name}_p99_ms": min(through.most for _, through in best),
        f"{name}_per_s": max(rate),
        f"{name}_cpu_ms": 1000 * min(costs),
        f"{name}_bad": bad,
    }


def added(row: Row, name: str, part: str) -> float | None:
    """Milliseconds over direct."""
    if row.get(f"{name}_{part}_ms") is None:
        return None
    return row.get(f"{name}_{part}_ms") - row.get(f"{name}_direct_{part}_ms")


HOW = f"""\
One engine that answers at once (nginx with a fixed answer, which leaves the body unread), asked by wrk; each
figure is the best of {ROUNDS} rounds, in turns with direct. Latency is what is added to direct. Balancer, wrk and
engine share the same cores: alone, a balancer gets more through.
"""


def section(rows: list[Row]) -> str:
    text = HOW
    for size in SIZES:
        text += f"\n**Bodies of {size} kB**\n\n" + lines(rows, *(f"{size}kB_{each}" for each in CONNECTIONS))
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
