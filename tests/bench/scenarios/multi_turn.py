# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chats that grow, on engines with prefix caches: who sends a chat where its past is?"""

from __future__ import annotations

from pathlib import Path

from bench.measure import engines
from bench.measure.answers import summary
from bench.point import Figures, Point, Row
from bench.report.tables import order, table
from bench.rig import nodes, rig
from bench.scenarios import balancers
from bench.systems import System
from bench.workload import scale
from bench.workload.conversations import conversations, reusable
from bench.workload.layouts import capacity

TITLE = "Chats of many turns"
TURNS = 8
SLOWER = 2  # reading a prompt, than in the other scenarios: a model with long prompts
FLEET = {"slots": 2, "prefill": SLOWER * scale.PREFILL, "gap": scale.GAP / 2, "cache_blocks": 700}


def points(full: bool, systems: list[str]) -> list[Point]:
    names = list(dict.fromkeys(["affinity", "least_busy", *balancers(systems)]))
    loads = (0.5, 0.65, 0.8) if full else (0.65,)
    return [Point.of("multi_turn", name, load=load, seconds=60 if full else 15) for load in loads for name in names]


def run(point: Point, system: System, folder: Path) -> Figures:
    specs = nodes(4, 73, **FLEET)
    asks = conversations(point.get("load"), capacity(specs), point.get("seconds"), TURNS, 73, SLOWER)
    with rig(system, specs, folder) as here:
        results = here.ask(asks)
        log = here.log()
    spans = [(log[r.tag]["start"], log[r.tag]["end"]) for r in results if r.ok and r.tag in log]
    passed = max(end for _, end in spans) - min(start for start, _ in spans)
    return {
        **summary(results),
        "hit_rate": engines.hits(results, log, reusable(asks)),
        "busy": sum(end - start for start, end in spans) / passed / capacity(specs),
        "shares": engines.shares(results, log),
    }


HOW = f"""\
Four equal nodes with {FLEET["slots"]} slots; chats of {TURNS} turns that begin as a Poisson process, each turn 500
to 1,500 characters longer, all with the same system prompt. A node's cache holds about 30 of them. Load is what
they would make without any cache; *busy* is what they made of the slots, beginning and end included. *Held* is the
part of what the turn before had said that was in the cache of the node that got the turn.
"""


def section(rows: list[Row]) -> str:
    text = HOW + "\n"
    text += table(
        order(rows, "load"),
        ("load", "load"),
        ("system", ""),
        ("first token mean, s", "ttft_mean_s"),
        ("p50", "ttft_p50_s"),
        ("p95", "ttft_p95_s"),
        ("p99", "ttft_p99_s"),
        ("held", "hit_rate"),
        ("busy", "busy"),
        ("failed", "failed"),
        ("of requests", "requests"),
    )
    return text + "\n![Time to the first token by system](benchmarks/multi-turn.svg)\n"
