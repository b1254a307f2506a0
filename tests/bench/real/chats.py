# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chats of several turns with real engines: what their caches held, and when the first token came."""

from __future__ import annotations

import random
from pathlib import Path

from bench.point import Figures
from bench.real.calibration import ask_all
from bench.real.engine import chat, engines, words
from bench.systems.base import System, running
from load.client import Ask, Load, Result, poisson, share

ENGINES, SLOTS, THREADS = 2, 2, 1
CHATS, TURNS = 14, 5
RATE = 0.15  # chats that begin in a second
TOKENS = 16
SECONDS = 240
WARM = 20  # requests


def conversations(seed: int, count: int = CHATS, turns: int = TURNS, rate: float = RATE) -> list[Ask]:
    """Each turn sends all that was said and 60 to 200 words more, a moment after the answer to the one before.

    What the assistant is said to have said is not what it did say, so its answers are never held by a cache.
    """
    source = random.Random(seed)
    system = {"role": "system", "content": words(random.Random(0), 40)}  # all share it, so it must not decide
    asks = []
    for number, due in enumerate(poisson(rate, count, seed)):
        messages, before = [system], None
        for turn in range(turns):
            messages = [*messages, {"role": "user", "content": words(source, source.randint(60, 200))}]
            before = Ask(due, chat(messages, TOKENS), f"{number}.{turn}", after=before, think=source.uniform(0.5, 2))
            asks.append(before)
            messages = [*messages, {"role": "assistant", "content": words(source, TOKENS)}]
    return sorted(asks, key=lambda ask: ask.due)


def measure(system: System, seed: int, folder: Path) -> Figures:
    """Ask through the system; the same conversations for the same seed.

    :raises RuntimeError: when an answer is missing
    """
    asks = conversations(seed)
    with engines(ENGINES, SLOTS, THREADS, folder) as peers, running(system, peers, folder):
        # As many at once as there are slots, so that all of them have worked before anything is measured.
        ask_all(system.port, [chat([{"role": "user", "content": "Warm up."}], 2)] * WARM, ENGINES * SLOTS)
        with Load(system.port, asks, address=system.address, timeout=SECONDS) as load:
            pass
        failed = [r for r in load.results if not r.ok or not r.usage]
        if failed:
            raise RuntimeError(f"{len(failed)} of {len(asks)} failed, the first: {failed[0]}")
    return summary(asks, load.results)


def summary(asks: list[Ask], results: list[Result]) -> Figures:
    """Of the turns after the first one: how much of what the turn before had sent was held. Of all: times."""
    by_tag = {result.tag: result for result in results}
    prompts = {tag: int((result.usage or {})["prompt_tokens"]) for tag, result in by_tag.items()}
    cached = {tag: _cached(result) for tag, result in by_tag.items()}
    later = [(ask.tag, ask.after.tag) for ask in asks if ask.after is not None]
    firsts = [result.token for result in results]
    return {
        "requests": len(results),
        "ttft_mean_s": sum(firsts) / len(firsts),
        "ttft_p95_s": share(firsts, 0.95),
        "later_ttft_mean_s": sum(by_tag[tag].token for tag, _ in later) / len(later),
        "prompt_tokens": sum(prompts.values()),
        "cached_tokens": sum(cached.values()),
        "held_part": sum(cached[tag] for tag, _ in later) / sum(prompts[before] for _, before in later),
        "e2e_mean_s": sum(result.total for result in results) / len(results),
    }


def _cached(result: Result) -> int:
    return int(((result.usage or {}).get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
