# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From rows to lines of the page: rounds become one, verdicts say what is shown, and who is better is named."""

from __future__ import annotations

from bench.point import Figures, Point, Row
from bench.report.rounds import merged, spread_of


def row(scenario: str, system: str, figures: Figures, **settings: str | float) -> Row:
    return Row(Point.of(scenario, system, **settings), figures)


def test_rounds_become_one_row() -> None:
    rows = [
        *(row("sweep", "haproxy", {"x_s": x, "failed": n, "errors": e}, load=0.9, round=i)
          for i, (x, n, e) in enumerate(((1.0, 0, ""), (9.0, 4, "4 x 503"), (2.0, 0, "")))),
        row("sweep", "haproxy", {"x_s": 5.0, "failed": 1, "errors": ""}, load=0.5, round=0),
        row("sweep", "affinity", {"x_s": 6.0}, load=0.9),
    ]  # fmt: skip
    three, alone, before = merged(rows)
    assert three.point == Point.of("sweep", "haproxy", load=0.9)
    assert three.figures == {"x_s": 2.0, "failed": 4, "errors": "4 x 503", "rounds": 3}
    assert (alone.get("x_s"), alone.get("rounds")) == (5.0, 1)
    assert before.figures == {"x_s": 6.0, "rounds": 1}


def test_a_round_without_a_figure_is_left_out_and_a_text_is_not_averaged() -> None:
    seen: list[float | str] = [1.0, "not within the run", 3.0]
    rows = [row("f", "a", {"y_s": y}, round=i) for i, y in enumerate(seen)]
    assert merged([*rows, row("f", "a", {}, round=3)])[0].figures == {"y_s": "not within the run", "rounds": 4}
    assert spread_of(rows, "y_s") == (2.0, 1.0, 3.0)
    assert spread_of(rows, "z_s") is None
