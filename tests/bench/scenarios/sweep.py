# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""More and more load: how long requests wait for a slot, beside a central queue."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.measure import central, engines, offered
from bench.measure.answers import OBJECTIVE, Window, summary
from bench.point import Figures, Point, Row
from bench.report.asked import asked
from bench.report.ranges import ranged
from bench.report.rounds import merged
from bench.report.tables import order, say, table
from bench.rig import Meter, rig
from bench.scenarios import balancers
from bench.systems import System
from bench.workload import layouts, lengths, scale
from bench.workload.arrivals import CODE_CV
from bench.workload.questions import questions

TITLE = "Load"
SEED = 172
LEAD = 0.2  # part of a run that is not looked at: its queues are still empty
TARGETS = 0.9  # the load of which most is wanted, so it is measured with several arrivals
ROUNDS = 3


def points(full: bool, systems: list[str]) -> list[Point]:
    if not full:
        settings = [(layout, load, 15, 1.0, 0) for layout in ("equal", "unequal") for load in (0.7, TARGETS)]
    else:
        settings = [
            (layout, load, 60, 1.0, turn)
            for layout in layouts.NODES
            for load in (0.5, 0.7, 0.8, TARGETS, 0.95)
            for turn in range(ROUNDS if load == TARGETS else 1)
        ]
        settings += [("equal", load, 60, CODE_CV, 0) for load in (0.5, 0.7)]
    return [
        Point.of("sweep", name, layout=layout, load=load, seconds=seconds, cv=cv, round=turn)
        for layout, load, seconds, cv, turn in settings
        for name in balancers(systems)
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    layout, seconds = point.get("layout"), point.get("seconds")
    specs = layouts.engines(layout, 72)
    asks = questions(
        point.get("load"),
        layouts.capacity(specs),
        seconds,
        seed=SEED + point.get("round"),
        cv=point.get("cv"),
        models=layouts.MODELS.get(layout, [("m", 1.0)]),
    )
    with rig(system, specs, folder) as here:
        with Meter(system) as meter:
            results = here.ask(asks)
        log = here.log()
    window = Window.of(results, asks, LEAD * seconds, seconds)
    found = {
        **summary(results, window),
        **engines.waits(results, log, window),
        **central.figures(asks, specs, LEAD * seconds),
    }
    return {
        **found,
        **central.ratio(found),
        "realised_load": offered.load(asks, specs, seconds),
        **offered.lengths(asks),
        "shares": engines.shares(results, log),
        "cpu_ms_per_request": 1000 * meter.used / len(asks),
    }


HOW = f"""\
Questions with the lengths of real conversations: prompt tokens p50 {lengths.PROMPT.p50:,}, p90 {lengths.PROMPT.p90:,},
answer tokens p50 {lengths.ANSWER.p50}, p90 {lengths.ANSWER.p90}; log-normal, none beyond {lengths.PROMPT.most:,} and
{lengths.ANSWER.most:,}. They have nothing in common and are streamed. An engine of speed 1 reads
{1000 / scale.CHARACTERS / scale.PREFILL:,.0f} tokens per second and sends one each {scale.GAP * 1000:g} ms, which
stands for {scale.ANSWER} of the trace's. Load is the share of the fleet's slots (in slots of speed 1) that the very
requests asked keep busy in the time in which they come. Open loop: all systems get the same requests at the same
moments, however they fare: drawn as a Poisson process, and stretched so that the load is exact. All times, and
goodput, are of the requests that were due after the first
{100 * LEAD:.0f} % of that time, in which queues are still empty; failures are those of all. At load {TARGETS:g} a full
run measures {ROUNDS} times, with other requests each time: the figures are then medians of these rounds (least to
most), the counts their sums.

*Wait* is from the moment a request was due until an engine began to work on it, which no client can see. The
*{central.NAME}* gets all that was asked at the same moments, with the engines' exact times: first come, first
served, each request to the fastest slot that is free, and no time is ever lost. It is no bound: on unequal nodes one
that lets a request wait for a fast slot can be better. *Ratio*: p99 wait over its p99 wait. *Goodput*: answers with
their first token within {OBJECTIVE.first:g} s (as long as about ten of a real fleet) and a mean gap of at most
{OBJECTIVE.gap * 1000:.0f} ms. A p99 is the time of the hundredth part of the requests: of 800 of them eight. *Cut*:
streams that broke after they had begun; in brackets those that just ended, without an error. Where requests failed, the
times are those of the others, and do not compare with a system's that answered all.
"""


def section(rows: list[Row]) -> str:
    text = HOW
    for layout, said in layouts.SAID.items():
        for cv in sorted({row.get("cv") for row in rows}):
            some = [row for row in rows if row.get("layout") == layout and row.get("cv") == cv]
            if some:
                came = "" if cv == 1 else f"; arrivals in bursts (CV {cv:g}, as published for code), lengths as above"
                text += f"\n**{said[0].upper()}{said[1:]}{came}**\n\n" + lines(some) + asked(some)
                if cv == 1:
                    text += f"\n![Wait and good answers against load, {said}](benchmarks/sweep-{layout}.svg)\n"
    return text


def lines(rows: list[Row]) -> str:
    shown = merged(rows)
    return table(
        order([*shown, *simulated(shown)], "load"),
        ("load", "load"),
        ("system", ""),
        ("wait mean, s", "wait_mean_s"),
        ("p95", "wait_p95_s"),
        ("p99", ranged(rows, "wait_p99_s")),
        ("ratio", ranged(rows, "wait_p99_ratio")),
        ("first token mean, s", "ttft_mean_s"),
        ("p95", "ttft_p95_s"),
        ("p99", ranged(rows, "ttft_p99_s")),
        ("whole answer mean, s", "e2e_mean_s"),
        ("p95", "e2e_p95_s"),
        ("p99", "e2e_p99_s"),
        ("gap between tokens p99, ms", "gap_p99_ms"),
        ("answers/s", "answered_per_s"),
        ("goodput, %", "goodput_percent"),
        ("processor time of the system per request, ms", "cpu_ms_per_request"),
        ("cut (silently)", cut),
        ("failed", "failed"),
        ("of requests", "requests"),
        ("errors", of_systems(lambda row: row.get("errors") or "none")),
        ("answered by", "shares"),
    )


def simulated(rows: list[Row]) -> list[Row]:
    """A row per load for the central queue: all systems got the same requests, so it is in each row."""
    found: dict[float, Row] = {}
    for row in rows:
        if row.get("ideal_ttft_mean_s") is not None:
            figures = {
                f"{name}_{part}_s": row.get(f"{own}_{part}_s")
                for own, name in central.BESIDE.items()
                for part in ("mean", "p95", "p99")
            }
            found.setdefault(row.get("load"), Row(Point.of("sweep", central.NAME, load=row.get("load")), figures))
    return list(found.values())


def of_systems(take: Callable[[Row], object]) -> Callable[[Row], object]:
    """A cell that the simulated queue does not have."""
    return lambda row: None if row.system == central.NAME else take(row)


def cut(row: Row) -> str | None:
    told, silent = row.get("truncated_told"), row.get("truncated_silent")
    return None if told is None or silent is None else f"{say(told + silent)} ({say(silent)})"
