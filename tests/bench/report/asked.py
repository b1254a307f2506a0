# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A line below a table: the load and the lengths that were really asked, which measure/offered.py finds."""

from __future__ import annotations

from collections.abc import Sequence

from bench.point import Row
from bench.report.rounds import spread_of
from bench.report.tables import say

LENGTHS = {
    "prompt_p50_tokens": "prompts p50",
    "prompt_p90_tokens": "p90",
    "answer_p50_tokens": "answers p50",
    "answer_p90_tokens": "p90",
}


def asked(rows: Sequence[Row]) -> str:
    """Of all rounds of a table; nothing where the rows do not say it, as those of older runs."""
    off = [100 * abs(found / row.get("load") - 1) for row in rows if (found := row.get("realised_load")) is not None]
    if not off:
        return ""
    lengths = [f"{said} {reach(rows, name)}" for name, said in LENGTHS.items() if spread_of(rows, name)]
    tail = f"; tokens of {', '.join(lengths)}" if lengths else ""
    return f"\nWhat was really asked: the work of each run is within {max(0.1, *off):.1f} % of its load{tail}.\n"


def reach(rows: Sequence[Row], name: str) -> str:
    """From the least to the most of a figure."""
    found = spread_of(rows, name)
    least, most = (say(round(value)) for value in found[1:]) if found else ("-", "-")
    return least if least == most else f"{least} to {most}"
