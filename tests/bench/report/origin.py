# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the page's figures come from: which systems in which versions, on which machine, when, from which revision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench import scenarios
from bench.report.tables import label, plain
from bench.systems import REGISTRY

Known = Mapping[str, Mapping[str, Any]]
"""What is published, by scenario: {"run": head of its run, "points": […]}."""


def by_value(values: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """(what, its value) → the different values, each with all that have it."""
    found: dict[str, list[str]] = {}
    for name, value in values:
        found.setdefault(value, []).append(name)
    return found


def said(values: dict[str, list[str]]) -> str:
    """One value alone; of several each with the parts that it holds for."""
    if len(values) == 1:
        return next(iter(values))
    return "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())


def systems(known: Known) -> str:
    """All systems with their versions, settings and what they do when all is busy or a node dies."""
    lines = []
    for name in REGISTRY:
        if name == "direct":
            continue
        versions = by_value(
            (scenarios.load(part).TITLE, each["run"]["versions"][name])
            for part, each in known.items()
            if name in each["run"]["versions"]
        )
        missing = [each["run"]["missing"][name] for each in known.values() if name in each["run"]["missing"]]
        if not versions and not missing:
            continue
        about = [each["run"]["about"][name] for each in known.values() if name in each["run"]["about"]]
        version = said(versions) if versions else f"not measured: {missing[-1]}"
        lines.append([label(name), version.replace("|", "/"), about[-1].replace("|", "/") if about else ""])
    return (
        plain(["system", "version", "what it does when all is busy, and when a node dies"], lines)
        + "\nWhat a system does when a node *hangs* is its documented behaviour: no part above measures it.\n"
    )


def machine(known: Known) -> str:
    """A column for each machine that something was measured on; as a rule that is one."""
    found = by_value(
        (scenarios.load(part).TITLE, "\n".join(f"{name}\t{value}" for name, value in each["run"]["machine"].items()))
        for part, each in known.items()
    )
    machines = [dict(line.split("\t", 1) for line in text.splitlines()) for text in found]
    heads = ["machine", *("" if len(found) == 1 else ", ".join(parts) for parts in found.values())]
    names = dict.fromkeys(name for each in machines for name in each)
    lines = [[name, *(each.get(name, "") for each in machines)] for name in names]
    return plain(heads, [line for line in lines if any(line[1:])])


def runs(known: Known) -> str:
    """When, how and from which revision each scenario was measured last; a run that was interrupted takes days."""
    lines = []
    for name in scenarios.names():
        if name not in known:
            continue
        run, points = known[name]["run"], known[name]["points"]
        dates = sorted(point.get("date") or run["date"] for point in points) or [run["date"]]
        revisions = dict.fromkeys(point.get("revision") or run["revision"] for point in points)
        when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
        lines.append(
            [scenarios.load(name).TITLE, when, run["form"], run["command"], ", ".join(revisions) or run["revision"]]
        )
    return plain(["part", "measured", "form", "command", "revision"], lines)
