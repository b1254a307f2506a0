# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Many streams at once: does a token come as soon as the engine made it?"""

from __future__ import annotations

from pathlib import Path

from bench.measure.answers import kinds
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import Meter, nodes, rig
from bench.scenarios import balancers
from bench.systems import System
from load.client import Ask, Load, Result, chat, share

TITLE = "Streams"
GAP = 0.2  # seconds between tokens of one stream


def points(full: bool, systems: list[str]) -> list[Point]:
    return [
        Point.of("streams", name, streams=count, tokens=60 if full else 25)
        for count in ((50, 200, 500) if full else (50,))
        for name in balancers(systems)
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    count, tokens = point.get("streams"), point.get("tokens")
    engines = nodes(1, 71, slots=count + 50, gap=GAP, first=GAP)
    with rig(system, engines, folder) as here:
        # They begin within one gap, evenly: their tokens then come evenly, too.
        asks = [Ask(GAP * i / count, chat(stream=True, max_tokens=tokens)) for i in range(count)]
        direct = Load(engines[0].port, asks, address=engines[0].address)
        with direct:
            pass
        with Meter(system) as meter:
            through = here.ask(asks)
    good = sum(r.tokens for r in through if r.ok)
    return {
        "failed": sum(not r.ok for r in through),
        "errors": kinds(through),
        "direct_gap_p99_ms": 1000 * gap(direct.results),
        "gap_p99_ms": 1000 * gap(through),
        "direct_ttft_p99_ms": 1000 * share([r.token for r in direct.results if r.ok], 0.99),
        "ttft_p99_ms": 1000 * share([r.token for r in through if r.ok], 0.99),
        "cpu_ms_per_token": 1000 * meter.used / max(1, good),
    }


def gap(results: list[Result]) -> float:
    return share([gap for r in results if r.ok for gap in r.gaps], 0.99)


def section(rows: list[Row]) -> str:
    return (
        f"So many streams at once, a token each {GAP * 1000:.0f} ms in each; p99 over all gaps between tokens, as the "
        "client sees them.\n\n"
    ) + table(
        order(rows, "streams"),
        ("streams", "streams"),
        ("system", ""),
        ("gap p99, ms", "gap_p99_ms"),
        ("direct, ms", "direct_gap_p99_ms"),
        ("added, ms", lambda row: row.get("gap_p99_ms") - row.get("direct_gap_p99_ms")),
        ("first token p99, ms (direct)", lambda r: f"{r.get('ttft_p99_ms'):.0f} ({r.get('direct_ttft_p99_ms'):.0f})"),
        ("processor time of a token, ms", "cpu_ms_per_token"),
        ("failed", "failed"),
    )
