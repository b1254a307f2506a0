# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Markdown tables of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.point import Row
from bench.systems import REGISTRY

Column = tuple[str, str | Callable[[Row], object]]
"""Its head, and a setting's or a figure's name or what makes the cell."""


def label(system: str) -> str:
    """A system's name on the page; ours stand out."""
    known = REGISTRY.get(system)
    return (known.label if known else "") or system


def say(value: object) -> str:
    """Three digits are as many as such measurements bear."""
    if value is None:
        return "-"
    if not isinstance(value, (int, float)):
        return str(value)
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cell(row: Row, column: Column) -> str:
    if column[0] == "system":
        name = label(row.system)
        return f"**{name}**" if row.system == "affinity" else name
    take = column[1]
    return say(take(row) if callable(take) else row.get(take))


def plain(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    out += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(out) + "\n"


def table(rows: Sequence[Row], *columns: Column) -> str:
    """A line a row; the column "system" is its label."""
    return plain([head for head, _ in columns], [[cell(row, column) for column in columns] for row in rows])


def order(rows: Sequence[Row], *settings: str) -> list[Row]:
    """By these settings, then the systems as they are registered, which begins with ours."""
    places = list(REGISTRY)

    def place(row: Row) -> tuple[object, ...]:
        return (*(row.get(name) for name in settings), places.index(row.system) if row.system in places else 99)

    return sorted(rows, key=place)
