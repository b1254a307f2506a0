# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Did the client send when it should have? Where it did not, it is the client that was measured."""

from __future__ import annotations

from bench.point import Row

BOUND = 5.0  # ms


def flagged(rows: list[Row]) -> list[str]:
    """A line for each measurement in which the client was late, of those that know (late_p99_ms)."""
    return [
        f"the client itself was late in {row.point.key}: p99 {row.get('late_p99_ms'):.3g} ms"
        for row in rows
        if row.get("late_p99_ms") is not None and row.get("late_p99_ms") > BOUND
    ]
