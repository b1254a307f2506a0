# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions that share nothing, on engines with caches: does looking for what could be cached cost anything?"""

from __future__ import annotations

import random
from pathlib import Path

from bench.measure import offered
from bench.measure.answers import summary
from bench.point import Figures, Point, Row
from bench.report.asked import asked
from bench.report.ranges import ranged
from bench.report.rounds import merged
from bench.report.tables import order, table
from bench.rig import nodes, rig
from bench.scenarios import keepers
from bench.scenarios.multi_turn import FLEET
from bench.systems import System
from bench.workload import scale
from bench.workload.arrivals import within
from bench.workload.layouts import capacity
from bench.workload.questions import text
from load.client import Ask, chat

TITLE = "Without any reuse"
SEED = 174
ROUNDS = 3
CHARACTERS, TOKENS = 4000, 10


def points(full: bool, systems: list[str]) -> list[Point]:
    names = list(dict.fromkeys(["affinity", "least_busy", *keepers(systems)]))
    return [
        Point.of("no_reuse", name, load=0.65, seconds=60 if full else 15, round=turn)
        for turn in range(ROUNDS if full else 1)
        for name in names
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    specs, seconds = nodes(4, 74, **FLEET), point.get("seconds")
    asks = questions(point.get("load") * capacity(specs), seconds, SEED + point.get("round"))
    with rig(system, specs, folder) as here:
        return {**summary(here.ask(asks)), "realised_load": offered.load(asks, specs, seconds)}


def questions(busy: float, seconds: float, seed: int) -> list[Ask]:
    """Of one size, as a Poisson process that keeps so many slots busy."""
    source = random.Random(seed)
    each = scale.service(CHARACTERS, TOKENS, FLEET["prefill"], FLEET["gap"])
    moments = within(seconds, round(busy * seconds / each), seed)
    return [Ask(due, chat(None, text(CHARACTERS, source), stream=True, max_tokens=TOKENS)) for due in moments]


HOW = f"""\
The same nodes and engines, open loop, and lone questions of equal size ({CHARACTERS:,} characters, {TOKENS} tokens):
nothing can be held, so looking for it can only cost. All requests count. A full run measures {ROUNDS} times, with other
moments each time: medians of these rounds (least to most), counts are their sums.

"""


def section(rows: list[Row]) -> str:
    return (
        HOW
        + table(
            order(merged(rows), "load"),
            ("load", "load"),
            ("system", ""),
            ("first token mean, s", ranged(rows, "ttft_mean_s")),
            ("p95", "ttft_p95_s"),
            ("p99", ranged(rows, "ttft_p99_s")),
            ("failed", "failed"),
            ("of requests", "requests"),
            ("errors", lambda row: row.get("errors") or "none"),
        )
        + asked(rows)
    )
