# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many streams at once: does a token come as soon as the engine made it?"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from bench.measure.answers import kinds
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import Meter, nodes, rig
from bench.scenarios import balancers
from bench.systems import System
from load.client import Ask, Load, Result, chat, share

TITLE = "Streams"
GAP = 0.2  # seconds between tokens of one stream
ROUNDS = 3
COUNTS = (50, 200, 500)


def points(full: bool, systems: list[str]) -> list[Point]:
    return [
        Point.of("streams", name, streams=count, tokens=40 if full else 25)
        for count in (COUNTS if full else COUNTS[:1])
        for name in balancers(systems)
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    count, tokens = point.get("streams"), point.get("tokens")
    engines = nodes(1, 71, slots=count + 50, gap=GAP, first=GAP)
    with rig(system, engines, folder) as here:
        # They begin within one gap, evenly: their tokens then come evenly, too.
        asks = [Ask(GAP * i / count, chat(stream=True, max_tokens=tokens)) for i in range(count)]
        direct, through = [], []
        with Meter(system) as meter:
            for _ in range(ROUNDS):
                straight = Load(engines[0].port, asks, address=engines[0].address)
                with straight:
                    pass
                direct.append(straight.results)
                through.append(here.ask(asks))
    good = sum(r.tokens for results in through for r in results if r.ok)
    every = [r for results in through for r in results]
    if not all(any(r.ok for r in results) for results in (*direct, *through)):
        raise RuntimeError(f"a round without a single whole stream: {kinds(every)}")
    delays = {"direct_delay_p99_ms": direct, "delay_p99_ms": through}
    return {
        "failed": sum(not r.ok for r in every),
        "errors": kinds(every),
        "direct_gap_p99_ms": median(map(gap, direct)),
        "gap_p99_ms": median(map(gap, through)),
        "direct_ttft_p99_ms": median(map(first, direct)),
        "ttft_p99_ms": median(map(first, through)),
        # Some make each event anew, without the moment at which the engine sent it.
        **{name: median(map(delay, rounds)) for name, rounds in delays.items() if all(map(dated, rounds))},
        "late_p99_ms": 1000 * share([r.late for r in every], 0.99),
        "cpu_ms_per_token": 1000 * meter.used / max(1, good),
    }


def gap(results: list[Result]) -> float:
    """p99, ms."""
    return 1000 * share([gap for r in results if r.ok for gap in r.gaps], 0.99)


def first(results: list[Result]) -> float:
    """Time to the first token, p99, ms."""
    return 1000 * share([r.token for r in results if r.ok], 0.99)


def dated(results: list[Result]) -> bool:
    return any(r.delays for r in results if r.ok)


def delay(results: list[Result]) -> float:
    """From the moment the engine sent a token until the client had it, p99, ms."""
    return 1000 * share([delay for r in results if r.ok for delay in r.delays], 0.99)


HOW = f"""\
So many streams at once, which begin when they are due, with a token each {GAP * 1000:.0f} ms in each; p99 over all gaps
between tokens, as the client sees them. A balancer that holds back each token for the same time leaves the gaps as
they are: *on its way* is the time from the engine's sending a token to the client's reading it (none where a system
makes the events anew, without the time in them). Each p99 is the median of those of {ROUNDS} rounds, in turns with
direct.
"""


def section(rows: list[Row]) -> str:
    return (
        HOW
        + "\n"
        + table(
            order(rows, "streams"),
            ("streams", "streams"),
            ("system", ""),
            ("gap p99, ms", "gap_p99_ms"),
            ("direct, ms", "direct_gap_p99_ms"),
            ("added, ms", lambda row: row.get("gap_p99_ms") - row.get("direct_gap_p99_ms")),
            ("on its way p99, ms", "delay_p99_ms"),
            ("direct, ms", "direct_delay_p99_ms"),
            (
                "first token p99, ms (direct)",
                lambda r: f"{r.get('ttft_p99_ms'):.0f} ({r.get('direct_ttft_p99_ms'):.0f})",
            ),
            ("processor time of a token, ms", "cpu_ms_per_token"),
            ("failed", "failed"),
        )
    )
