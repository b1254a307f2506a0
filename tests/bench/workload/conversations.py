# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Chats that grow: each turn sends all that was said before, and comes a moment after the answer to the last one."""

from __future__ import annotations

import random

from bench.workload import scale
from bench.workload.amount import amount
from bench.workload.arrivals import within
from bench.workload.layouts import capacity
from bench.workload.lengths import ANSWER
from bench.workload.questions import text, work
from load.client import Ask
from simulated.fleet import Spec, prompt_of

SHORTER = 2  # answers than in the other scenarios, as a chat's turns must fit into a run
SYSTEM = "You are of help. " * 60  # all share it, so it must not decide


def conversation(number: int, turns: int, source: random.Random) -> list[Ask]:
    """A chat of 500 to 1,500 new characters a turn. Its first is due at 0."""
    messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM}]
    asks: list[Ask] = []
    for turn in range(turns):
        tokens = max(1, round(ANSWER.draw(source) / scale.ANSWER / SHORTER))
        name = f"c{number}.{turn}"
        messages = [*messages, {"role": "user", "content": f"{name} {text(source.randint(500, 1500), source)}"}]
        body = {"model": "m", "stream": True, "max_tokens": tokens, "messages": messages}
        before = asks[-1] if asks else None
        asks.append(Ask(0.0, body, tag=name, after=before, think=source.uniform(0.2, 0.8)))
        messages = [*messages, {"role": "assistant", "content": "word " * tokens}]
    return asks


def conversations(load: float, specs: list[Spec], seconds: float, turns: int, seed: int) -> list[Ask]:
    """Chats that begin as a Poisson process; without any cache they would keep this share of the engines' slots busy.

    The engines read at one pace and answer at one pace, whatever their speeds; only chats' beginnings are within the
    seconds, and their turns come as fast as they are answered.
    """
    source, one = random.Random(seed), specs[0]

    def cost(asks: list[Ask]) -> float:
        return sum(work(ask, one.prefill, one.gap) for ask in asks)

    chats = amount(load * capacity(specs) * seconds, lambda number: conversation(number, turns, source), cost)
    for asks, due in zip(chats, within(seconds, len(chats), seed), strict=True):
        for ask in asks:
            ask.due = due
    return [ask for asks in chats for ask in asks]


def reusable(asks: list[Ask]) -> dict[str, int]:
    """By name: the characters of its prompt that the turn before had said, so that a cache could hold them."""
    return {ask.tag: len(prompt_of(ask.after.body)) for ask in asks if ask.after is not None}
