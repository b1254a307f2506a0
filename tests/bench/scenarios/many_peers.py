# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ten, a hundred, a thousand peers: what does it cost to choose one?"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from balancer.harness import free_port
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import Meter
from bench.scenarios import MissingError, balancers
from bench.systems import Peer, System, running
from bench.systems.ours import Ours
from load import wrk
from load.stub import Stub

TITLE = "Many peers"
ROUNDS = 3
IDLE = 4  # times as long as one round: there is a probe every 2 s


def points(full: bool, systems: list[str]) -> list[Point]:
    if not full:
        return []
    return [
        Point.of("many_peers", name, peers=count, seconds=5) for count in (10, 100, 1000) for name in balancers(systems)
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    if why := wrk.missing():
        raise MissingError(why)
    count, seconds, port = point.get("peers"), point.get("seconds"), free_port()
    places = [(f"127.0.{80 + i // 200}.{1 + i % 200}", port) for i in range(count)]
    peers = [Peer(f"p{i}", *place, slots=4) for i, place in enumerate(places)]
    if why := system.unfit(peers):
        raise MissingError(why)
    with Stub(folder, places), running(system, peers, folder):
        place = (system.address, system.port)
        wrk.warm_up(place, folder)
        with Meter(system) as idle:
            time.sleep(IDLE * seconds)
        one = [wrk.wrk(place, folder, 1024, 1, seconds) for _ in range(ROUNDS)]
        with Meter(system) as meter:
            many = wrk.wrk(place, folder, 1024, 32, seconds)
        placement = {"placement_us": system.placement_us()} if isinstance(system, Ours) else {}
    return {
        **placement,
        "idle_core_percent": 100 * idle.used / idle.passed,
        "p50_ms": min(each.half for each in one),
        "p99_ms": median(each.most for each in one),
        "per_s": many.rate,
        "cpu_ms": 1000 * meter.used / max(1, many.requests),
        "bad": many.bad + sum(each.bad for each in one),
    }


HOW = f"""\
So many peers with 4 slots each, which answer at once; bodies of 1 kB, from wrk in a closed loop, after a second that
is not counted. On one connection {ROUNDS} rounds: the best p50, and the median of the p99. This is not the cost of a
choice alone: with more peers fewer requests find an open connection to theirs, so it is that of new ones as well, also
in the engine. *A placement alone* is the processor time in which our balancer chooses and takes a slot: 20,000 times in
a worker after the load, with all slots free. *Idle* is what the probes of all peers' health cost (each 2 s, where a
system probes).
"""


def section(rows: list[Row]) -> str:
    return (
        HOW
        + "\n"
        + table(
            order(rows, "peers"),
            ("peers", "peers"),
            ("system", ""),
            ("p50, 1 connection, ms", "p50_ms"),
            ("p99, ms", "p99_ms"),
            ("requests/s, 32 connections", "per_s"),
            ("processor time of a request, ms", "cpu_ms"),
            ("a placement alone, µs", "placement_us"),
            ("idle, % of a core", "idle_core_percent"),
            ("failed", "bad"),
        )
    )
