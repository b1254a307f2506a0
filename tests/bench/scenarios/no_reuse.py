# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions that share nothing, on engines with caches: does looking for what could be cached cost anything?"""

from __future__ import annotations

import itertools
import random
from pathlib import Path

from bench.measure.answers import summary
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import nodes, rig
from bench.scenarios import balancers
from bench.scenarios.multi_turn import FLEET, SLOWER
from bench.systems import System
from bench.workload import scale
from bench.workload.arrivals import poisson
from bench.workload.layouts import capacity
from bench.workload.questions import text
from load.client import Ask, chat

TITLE = "Without any reuse"
CHARACTERS, TOKENS = 4000, 10


def points(full: bool, systems: list[str]) -> list[Point]:
    names = list(dict.fromkeys(["affinity", "least_busy", *balancers(systems)]))
    return [
        Point.of("no_reuse", name, load=0.65, seconds=60 if full else 15, round=turn)
        for turn in range(3 if full else 1)
        for name in names
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    specs, source = nodes(4, 74, **FLEET), random.Random(f"74 {point.get('round')}")
    each = SLOWER * scale.PREFILL * CHARACTERS / 1000 + scale.GAP / 2 * (TOKENS - 1)
    rate = point.get("load") * capacity(specs) / each
    moments = itertools.takewhile(lambda at: at < point.get("seconds"), poisson(rate, 740 + point.get("round")))
    asks = [Ask(due, chat(None, text(CHARACTERS, source), stream=True, max_tokens=TOKENS)) for due in moments]
    with rig(system, specs, folder) as here:
        return summary(here.ask(asks))


def section(rows: list[Row]) -> str:
    return (
        "The same nodes, and lone questions of equal size: nothing can be held, so looking for it can only cost.\n\n"
    ) + table(
        order(rows, "round"),
        ("round", lambda row: row.get("round") + 1),
        ("system", ""),
        ("first token mean, s", "ttft_mean_s"),
        ("p95", "ttft_p95_s"),
        ("p99", "ttft_p99_s"),
        ("failed", "failed"),
        ("of requests", "requests"),
    )
