# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients saw: from the results of a load to figures."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable

from bench.point import Figures
from load.client import Ask, Result, share


@dataclasses.dataclass(frozen=True)
class Objective:
    """What makes an answer a good one. Seconds to the first token; mean seconds between tokens."""

    first: float
    gap: float

    def met(self, result: Result) -> bool:
        mean = sum(result.gaps) / len(result.gaps) if result.gaps else 0.0
        return result.ok and result.token <= self.first and mean <= self.gap


OBJECTIVE = Objective(first=1.0, gap=0.075)  # the slowest node's gap is 0.05, and jitter must not decide


def broken(result: Result) -> bool:
    """Had its answer begun when it failed?"""
    return not result.ok and bool(result.first) and result.ending in {"error_event", "silent"}


def kinds(results: Iterable[Result]) -> str:
    """Errors by kind, the most frequent first."""

    def kind(result: Result) -> str:
        if broken(result):
            return "stream broken, " + ("told" if result.ending == "error_event" else "silently")
        if result.status and result.status != 200:
            return f"{result.status} {result.code}".strip()
        return result.error.split(":")[0] or result.ending

    counted = collections.Counter(kind(result) for result in results if not result.ok)
    return "; ".join(f"{count} x {name}" for name, count in counted.most_common())


def spread(name: str, values: list[float], unit: str = "s") -> Figures:
    """Mean, p50, p95, p99; in seconds, or milliseconds of seconds given."""
    factor = 1000 if unit == "ms" else 1
    if not values:
        return {}
    return {
        f"{name}_mean_{unit}": factor * sum(values) / len(values),
        f"{name}_p50_{unit}": factor * share(values, 0.5),
        f"{name}_p95_{unit}": factor * share(values, 0.95),
        f"{name}_p99_{unit}": factor * share(values, 0.99),
    }


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a load that is looked at, by the clock that results are dated with; else all of it, to its end."""

    begin: float
    end: float

    @classmethod
    def of(cls, results: list[Result], asks: list[Ask], begin: float, end: float) -> Window:
        """begin, end: seconds from the load's own beginning, as the asks' dues."""
        dues = {ask.tag: ask.due for ask in asks}
        zero = min((result.due - dues[result.tag] for result in results), default=0.0)
        return cls(zero + begin, zero + end)

    def due(self, results: list[Result]) -> list[Result]:
        """Those that were due within it."""
        return [result for result in results if self.begin <= result.due < self.end]

    def ended(self, results: list[Result]) -> list[Result]:
        """Those that had their answer, or failed, within it."""
        return [result for result in results if self.begin <= result.due + result.total < self.end]


def whole(results: list[Result]) -> Window:
    """From the first moment due to beyond the last answer."""
    begin = min((result.due for result in results), default=0.0)
    end = max((result.due + result.total for result in results), default=0.0)
    return Window(begin, math.nextafter(end, math.inf))


def summary(results: list[Result], window: Window | None = None) -> Figures:
    """Failures are those of the whole load; times are of what was due within the window, rates of what ended there."""
    window = window or whole(results)
    bad = [result for result in results if not result.ok]
    looked = window.due(results)
    good = [result for result in looked if result.ok]
    ended = window.ended(results)
    span = window.end - window.begin
    return {
        "requests": len(results),
        "failed": len(bad),
        "truncated_told": sum(broken(r) and r.ending == "error_event" for r in bad),
        "truncated_silent": sum(broken(r) and r.ending == "silent" for r in bad),
        "errors": kinds(results),
        "late_p99_ms": 1000 * share([result.late for result in results], 0.99),
        "answered_per_s": sum(r.ok for r in ended) / span if span else 0.0,
        "goodput_per_s": sum(map(OBJECTIVE.met, ended)) / span if span else 0.0,
        "goodput_percent": 100 * sum(map(OBJECTIVE.met, looked)) / max(1, len(looked)),
        **spread("ttft", [r.token for r in good]),
        **spread("e2e", [r.total for r in good]),
        **spread("gap", [gap for r in good for gap in r.gaps], "ms"),
    }
