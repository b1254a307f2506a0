# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened when: answers and failures by half second, and how long it took until all was well again."""

from __future__ import annotations

import dataclasses
import json

from bench.measure.answers import broken
from bench.point import Figures
from load.client import Result

STEP = 0.5  # seconds
CALM = 3  # steps with quick first tokens, so that it counts as recovered
SLACK = 0.25  # seconds by which a first token may be later than usual; or by half


@dataclasses.dataclass
class Step:
    """Half a second. failed: not begun when they failed; cut: streams that broke. ttft: mean, of streams due in it."""

    answered: int = 0
    failed: int = 0
    cut: int = 0
    first: list[float] = dataclasses.field(default_factory=list)

    @property
    def ttft(self) -> float | None:
        return sum(self.first) / len(self.first) if self.first else None


def steps(results: list[Result], began: float, seconds: float) -> list[Step]:
    """By the moment when a request ended; its time to the first token by the moment it was due."""
    found = [Step() for _ in range(int(seconds / STEP) + 1)]

    def at(moment: float) -> Step:
        return found[min(max(0, int((moment - began) / STEP)), len(found) - 1)]

    for result in results:
        step = at(result.due + result.total)
        if result.ok:
            step.answered += 1
            if result.tokens:
                at(result.due).first.append(result.token)
        elif broken(result):
            step.cut += 1
        else:
            step.failed += 1
    return found


def recovery(timeline: list[Step], event: float) -> Figures:
    """Seconds from the event until the last failure, and until all was well again.

    Well: no later step has a failure, and in the next CALM steps the first tokens come about as soon as before the
    event: within SLACK, or half as much again. A step in which no stream was asked for says nothing.
    """
    hit = int(event / STEP)
    before = [value for step in timeline[:hit] for value in step.first]
    usual = sum(before) / len(before) if before else 0.0
    bound = max(1.5 * usual, usual + SLACK)
    bad = [i for i, step in enumerate(timeline) if i >= hit and (step.failed or step.cut)]
    safe = bad[-1] + 1 if bad else hit
    known = [(i, step.ttft <= bound) for i, step in enumerate(timeline) if i >= safe and step.ttft is not None]
    runs = (known[at : at + CALM] for at in range(len(known) - CALM + 1))
    back = next((run[0][0] for run in runs if all(well for _, well in run)), None)
    figures: Figures = {
        "usual_ttft_s": usual,
        "last_failure_s": safe * STEP - event if bad else 0.0,
        "recovered_s": "not within the run" if back is None else max(0.0, back * STEP - event),
        "worst_ttft_s": max((max(step.first) for step in timeline[hit:] if step.first), default=0.0),
    }
    return figures


def packed(timeline: list[Step]) -> str:
    """For the plot: JSON of [answered, failed, cut, mean time to the first token] by step."""
    return json.dumps(
        [[s.answered, s.failed, s.cut, None if s.ttft is None else round(s.ttft, 3)] for s in timeline],
        separators=(",", ":"),
    )
