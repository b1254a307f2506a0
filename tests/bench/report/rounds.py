# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same was measured several times, with other arrivals: one row of all rounds, and how far they are apart."""

from __future__ import annotations

import collections
import re
import statistics
from collections.abc import Sequence

from bench.point import Figures, Point, Row

ROUND = "round"
ERRORS = "errors"  # as "4 x 503 overloaded; 1 x timeout"
SHARES = "shares"  # as "n1 36 %, n2 64 %"
# They add up over the rounds: a median would hide the one round in which requests failed.
COUNTS = {"requests", "failed", "not_begun_failed", "truncated_told", "truncated_silent", "bad"}


def point(row: Row) -> Point:
    """What was measured, whichever round it was."""
    settings = {name: value for name, value in row.point.settings if name != ROUND}
    return Point.of(row.point.scenario, row.point.system, **settings)


def rounds(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ only in their round together, in the order of the first of each."""
    found: dict[Point, list[Row]] = {}
    for row in rows:
        found.setdefault(point(row), []).append(row)
    return list(found.values())


def merged(rows: Sequence[Row]) -> list[Row]:
    """Rows that differ only in their round as one: the median of numbers, the sum of counts, errors added up by kind,
    nodes' shares as the mean, of other texts the first that says something; a figure that only some rounds have is that
    of those. `rounds` is how many there were.
    """
    return [Row(point(group[0]), {**figures(group), "rounds": len(group)}) for group in rounds(rows)]


def figures(group: Sequence[Row]) -> Figures:
    found: Figures = {}
    for name in dict.fromkeys(name for row in group for name in row.figures):
        values = [row.figures[name] for row in group if row.figures.get(name) is not None]
        texts = [value for value in values if isinstance(value, str)]
        numbers = [value for value in values if not isinstance(value, str)]
        # Among numbers a text says what no number can, as "not within the run".
        if name == ERRORS:
            found[name] = added_up(texts)
        elif name == SHARES:
            found[name] = on_average(texts)
        elif texts:
            found[name] = next((text for text in texts if text), "")
        elif numbers:
            found[name] = sum(numbers) if name in COUNTS else statistics.median(numbers)
    return found


def added_up(texts: Sequence[str]) -> str:
    """Errors of several rounds by kind, the most frequent first."""
    counted: collections.Counter[str] = collections.Counter()
    for each in "; ".join(filter(None, texts)).split("; "):
        if each:
            count, kind = each.split(" x ", 1)
            counted[kind] += int(count)
    return "; ".join(f"{count} x {kind}" for kind, count in counted.most_common())


def on_average(texts: Sequence[str]) -> str:
    """Each node's share in several rounds."""
    found: dict[str, list[int]] = {}
    for text in texts:
        for node, part in re.findall(r"(\S+) (\d+) %", text):
            found.setdefault(node, []).append(int(part))
    return ", ".join(f"{node} {sum(parts) / len(texts):.0f} %" for node, parts in found.items())


def spread_of(rows: Sequence[Row], name: str) -> tuple[float, float, float] | None:
    """Median, least and most of a figure over these rows, in its unit; nothing where no row has it as a number."""
    values = [value for row in rows if isinstance(value := row.get(name), (int, float))]
    return (statistics.median(values), min(values), max(values)) if values else None
