# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""As much to do as was asked for, of things whose sizes come by chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Each = TypeVar("Each")
TRIES = 100  # for the last one


def amount(wanted: float, draw: Callable[[int], Each], cost: Callable[[Each], float]) -> list[Each]:
    """Draw (by number, from 0) until the costs add up to what is wanted; the last is the one of many that fits best.

    Costs in the unit of `wanted`. At least one is drawn, however large it is.
    """
    drawn: list[Each] = []
    total = last = 0.0
    while total < wanted:
        drawn.append(draw(len(drawn)))
        last = cost(drawn[-1])
        total += last
    if total - wanted > last / 2 and len(drawn) > 1:  # nearer without it
        drawn.pop()
        total -= last
        last = cost(drawn[-1])
    place = wanted - (total - last)
    tries = [drawn.pop()]
    tries += [draw(len(drawn)) for _ in range(TRIES)]
    return [*drawn, min(tries, key=lambda each: abs(cost(each) - place))]
