# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page says of loads: several rounds as one line, and the simulated queue beside the systems."""

from __future__ import annotations

import itertools

import pytest
from bench.measure import central
from bench.point import Point, Row
from bench.report.asked import asked
from bench.report.ranges import ranged
from bench.report.rounds import merged
from bench.scenarios import multi_turn, no_reuse, sweep


def row(system: str, turn: int, **figures: float | str) -> Row:
    return Row(Point.of("sweep", system, layout="equal", load=0.9, seconds=60, cv=1.0, round=turn), figures)


def lines(text: str, system: str) -> list[str]:
    return [line for line in text.splitlines() if f"| {system} |" in line]


def test_rounds_are_one_line_with_their_range() -> None:
    rows = [row("haproxy", turn, wait_p99_s=wait, requests=10) for turn, wait in enumerate((0.3, 0.1, 0.2))]
    (one,) = merged(rows)
    assert ranged(rows, "wait_p99_s")(one) == "0.2 (0.1 to 0.3)"
    assert ranged(rows, "ttft_p99_s")(one) == "-"
    assert ranged(rows[:1], "wait_p99_s")(merged(rows[:1])[0]) == "0.3"
    assert "| 0.2 (0.1 to 0.3) |" in lines(sweep.section(rows), "HAProxy, leastconn")[0]


def test_the_simulated_queue_is_a_line_of_each_load() -> None:
    simulated = {
        f"{name}_{part}_s": 0.125 for name, part in itertools.product(central.BESIDE, ("mean", "p50", "p95", "p99"))
    }
    rows = [row(system, turn, wait_p99_s=0.5, **simulated) for system in ("haproxy", "litellm") for turn in (0, 1)]
    (line,) = lines(sweep.section(rows), central.NAME)
    assert line.count("0.125") == 9


def test_rows_of_older_runs_have_no_line_of_what_they_do_not_say() -> None:
    old = Point.of("sweep", "haproxy", layout="equal", load=0.9, seconds=60, cv=1.0)
    text = sweep.section([Row(old, {"wait_p99_s": 0.5, "ideal_p99_s": 0.4})])
    assert not lines(text, central.NAME)
    assert "What was really asked" not in text
    for module in (multi_turn, no_reuse):
        point = Point.of(module.__name__.rpartition(".")[2], "haproxy", load=0.65, seconds=60)
        assert "What was really asked" not in module.section([Row(point, {"ttft_mean_s": 0.5})])


def test_chats_on_slots_with_caches_of_their_own_have_a_table_of_their_own() -> None:
    settings = [{"round": 0}, {"round": 1}, {"round": 0, "cache": "slot"}]
    rows = [Row(Point.of("multi_turn", "haproxy", load=0.65, **each), {"ttft_mean_s": 0.5}) for each in settings]  # type: ignore[arg-type]
    text = multi_turn.section(rows)
    assert [("to" in line) for line in lines(text, "HAProxy, leastconn")] == [True, False]
    assert multi_turn.SLOT in text
    assert multi_turn.SLOT not in multi_turn.section(rows[:2])


def test_what_was_asked_is_said_from_the_least_to_the_most() -> None:
    rows = [
        row("haproxy", turn, realised_load=load, prompt_p50_tokens=1000 * load)
        for turn, load in enumerate((0.9, 0.909))
    ]
    assert "within 1.0 % of its load; tokens of prompts p50 900 to 909." in asked(rows)


@pytest.mark.parametrize("full", [False, True])
def test_only_the_loads_of_the_targets_have_several_rounds(full: bool) -> None:
    points = [*sweep.points(full, ["affinity"]), *multi_turn.points(full, ["affinity"])]
    loads = {(point.scenario, point.get("load")) for point in points if point.get("round")}
    assert loads == ({("sweep", 0.9), ("multi_turn", 0.65)} if full else set())
