# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which points a form of the benchmark means, in which order."""

from __future__ import annotations

import itertools

from bench import scenarios
from bench.point import Point
from bench.systems import REGISTRY

OURS = "affinity"
POLICIES = (OURS, "least_busy", "weighted_round_robin")
SHORT = ("client", "overhead", "streams", "sweep", "multi_turn", "failover")
SHORT_SYSTEMS = (OURS, "haproxy", "litellm", "nginx_plain")  # the first three that can run


def turns(points: list[Point]) -> list[Point]:
    """The systems of one setting follow each other, and another one is the first each time."""
    ordered = []
    settings = list(dict.fromkeys(point.settings for point in points))
    for number, setting in enumerate(settings):
        group = [point for point in points if point.settings == setting]
        start = number % len(group)
        ordered += group[start:] + group[:start]
    return ordered


def plan(full: bool, systems: list[str], names: list[str]) -> list[Point]:
    return list(itertools.chain.from_iterable(turns(scenarios.load(name).points(full, systems)) for name in names))


def chosen(full: bool, wanted: list[str]) -> tuple[list[str], dict[str, str]]:
    """Systems that take part, and by name why others cannot. wanted: by name; empty: what the form means.

    Asking a client's peer directly takes part always: some scenarios look at nothing else.
    """
    reasons: dict[str, str] = {}
    names: list[str] = []
    for name in wanted or (list(REGISTRY) if full else SHORT_SYSTEMS):
        if name == "direct" or (not wanted and not full and len(names) == 3):
            continue
        if name not in REGISTRY:
            reasons[name] = "there is no such system"
        elif why := REGISTRY[name]().missing():
            reasons[name] = why
        else:
            names.append(name)
    return ["direct", *names], reasons
