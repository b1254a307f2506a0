# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node dies under load: what do clients notice, and for how long?"""

from __future__ import annotations

import time
from pathlib import Path

from bench.measure.answers import summary
from bench.measure.timeline import CALM, SLACK, STEP, packed, recovery, steps
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import nodes, rig
from bench.scenarios import balancers
from bench.systems import System
from bench.workload import scale
from bench.workload.layouts import capacity
from bench.workload.questions import questions

TITLE = "A node dies"
NODES, SLOTS, LOAD = 8, 2, 0.8  # those that are left can take it all: their load is 0.91
STREAMS = 0.5  # share of the requests


def points(full: bool, systems: list[str]) -> list[Point]:
    long = {"seconds": 60, "dies": 15, "back": 35} if full else {"seconds": 18, "dies": 5, "back": 11}
    return [
        Point.of("failover", name, round=turn, **long)
        for turn in range(3 if full else 1)
        for name in balancers(systems)
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    specs = nodes(NODES, 77, slots=SLOTS, prefill=scale.PREFILL, gap=scale.GAP)
    seconds, dies, back = (point.get(name) for name in ("seconds", "dies", "back"))
    asks = questions(LOAD, capacity(specs), seconds, seed=77 + point.get("round"), streams=STREAMS)
    with rig(system, specs, folder, apart=True) as here:
        load = here.load(asks)
        with load:
            victim = here.processes[0]
            time.sleep(max(0.0, load.began + dies - time.monotonic()))
            victim.kill()
            time.sleep(max(0.0, load.began + back - time.monotonic()))
            victim.start()
    results = load.results
    # What is asked once the node is there again says nothing about how its death was borne.
    without = [r for r in results if r.due < load.began + back]
    last = max(r.due + r.total for r in results) - load.began
    return {
        **summary(results),
        "not_begun_failed": sum(not r.ok and (not r.first or r.ending == "status") for r in results),
        "failed_after_back": sum(not r.ok for r in results) - sum(not r.ok for r in without),
        **recovery(steps(without, load.began, last), dies),
        "timeline": packed(steps(results, load.began, seconds + 10)),
    }


HOW = f"""\
{NODES} nodes with {SLOTS} slots at load {LOAD}; half of the requests are streamed. One engine is killed
(SIGKILL) and started again later. A stream that had begun cannot be saved by anybody; it can be ended with an explicit
error (*told*), or just end, so that a client may take a part for the whole (*silently*). *Recovered*: seconds from
the kill until nothing fails any more and the first tokens of streams come about as soon as before, for
{CALM * STEP:g} s on end (within half as much again, or {SLACK:g} s). It and the *last failure* look at what was asked
until the node came back; what was asked later and failed is in the column after that. The load of the nodes that are
left is {LOAD * NODES / (NODES - 1):.2f}, so first tokens take longer then whoever shares the requests out. Open loop:
requests are sent when they are due.
"""


def section(rows: list[Row]) -> str:
    text = HOW + "\n"
    text += table(
        order(rows, "round"),
        ("round", lambda row: row.get("round") + 1),
        ("system", ""),
        ("failed, not begun", "not_begun_failed"),
        ("streams cut, told", "truncated_told"),
        ("silently", "truncated_silent"),
        ("last failure after, s", lambda row: row.get("last_failure_s") or None),
        ("recovered after, s", "recovered_s"),
        ("failed after its return", "failed_after_back"),
        ("first token usual, s", "usual_ttft_s"),
        ("worst after, s", "worst_ttft_s"),
        ("of requests", "requests"),
        ("errors", lambda row: row.get("errors") or "none"),
    )
    return text + "\n![Answers and failures by half second](benchmarks/failover.svg)\n"
