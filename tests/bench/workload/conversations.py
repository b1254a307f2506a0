# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chats that grow: each turn sends all that was said before, and comes a moment after the answer to the last one."""

from __future__ import annotations

import itertools
import random

from bench.workload import scale
from bench.workload.arrivals import poisson
from bench.workload.lengths import ANSWER
from bench.workload.questions import text, work
from load.client import Ask
from simulated.fleet import prompt_of

SYSTEM = "You are of help. " * 60  # all share it, so it must not decide


def conversation(number: int, turns: int, source: random.Random) -> list[Ask]:
    """A chat of 500 to 1,500 new characters a turn. Its first is due at 0."""
    messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM}]
    asks: list[Ask] = []
    for turn in range(turns):
        tokens = max(1, round(ANSWER.draw(source) / scale.ANSWER / 2))
        name = f"c{number}.{turn}"
        messages = [*messages, {"role": "user", "content": f"{name} {text(source.randint(500, 1500), source)}"}]
        body = {"model": "m", "stream": True, "max_tokens": tokens, "messages": messages}
        before = asks[-1] if asks else None
        asks.append(Ask(0.0, body, tag=name, after=before, think=source.uniform(0.2, 0.8)))
        messages = [*messages, {"role": "assistant", "content": "word " * tokens}]
    return asks


def conversations(  # noqa: PLR0917 a load has that many sides
    load: float, capacity: float, seconds: float, turns: int, seed: int, prefill: float
) -> list[Ask]:
    """Chats that begin as a Poisson process; without any cache they would keep this share of the capacity busy.

    prefill: how many times longer than scale.PREFILL the engines read.
    """
    source = random.Random(seed)

    def cost(asks: list[Ask]) -> float:
        extra = (prefill - 1) * scale.PREFILL / 1000
        return sum(work(ask) + extra * len(prompt_of(ask.body)) for ask in asks)

    chats = [conversation(number, turns, source) for number in range(20)]
    while True:
        rate = load * capacity / (sum(map(cost, chats)) / len(chats))
        if len(chats) >= rate * seconds:
            del chats[max(1, round(rate * seconds)) :]
            break
        chats += [
            conversation(len(chats) + i, turns, source) for i in range(max(1, round(rate * seconds) - len(chats)))
        ]
    for asks, due in zip(chats, itertools.islice(poisson(rate, seed), len(chats)), strict=True):
        for ask in asks:
            ask.due = due
    return sorted((ask for asks in chats for ask in asks), key=lambda ask: ask.due)


def reusable(asks: list[Ask]) -> dict[str, int]:
    """By name: the characters of its prompt that the turn before had said, so that a cache could hold them."""
    return {ask.tag: len(prompt_of(ask.after.body)) for ask in asks if ask.after is not None}
