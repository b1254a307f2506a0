# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of a real engine's answers. The engine itself runs in the full benchmark only."""

from __future__ import annotations

import json

import pytest
from bench.point import Figures, Point, Row
from bench.real import calibration, chats, replay
from bench.report import plots
from bench.scenarios import real_engine
from load.client import Ask, Result


def answer(tag: str, prompt: int, cached: int, token: float) -> Result:
    usage = {"prompt_tokens": prompt, "prompt_tokens_details": {"cached_tokens": cached}}
    return Result(tag, 0, tag, 200, "done", token=token, total=token + 1, usage=usage)


def test_held_counts_what_the_turn_before_had_sent() -> None:
    first = Ask(0, {}, "0.0")
    asks = [first, Ask(0, {}, "0.1", after=first)]
    found = chats.summary(asks, [answer("0.1", 300, 90, 1.0), answer("0.0", 100, 0, 3.0)])
    assert found["held_part"] == 0.9
    assert found["ttft_mean_s"] == 2.0
    assert found["later_ttft_mean_s"] == 1.0
    assert (found["prompt_tokens"], found["cached_tokens"]) == (400, 90)


def test_conversations_grow_and_fit_the_context() -> None:
    asks = chats.conversations(1)
    assert len(asks) == chats.CHATS * chats.TURNS
    for ask in asks:
        if ask.after is not None:
            before = ask.after.body["messages"]
            assert ask.body["messages"][: len(before)] == before
        assert sum(len(m["content"].split()) for m in ask.body["messages"]) < 0.7 * 2048


def test_the_simulated_engine_is_measured_where_it_is_off_most() -> None:
    curve = [
        {"tokens": 1, "real_ms": 100.0, "simulated_ms": 110.0},
        {"tokens": 2, "real_ms": 200.0, "simulated_ms": 150.0},
    ]
    assert calibration.apart(curve) == {"most_apart_percent": pytest.approx(25)}


def test_both_policies_take_turns_whoever_else_takes_part() -> None:
    turns = ["affinity", "least_busy"]
    alone = ["direct"] * 3
    assert [point.system for point in real_engine.points(False, ["haproxy"])] == [*alone, *turns]
    assert [point.system for point in real_engine.points(True, [])] == [*alone, *turns, *turns]


def test_the_page_shows_both_curves_and_the_gain() -> None:
    base = {"ttft_p95_s": 2.0, "later_ttft_mean_s": 1.0, "held_part": 0.5, "cached_tokens": 1, "prompt_tokens": 2}
    rows = [
        Row(Point.of("real_engine", name, part="chats", seed=1), {**base, "ttft_mean_s": mean})
        for name, mean in (("affinity", 1.0), ("least_busy", 2.0))
    ]
    curve = json.dumps([{"tokens": 32, "real_ms": 400.0, "simulated_ms": 401.0}])
    rows.append(Row(Point.of("real_engine", "direct", part="prefill"), {"curve": curve, "most_apart_percent": 7.4}))
    text = real_engine.section(rows)
    assert "50 % sooner" in text
    assert "| 32 | 400 ms | 401 ms |" in text
    assert "At most 7 % off." in text
    assert "50 % sooner" not in real_engine.section(rows[:1])


def test_the_simulated_engine_is_fitted_by_a_straight_line() -> None:
    assert calibration.straight((100, 0.3), (1100, 2.3)) == (pytest.approx(0.1), pytest.approx(0.002))
    assert calibration.straight((100, 0.1), (200, 0.3))[0] == 0


def test_the_page_shows_what_each_engine_held() -> None:
    names = ("held_part", "ttft_mean_s", "later_ttft_mean_s")
    figures: Figures = {f"{engine}_{name}": 0.5 for engine in ("real", *replay.CACHES) for name in names}
    text = real_engine.section([Row(Point.of("real_engine", "direct", part="replay"), figures)])
    assert "| simulated, slot | 50 % | 0.50 s | 0.50 s |" in text


def test_both_curves_make_a_plot() -> None:
    prefill = [{"tokens": 32 * n, "real_ms": 40.0 * n, "simulated_ms": 41.0 * n} for n in (1, 2)]
    decode = [{"streams": n, "real_tokens_per_s": 9.0 / n, "simulated_tokens_per_s": 9.0} for n in (1, 2)]
    rows = [
        Row(Point.of("real_engine", "direct", part=part), {"curve": json.dumps(curve)})
        for part, curve in (("prefill", prefill), ("decode", decode))
    ]
    ((name, figure),) = plots.drawn({"real_engine": rows})
    assert f"benchmarks/{name}.svg" in real_engine.section(rows)
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["llama.cpp", "simulated"]
    assert plots.drawn({"real_engine": rows[:1]}) == []
