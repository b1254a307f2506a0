# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions that have nothing in common: streamed, with the lengths of real conversations."""

from __future__ import annotations

import random
from collections.abc import Sequence

from bench.workload import scale
from bench.workload.amount import amount
from bench.workload.arrivals import within
from bench.workload.lengths import ANSWER, PROMPT
from load.client import Ask
from simulated.fleet import prompt_of


def text(characters: int, source: random.Random) -> str:
    return source.randbytes(characters // 2 + 1).hex()[:characters]


def question(name: str, source: random.Random, model: str = "m", stream: bool = True) -> Ask:
    """A question whose first word is its name: so it is found again in an engine's log."""
    characters = PROMPT.draw(source) * scale.CHARACTERS
    tokens = max(1, round(ANSWER.draw(source) / scale.ANSWER))
    messages = [{"role": "user", "content": f"{name} {text(characters, source)}"}]
    body = {"model": model, "stream": stream, "max_tokens": tokens, "messages": messages}
    return Ask(0.0, body, tag=name)


def work(ask: Ask, prefill: float = scale.PREFILL, gap: float = scale.GAP) -> float:
    """Seconds that it takes on an engine of speed 1 with nothing in its cache. prefill, gap: that engine's."""
    return scale.service(len(prompt_of(ask.body)), ask.body["max_tokens"], prefill, gap)


def questions(  # noqa: PLR0917 a load has that many sides
    load: float,
    capacity: float,
    seconds: float,
    seed: int,
    cv: float = 1.0,
    models: Sequence[tuple[str, float]] = (("m", 1.0),),
    streams: float = 1.0,
) -> list[Ask]:
    """As many as keep this share of the capacity (slots of speed 1) busy for these seconds.

    cv: of the gaps between them. models: with the share of the questions that is for each. streams: share of them.
    The load is exact, in the work of the very questions asked and in the time in which they come.
    """
    source = random.Random(seed)
    names, parts = zip(*models, strict=True)

    def draw(number: int) -> Ask:
        model = source.choices(names, parts)[0]
        return question(f"q{number}", source, model, source.random() < streams)

    asks = amount(load * capacity * seconds, draw, work)
    for ask, due in zip(asks, within(seconds, len(asks), seed, cv), strict=True):
        ask.due = due
    return asks
