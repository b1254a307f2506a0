# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cell of a table of merged rounds that also says how far the rounds are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.point import Row
from bench.report.rounds import point, rounds, spread_of
from bench.report.tables import say


def ranged(rows: Sequence[Row], name: str) -> Callable[[Row], str]:
    """Of the rows of single rounds: "median (least to most)" for their merged row, its own figure where no other is."""
    groups = {point(group[0]): group for group in rounds(rows)}

    def cell(row: Row) -> str:
        group = groups.get(row.point, [])
        found = spread_of(group, name)
        if found is None or len(group) == 1:
            return say(row.get(name))
        middle, least, most = map(say, found)
        return f"{middle} ({least} to {most})"

    return cell
