# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the engines saw: waits for a slot beside those of the ideal queue, shares of the nodes, hits of their caches."""

from __future__ import annotations

import collections
from typing import Any

from bench.measure.answers import spread
from bench.point import Figures
from load.client import Ask, Result, share
from load.ideal import Arrival, Server, ideal
from simulated.fleet import Spec

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


def waits(results: list[Result], asks: list[Ask], log: Log, specs: list[Spec]) -> Figures:
    """Seconds from the moment a request was due until an engine began to work on it, of those that were answered.

    The ideal queue gets the same arrivals, with the service times that were measured (times the node's speed).
    """
    speed = {spec.name: spec.speed for spec in specs}
    models = {ask.tag: ask.body["model"] for ask in asks}
    rows = sorted((r.due, r.tag) for r in results if r.ok and r.tag in log)
    if not rows:
        return {}
    seen = [log[name]["start"] - due for due, name in rows]
    arrivals = [
        Arrival(due, (log[name]["end"] - log[name]["start"]) * speed[log[name]["node"]], models[name])
        for due, name in rows
    ]
    slots = [Server(spec.speed, tuple(spec.models)) for spec in specs for _ in range(spec.slots)]
    best = ideal(arrivals, slots)
    figures = {**spread("wait", seen), **spread("ideal", best)}
    # Where the ideal queue is empty too, a ratio says nothing.
    if share(best, 0.99) > 0.05:
        figures["wait_p99_ratio"] = share(seen, 0.99) / share(best, 0.99)
    return figures


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
