# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines saw: waits for a slot, shares of the nodes, hits of their caches."""

from __future__ import annotations

import collections
from typing import Any

from bench.measure.answers import Window, spread
from bench.point import Figures
from load.client import Result

Log = dict[str, dict[str, Any]]
"""Entry of an engine's log by the request's name."""


def by_name(reports: dict[str, dict[str, Any]]) -> Log:
    """Of each request the entry of the engine that answered it; `node` is that engine's name."""
    return {
        entry["says"]: {**entry, "node": node}
        for node, report in reports.items()
        for entry in report["log"]
        if entry["outcome"] == "done"
    }


def waits(results: list[Result], log: Log, window: Window) -> Figures:
    """Seconds from the moment a request was due until an engine began to work on it, of those that were answered."""
    return spread("wait", [log[r.tag]["start"] - r.due for r in window.due(results) if r.ok and r.tag in log])


def shares(results: list[Result], log: Log) -> str:
    """Of the answers, by node."""
    counted = collections.Counter(log[r.tag]["node"] for r in results if r.ok and r.tag in log)
    total = max(1, counted.total())
    return ", ".join(f"{node} {100 * count / total:.0f} %" for node, count in sorted(counted.items()))


def hits(results: list[Result], log: Log, could: dict[str, int]) -> float:
    """Of the characters that caches could have held, the share that they held. could: by request's name."""
    named = [r.tag for r in results if r.ok and r.tag in could and r.tag in log]
    possible = sum(could[name] for name in named)
    return sum(log[name]["cached"] for name in named) / possible if possible else 0.0
