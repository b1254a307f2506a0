# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From results to figures."""

from __future__ import annotations

from typing import Any

import pytest
from bench.measure import central
from bench.measure.answers import OBJECTIVE, Window, kinds, summary
from bench.measure.engines import by_name, hits, shares, waits
from bench.measure.timeline import recovery, steps
from load.client import Ask, Result, chat
from load.ideal import Arrival, Server, ideal
from simulated.fleet import Spec


def done(due: float, token: float = 0.1, total: float = 0.5, **fields: Any) -> Result:
    fields = {"tag": f"q{due}", "status": 200, "ending": "done", "first": token, "tokens": 1, **fields}
    return Result(f"r{due}", due, token=token, total=total, **fields)


# The central queue


def test_central_queue_is_first_come_first_served() -> None:
    arrivals = [Arrival(0, 1), Arrival(0.1, 1), Arrival(0.2, 1)]
    assert ideal(arrivals, [Server()]) == pytest.approx([0, 0.9, 1.8])
    assert ideal(arrivals, [Server(), Server()]) == pytest.approx([0, 0, 0.8])


def test_central_queue_takes_the_fastest_that_is_free() -> None:
    arrivals = [Arrival(0, 1), Arrival(0.1, 1), Arrival(0.6, 1)]
    # The first goes to the fast one, which is done at 0.5 and takes the third at once.
    assert ideal(arrivals, [Server(1), Server(2)]) == pytest.approx([0, 0, 0])
    assert ideal([*arrivals[:2], Arrival(0.2, 1)], [Server(1), Server(2)]) == pytest.approx([0, 0, 0.3])


def test_central_queue_lets_no_busy_model_block_an_idle_one() -> None:
    arrivals = [Arrival(0, 1, "a"), Arrival(0.1, 1, "a"), Arrival(0.2, 1, "b")]
    assert ideal(arrivals, [Server(1, ("a",)), Server(1, ("b",))]) == pytest.approx([0, 0.9, 0])


# What clients saw


def test_summary_counts_what_failed_by_kind() -> None:
    results = [
        done(0),
        done(1, token=OBJECTIVE.first + 0.1),
        done(2, gaps=[OBJECTIVE.gap * 2]),
        Result("a", 3, status=503, ending="status", code="queue_full", first=0.1, total=0.1),
        Result("b", 4, error="ConnectionResetError: by peer", total=0.1),
        Result("c", 5, status=200, ending="silent", first=0.2, total=0.3),
        Result("d", 6, status=200, ending="error_event", first=0.2, total=1.0),
    ]
    figures = summary(results)
    assert figures["requests"] == 7
    assert figures["failed"] == 4
    assert (figures["truncated_told"], figures["truncated_silent"]) == (1, 1)
    assert figures["goodput_per_s"] == pytest.approx(1 / 7)
    assert figures["answered_per_s"] == pytest.approx(3 / 7)
    expected = {
        "1 x 503 queue_full",
        "1 x ConnectionResetError",
        "1 x stream broken, silently",
        "1 x stream broken, told",
    }
    assert set(kinds(results).split("; ")) == expected


def test_times_of_the_lead_in_do_not_count_but_its_failures_do() -> None:
    asks = [Ask(float(at), chat(), tag=f"q{at}") for at in range(10)]
    results = [done(100.0 + ask.due, tag=ask.tag, token=0.9 if ask.due < 2 else 0.1) for ask in asks]
    results[0] = Result("x", 100.0, tag="q0", error="OSError: reset", total=0.1)
    results[9].total = 3.0  # it is due within the time, and has its answer after it
    window = Window.of(results, asks, 2, 10)
    assert (window.begin, window.end) == (102, 110)
    figures = summary(results, window)
    assert (figures["requests"], figures["failed"]) == (10, 1)
    assert figures["ttft_p99_s"] == pytest.approx(0.1)
    assert figures["e2e_p99_s"] == pytest.approx(3.0)
    assert figures["goodput_percent"] == 100
    assert figures["goodput_per_s"] == pytest.approx(7 / 8)


def test_summary_says_how_late_the_client_was() -> None:
    assert summary([done(i, late=0.02 if i == 5 else 0.001) for i in range(10)])["late_p99_ms"] == pytest.approx(20)


def test_summary_of_nothing_but_failures() -> None:
    figures = summary([Result("a", 0, status=502, ending="status", total=0.1)])
    assert (figures["requests"], figures["failed"]) == (1, 1)
    assert "ttft_mean_s" not in figures


# What engines saw


def log(*entries: tuple[str, str, float, float]) -> dict[str, Any]:
    reports: dict[str, Any] = {}
    for node, name, start, end in entries:
        entry = {"says": name, "start": start, "end": end, "outcome": "done", "cached": 100}
        reports.setdefault(node, {"log": []})["log"].append(entry)
    return by_name(reports)


def test_waits_are_those_of_what_was_due_within_the_window() -> None:
    results = [done(10, tag="q0"), done(11, tag="q1"), done(12, tag="q2")]
    seen = log(("n1", "q0", 10.9, 12.0), ("n1", "q1", 12.2, 14.2), ("n1", "q2", 12.1, 12.5))
    figures = waits(results, seen, Window(10.5, 20))
    assert figures["wait_p99_s"] == pytest.approx(1.2)
    assert figures["wait_mean_s"] == pytest.approx(0.65)


# The central queue beside it


def sized(due: float, characters: int, tokens: int, model: str = "m") -> Ask:
    """With the prompt's length just so: its role stands in the prompt, too."""
    return Ask(due, chat(text="x" * (characters - len("<user>")), model=model, max_tokens=tokens))


def test_central_queue_has_the_work_of_all_that_was_asked() -> None:
    # One slot of half the speed: 0.02 s for 1,000 characters read, 0.025 s between tokens, so 2 x (1 + 1) s each.
    asks = [sized(due, 50_000, 41) for due in (0.0, 1.0)]
    figures = central.figures(asks, [Spec("n1", "127.0.0.1", slots=1, speed=0.5)], 0)
    assert (figures["ideal_p99_s"], figures["ideal_mean_s"]) == pytest.approx((3, 1.5))
    assert figures["ideal_ttft_p99_s"] == pytest.approx(3 + 2)
    assert figures["ideal_e2e_p99_s"] == pytest.approx(3 + 4)
    assert figures["ideal_e2e_mean_s"] == pytest.approx(1.5 + 4)
    # The first one counts no more, but is still in the second one's way.
    assert central.figures(asks, [Spec("n1", "127.0.0.1", slots=1, speed=0.5)], 0.5)["ideal_mean_s"] == pytest.approx(3)


def test_central_queue_counts_with_the_speed_of_the_slot_that_each_gets() -> None:
    specs = [Spec("slow", "127.0.0.1", slots=1, speed=0.5), Spec("fast", "127.0.0.2", slots=1, speed=2)]
    figures = central.figures([sized(0, 50_000, 41), sized(0.1, 50_000, 41)], specs, 0)
    assert figures["ideal_e2e_mean_s"] == pytest.approx((1 + 4) / 2)
    assert figures["ideal_ttft_p99_s"] == pytest.approx(2)


def test_ratio_says_nothing_where_the_queue_is_empty() -> None:
    assert central.ratio({"wait_p99_s": 1.2, "ideal_p99_s": 1.0}) == pytest.approx({"wait_p99_ratio": 1.2})
    assert central.ratio({"wait_p99_s": 1.2, "ideal_p99_s": 0.01}) == {}
    assert central.ratio({"ideal_p99_s": 1.0}) == {}


def test_shares_and_hits_by_node() -> None:
    results = [done(1, tag="a"), done(2, tag="b"), done(3, tag="c")]
    seen = log(("n1", "a", 1, 2), ("n1", "b", 1, 2), ("n2", "c", 1, 2))
    assert shares(results, seen) == "n1 67 %, n2 33 %"
    assert hits(results, seen, {"a": 100, "b": 300}) == pytest.approx(0.5)


# When


def test_recovery_is_counted_from_the_event() -> None:
    good = [done(0.1 * i, token=0.1, total=0.2) for i in range(100)]
    slow = [done(4.0 + 0.1 * i, token=2.0, total=2.1) for i in range(10)]
    failed = [Result("x", 4.6, total=0.3, error="OSError: reset")]
    figures = recovery(steps(good + slow + failed, 0, 12), 4.0)
    assert figures["last_failure_s"] == pytest.approx(1.0)
    assert figures["recovered_s"] == pytest.approx(1.0)
    assert figures["worst_ttft_s"] == pytest.approx(2.0)


def test_who_fails_to_the_end_never_recovers() -> None:
    results = [done(0.1 * i) for i in range(30)]
    results += [Result("x", 3 + 0.1 * i, total=0.1, error="OSError: reset") for i in range(60)]
    assert recovery(steps(results, 0, 8), 3.0)["recovered_s"] == "not within the run"
