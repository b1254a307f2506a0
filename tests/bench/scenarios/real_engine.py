# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real llama.cpp on this machine: what affinity brings there, and how near the simulated engines come to it."""

from __future__ import annotations

import json
from pathlib import Path

from bench.point import Figures, Point, Row
from bench.real import calibration, chats, engine, replay
from bench.systems.base import System
from simulated.caches import BLOCK

TITLE = "A real engine: llama.cpp"
SEEDS = (1, 2)
POLICIES = ("affinity", "least_busy")
CURVES = {"prefill": calibration.prefill, "decode": calibration.decode}
ALONE = {**CURVES, "replay": replay.measure}


def points(full: bool, systems: list[str]) -> list[Point]:
    """What looks at engines alone needs no system, so its is direct. The two policies are compared with each other,
    whoever else takes part; the short form has the chats once."""
    del systems
    alone = [Point.of("real_engine", "direct", part=part) for part in ALONE]
    seeds = SEEDS if full else SEEDS[:1]
    return alone + [Point.of("real_engine", name, part="chats", seed=seed) for seed in seeds for name in POLICIES]


def run(point: Point, system: System, folder: Path) -> Figures:
    part = point.get("part")
    if part in ALONE:
        return ALONE[part](folder)
    return chats.measure(system, int(point.get("seed")), folder)


HOW = f"""\
The engine of the role (llama.cpp from the xllamacpp wheel {engine.version()}, Gemma 3 270M, 4-bit) on this machine's
cores, without containers.

**Chats**: {chats.ENGINES} engines with {chats.SLOTS} slots and {chats.THREADS} thread each, {chats.CHATS} chats of
{chats.TURNS} turns that begin as a Poisson process, 60 to 200 words a turn, {chats.TOKENS} tokens of answer; the
same chats for each policy. *Held* is the part of what the turn before had sent that the engine found in its cache,
as llama.cpp itself reports (`usage.prompt_tokens_details.cached_tokens`).
"""
CALIBRATION = f"""\
**The simulated engine beside the real one**: the same requests to both, one engine with {calibration.SLOTS} slots
and {calibration.THREADS} threads. The simulated one is fitted to the ends of the first curve and to one stream of
the second. How far it is off at most stands below each table.
"""
REPLAY = f"""\
**Chats, one engine alone**: the same {replay.CHATS} chats of {replay.TURNS} turns to llama.cpp as the role sets it up
({replay.SLOTS} slots, and a cache in memory for what they held before) and to the simulated engine with either cache:
*shared* by all slots, least recently used; or each *slot* holding what it did last, as with Ollama, and with llama.cpp
without its cache in memory. The simulated one is fitted to lone requests, so it does not know that two at once share
the real one's cores, and it counts whole blocks of {BLOCK} characters, where the real one counts tokens.
"""


def section(rows: list[Row]) -> str:
    turns = [row for row in rows if row.get("part") == "chats"]
    curves = {str(row.get("part")): json.loads(str(row.get("curve"))) for row in rows if row.get("part") in CURVES}
    apart = {str(row.get("part")): row.get("most_apart_percent") for row in rows if row.get("part") in CURVES}
    replays = [row for row in rows if row.get("part") == "replay"]
    lines = [HOW]
    if turns:
        lines += _chats(turns)
    if curves:
        lines += ["", CALIBRATION]
    if len(curves) == len(CURVES):
        lines += ["![The simulated engine beside llama.cpp](benchmarks/real-engine.svg)", ""]
    if "prefill" in curves:
        lines += ["| prompt tokens | first token, real | simulated |", "|--:|--:|--:|"]
        lines += [
            f"| {p['tokens']:.0f} | {p['real_ms']:.0f} ms | {p['simulated_ms']:.0f} ms |" for p in curves["prefill"]
        ]
        lines += _off(apart["prefill"])
    if "decode" in curves:
        lines += ["", "| streams at once | tokens per second of each, real | simulated |", "|--:|--:|--:|"]
        lines += [
            f"| {p['streams']:.0f} | {p['real_tokens_per_s']:.1f} | {p['simulated_tokens_per_s']:.1f} |"
            for p in curves["decode"]
        ]
        lines += _off(apart["decode"])
        lines += [
            "",
            "A simulated engine's streams do not slow each other down; on a real one they share its cores. So in the "
            "other scenarios a node's slots are as good as that many nodes with one slot.",
        ]
    if replays:
        lines += ["", REPLAY, *_replay(replays[-1])]
    return "\n".join(lines) + "\n"


def _off(percent: float | None) -> list[str]:
    return [] if percent is None else ["", f"At most {percent:.0f} % off."]


def _replay(row: Row) -> list[str]:
    lines = ["| engine | held | first token, mean | later turns, mean |", "|---|--:|--:|--:|"]
    for name, said in (("real", "llama.cpp"), ("shared", "simulated, shared"), ("slot", "simulated, slot")):
        held, first, later = (row.get(f"{name}_{part}") for part in ("held_part", "ttft_mean_s", "later_ttft_mean_s"))
        lines.append(f"| {said} | {held * 100:.0f} % | {first:.2f} s | {later:.2f} s |")
    return lines


def _chats(rows: list[Row]) -> list[str]:
    lines = ["| policy | first token, mean | p95 | later turns, mean | held | cached tokens of the prompts' |"]
    lines.append("|---|--:|--:|--:|--:|--:|")
    mean = {}
    for policy in POLICIES:
        mine = [row for row in rows if row.system == policy]
        if not mine:
            continue

        def average(name: str, mine: list[Row] = mine) -> float:
            return sum(float(row.get(name)) for row in mine) / len(mine)

        mean[policy] = average("ttft_mean_s")
        cells = [f"{average(name):.2f} s" for name in ("ttft_mean_s", "ttft_p95_s", "later_ttft_mean_s")]
        cells += [
            f"{average('held_part') * 100:.0f} %",
            f"{average('cached_tokens') / average('prompt_tokens') * 100:.0f} %",
        ]
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    if len(mean) == len(POLICIES):
        gain = 1 - mean["affinity"] / mean["least_busy"]
        lines += [
            "",
            f"With affinity the first token comes {gain * 100:.0f} % sooner than with least_busy, on average.",
        ]
    return lines
