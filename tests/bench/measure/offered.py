# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was really asked: the load that it makes, and how long its prompts and answers are."""

from __future__ import annotations

from collections.abc import Sequence

from bench.point import Figures
from bench.workload import scale
from bench.workload.questions import work
from load.client import Ask, share
from simulated.fleet import Spec, prompt_of


def load(asks: Sequence[Ask], specs: Sequence[Spec], seconds: float) -> float:
    """The share of the engines' slots (in slots of speed 1) that these keep busy without any cache.

    The engines read at one pace and answer at one pace, whatever their speeds.
    """
    capacity = sum(spec.slots * spec.speed for spec in specs)
    return sum(work(ask, specs[0].prefill, specs[0].gap) for ask in asks) / (capacity * seconds)


def lengths(asks: Sequence[Ask]) -> Figures:
    """In tokens as the trace counts them."""
    prompts = [len(prompt_of(ask.body)) / scale.CHARACTERS for ask in asks]
    answers = [ask.body["max_tokens"] * scale.ANSWER for ask in asks]
    return {
        f"{name}_p{round(100 * part)}_tokens": share(values, part)
        for name, values in (("prompt", prompts), ("answer", answers))
        for part in (0.5, 0.9)
    }
