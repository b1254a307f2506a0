# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a central queue would have made of the same requests: simulated, with the engines' exact times."""

from __future__ import annotations

from bench.measure.answers import spread
from bench.point import Figures
from bench.workload import scale
from bench.workload.questions import work
from load.client import Ask
from load.ideal import Arrival, Server, central
from simulated.fleet import Spec, prompt_of

NAME = "central queue, simulated"
BESIDE = {"ideal": "wait", "ideal_ttft": "ttft", "ideal_e2e": "e2e"}
"""What its figures' names begin with, and those of a system's figures that they stand beside."""
EMPTY = 0.05  # seconds of its p99 wait, up to which the queue is as good as empty and a ratio says nothing


def figures(asks: list[Ask], specs: list[Spec], begin: float) -> Figures:
    """Waits, times to first token and to the whole answer, in seconds, of those due from `begin` on (seconds).

    Of all that was asked, answered or not, with the work that it makes by the engines' rules (those of
    workload/scale.py): what a machine that was too slow added to the measured times is not in here.
    """
    slots = [Server(spec.speed, tuple(spec.models)) for spec in specs for _ in range(spec.slots)]
    served = central([Arrival(ask.due, work(ask), ask.body["model"]) for ask in asks], slots)
    counted = [(ask, each) for ask, each in zip(asks, served, strict=True) if ask.due >= begin]
    reading = [scale.PREFILL * len(prompt_of(ask.body)) / 1000 for ask, _ in counted]
    return {
        **spread("ideal", [each.wait for _, each in counted]),
        **spread(
            "ideal_ttft",
            [each.wait + read / each.by.speed for read, (_, each) in zip(reading, counted, strict=True)],
        ),
        **spread("ideal_e2e", [each.wait + work(ask) / each.by.speed for ask, each in counted]),
    }


def ratio(found: Figures) -> Figures:
    """How many times as long as its p99 wait the measured one is, where both are among the figures and it says much."""
    measured, simulated = found.get("wait_p99_s"), found.get("ideal_p99_s")
    if not isinstance(measured, float) or not isinstance(simulated, float) or simulated <= EMPTY:
        return {}
    return {"wait_p99_ratio": measured / simulated}
