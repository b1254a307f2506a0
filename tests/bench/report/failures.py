# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many requests failed: one figure, whatever a scenario calls it."""

from __future__ import annotations

import re

from bench.point import Row


def failures(row: Row, figure: str = "") -> float:
    """Of a row; where it holds several parts with a count each (16kB_1_bad), of the part that this figure is of.

    Times of those that were answered say little where others were refused.
    """
    names = [name for name in row.figures if name.endswith("_bad") and figure.startswith(name.removesuffix("bad"))]
    counts = [row.get(name) or 0 for name in names]
    refused = [int(count) for count in re.findall(r"(\d+) x ", str(row.get("refused") or ""))]
    return next((row.get(name) for name in ("failed", "bad") if row.get(name) is not None), sum(counts + refused))
