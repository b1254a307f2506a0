# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chats that grow, on engines with prefix caches: who sends a chat where its past is?"""

from __future__ import annotations

from pathlib import Path

from bench.measure import engines, offered
from bench.measure.answers import OBJECTIVE, summary
from bench.point import Figures, Point, Row
from bench.report.asked import asked
from bench.report.ranges import ranged
from bench.report.rounds import merged
from bench.report.tables import order, table
from bench.rig import nodes, rig
from bench.scenarios import keepers
from bench.systems import System
from bench.workload import conversations, scale
from bench.workload.layouts import capacity

TITLE = "Chats of many turns"
TURNS = 8
SEED = 173
SLOWER = 2  # reading a prompt, than in the other scenarios: a model with long prompts
QUICKER = 2  # sending tokens, so that a chat's turns fit into a run
FLEET = {"slots": 2, "prefill": SLOWER * scale.PREFILL, "gap": scale.GAP / QUICKER, "cache_blocks": 400}
TARGETS = 0.65  # the load of which most is wanted, so it is measured with several chats
ROUNDS = 3


def points(full: bool, systems: list[str]) -> list[Point]:
    names = list(dict.fromkeys(["affinity", "least_busy", *keepers(systems)]))
    loads = (0.5, TARGETS, 0.8) if full else (TARGETS,)
    found = [
        Point.of("multi_turn", name, load=load, seconds=60 if full else 15, round=turn)
        for load in loads
        for turn in range(ROUNDS if full and load == TARGETS else 1)
        for name in names
    ]
    slots = [Point.of("multi_turn", name, load=TARGETS, seconds=60, round=0, cache="slot") for name in names]
    return [*found, *(slots if full else [])]


def run(point: Point, system: System, folder: Path) -> Figures:
    cache, seconds = dict(point.settings).get("cache", "shared"), point.get("seconds")
    specs = nodes(4, 73, **FLEET, cache=cache)
    asks = conversations.conversations(point.get("load"), specs, seconds, TURNS, SEED + point.get("round"))
    with rig(system, specs, folder) as here:
        results = here.ask(asks)
        log = here.log()
    spans = [(log[r.tag]["start"], log[r.tag]["end"]) for r in results if r.ok and r.tag in log]
    passed = max(end for _, end in spans) - min(start for start, _ in spans)
    return {
        **summary(results),
        "realised_load": offered.load(asks, specs, seconds),
        "chats": len(asks) // TURNS,
        "hit_rate": engines.hits(results, log, conversations.reusable(asks)),
        "busy": sum(end - start for start, end in spans) / passed / capacity(specs),
        "shares": engines.shares(results, log),
    }


WHOLE = 38  # blocks of a whole chat, about
HELD = FLEET["cache_blocks"] // WHOLE  # chats
HOW = f"""\
Four equal nodes with {FLEET["slots"]} slots; chats of {TURNS} turns that begin as a Poisson process, each turn 500
to 1,500 characters longer, all with the same system prompt, the next one a moment (0.2 to 0.8 s) after the answer to
the last. These engines are not those of the section on load: they read {SLOWER} times slower
({1000 / scale.CHARACTERS / FLEET["prefill"]:,.0f} tokens per second: what is held in a cache counts), send {QUICKER}
times faster (a token each {FLEET["gap"] * 1000:g} ms), and answers are {conversations.SHORTER} times shorter (a token
stands for {scale.ANSWER * conversations.SHORTER} of the trace's). A node's cache holds about {HELD} whole chats, all
four {4 * HELD}: fewer than begin in the 60 s of a full run, more than in the 15 s of a short one. Load is what the
chats' work would be without any cache, in the time in which they begin; *busy* is what they made of the slots until
the last answer, so it is far below. *Held* is the part of what the turn before had said that was in the cache of the
node that got the turn. All requests count, from the first one on. At load {TARGETS:g} a full run measures {ROUNDS}
times, with other chats each time: the figures are then medians of these rounds (least to most), the counts their
sums. *Goodput*: answers with their first token within {OBJECTIVE.first:g} s and a mean gap of at most
{OBJECTIVE.gap * 1000:.0f} ms.
"""


def section(rows: list[Row]) -> str:
    shared = [row for row in rows if row.get("cache") is None]
    slot = [row for row in rows if row.get("cache") == "slot"]
    text = HOW
    for some, said in ((shared, "One cache per node, which all its slots share"), (slot, SLOT)):
        if some:
            text += f"\n**{said}**\n\n{lines(some)}{asked(some)}"
    return text + "\n![Time to the first token by system](benchmarks/multi-turn.svg)\n"


SLOT = "A slot holds what it did last, and nothing else, as with Ollama, and with llama.cpp without its cache in memory"


def lines(rows: list[Row]) -> str:
    return table(
        order(merged(rows), "load"),
        ("load", "load"),
        ("system", ""),
        ("first token mean, s", ranged(rows, "ttft_mean_s")),
        ("p50", "ttft_p50_s"),
        ("p95", ranged(rows, "ttft_p95_s")),
        ("p99", ranged(rows, "ttft_p99_s")),
        ("whole answer mean, s", "e2e_mean_s"),
        ("gap between tokens p99, ms", "gap_p99_ms"),
        ("goodput, %", "goodput_percent"),
        ("held", ranged(rows, "hit_rate")),
        ("busy", "busy"),
        ("chats", "chats"),
        ("failed", "failed"),
        ("of requests", "requests"),
        ("errors", lambda row: row.get("errors") or "none"),
        ("answered by", "shares"),
    )
