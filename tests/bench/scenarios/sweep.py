# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""More and more load: how long requests wait for a slot, beside the ideal central queue."""

from __future__ import annotations

from pathlib import Path

from bench.measure import engines
from bench.measure.answers import OBJECTIVE, summary
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import Meter, rig
from bench.scenarios import balancers
from bench.systems import System
from bench.workload import layouts
from bench.workload.arrivals import CODE_CV
from bench.workload.questions import questions

TITLE = "Load"


def points(full: bool, systems: list[str]) -> list[Point]:
    if not full:
        return [
            Point.of("sweep", name, layout=layout, load=load, seconds=15, cv=1.0)
            for layout in ("equal", "unequal")
            for load in (0.7, 0.9)
            for name in balancers(systems)
        ]
    found = [
        # Longest where the targets are.
        Point.of("sweep", name, layout=layout, load=load, seconds=120 if load == 0.9 else 60, cv=1.0)
        for layout in ("equal", "unequal", "models")
        for load in (0.5, 0.7, 0.8, 0.9, 0.95)
        for name in balancers(systems)
    ]
    return found + [
        Point.of("sweep", name, layout="equal", load=load, seconds=60, cv=CODE_CV)
        for load in (0.5, 0.7)
        for name in balancers(systems)
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    layout = point.get("layout")
    specs = layouts.engines(layout, 72)
    asks = questions(
        point.get("load"),
        layouts.capacity(specs),
        point.get("seconds"),
        seed=72,
        cv=point.get("cv"),
        models=layouts.MODELS.get(layout, [("m", 1.0)]),
    )
    with rig(system, specs, folder) as here:
        with Meter(system) as meter:
            results = here.ask(asks)
        log = here.log()
    return {
        **summary(results),
        **engines.waits(results, asks, log, specs),
        "shares": engines.shares(results, log),
        "cpu_ms_per_request": 1000 * meter.used / len(asks),
    }


HOW = f"""\
Questions with the lengths of real conversations (prompt tokens p50 1020, p90 2735; answer tokens p50 129, p90
424), nothing in common, streamed. Load is the share of the fleet's slots (in slots of speed 1) that the very
requests asked keep busy. *Wait* is from the moment a request was due until an engine began to work on it, which no
client can see; the *ideal* is a central queue in which no time is ever lost, simulated on the same arrivals with
the service times measured in the same run. *Goodput*: answers with their first token within {OBJECTIVE.first:g} s
and a mean gap of at most {OBJECTIVE.gap * 1000:.0f} ms. All systems get the same arrivals. Where requests failed,
the times are those of the others.
"""


def section(rows: list[Row]) -> str:
    text = HOW
    for layout, said in layouts.SAID.items():
        for cv in sorted({row.get("cv") for row in rows}):
            some = [row for row in rows if row.get("layout") == layout and row.get("cv") == cv]
            if some:
                came = "" if cv == 1 else f"; arrivals in bursts, as of assistants that write code (CV {cv:g})"
                text += f"\n**{said[0].upper()}{said[1:]}{came}**\n\n" + lines(some)
                if cv == 1:
                    text += f"\n![Wait and throughput against load, {said}](benchmarks/sweep-{layout}.svg)\n"
    return text


def lines(rows: list[Row]) -> str:
    return table(
        order(rows, "load"),
        ("load", "load"),
        ("system", ""),
        ("wait mean, s", "wait_mean_s"),
        ("p95", "wait_p95_s"),
        ("p99", "wait_p99_s"),
        ("ideal p99", "ideal_p99_s"),
        ("ratio", "wait_p99_ratio"),
        ("first token mean, s", "ttft_mean_s"),
        ("p95", "ttft_p95_s"),
        ("p99", "ttft_p99_s"),
        ("gap between tokens p99, ms", "gap_p99_ms"),
        ("whole answer mean, s", "e2e_mean_s"),
        ("goodput, %", "goodput_percent"),
        ("failed", "failed"),
        ("of requests", "requests"),
        ("errors", lambda row: row.get("errors") or "none"),
        ("answered by", "shares"),
    )
