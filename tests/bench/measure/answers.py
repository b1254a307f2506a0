# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What clients saw: from the results of a load to figures."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable

from bench.point import Figures
from load.client import Result, share


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


def summary(results: list[Result]) -> Figures:
    """Of a whole load. Rates count from the first moment due to the last answer."""
    good = [result for result in results if result.ok]
    bad = [result for result in results if not result.ok]
    ends = [result.due + result.total for result in results]
    span = max(ends) - min(result.due for result in results) if results else 0.0
    fine = sum(map(OBJECTIVE.met, results))
    return {
        "requests": len(results),
        "failed": len(bad),
        "failed_percent": 100 * len(bad) / max(1, len(results)),
        "truncated_told": sum(broken(r) and r.ending == "error_event" for r in bad),
        "truncated_silent": sum(broken(r) and r.ending == "silent" for r in bad),
        "errors": kinds(results),
        "answered_per_s": len(good) / span if span else 0.0,
        "goodput_per_s": fine / span if span else 0.0,
        "goodput_percent": 100 * fine / max(1, len(results)),
        **spread("ttft", [r.token for r in good]),
        **spread("e2e", [r.total for r in good]),
        **spread("gap", [gap for r in good for gap in r.gaps], "ms"),
    }
