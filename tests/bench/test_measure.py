# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From results to figures."""

from __future__ import annotations

from typing import Any

import pytest
from bench.measure.answers import OBJECTIVE, kinds, summary
from bench.measure.engines import by_name, hits, shares, waits
from bench.measure.timeline import recovery, steps
from load.client import Ask, Result, chat
from load.ideal import Arrival, Server, ideal
from simulated.fleet import Spec


def done(due: float, token: float = 0.1, total: float = 0.5, **fields: Any) -> Result:
    fields = {"tag": f"q{due}", "status": 200, "ending": "done", "first": token, "tokens": 1, **fields}
    return Result(f"r{due}", due, token=token, total=total, **fields)


# The ideal queue


def test_ideal_queue_is_first_come_first_served() -> None:
    arrivals = [Arrival(0, 1), Arrival(0.1, 1), Arrival(0.2, 1)]
    assert ideal(arrivals, [Server()]) == pytest.approx([0, 0.9, 1.8])
    assert ideal(arrivals, [Server(), Server()]) == pytest.approx([0, 0, 0.8])


def test_ideal_queue_takes_the_fastest_that_is_free() -> None:
    arrivals = [Arrival(0, 1), Arrival(0.1, 1), Arrival(0.6, 1)]
    # The first goes to the fast one, which is done at 0.5 and takes the third at once.
    assert ideal(arrivals, [Server(1), Server(2)]) == pytest.approx([0, 0, 0])
    assert ideal([*arrivals[:2], Arrival(0.2, 1)], [Server(1), Server(2)]) == pytest.approx([0, 0, 0.3])


def test_ideal_queue_lets_no_busy_model_block_an_idle_one() -> None:
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


def test_summary_of_nothing_but_failures() -> None:
    figures = summary([Result("a", 0, status=502, ending="status", total=0.1)])
    assert figures["failed_percent"] == 100
    assert "ttft_mean_s" not in figures


# What engines saw


def log(*entries: tuple[str, str, float, float]) -> dict[str, Any]:
    reports: dict[str, Any] = {}
    for node, name, start, end in entries:
        entry = {"says": name, "start": start, "end": end, "outcome": "done", "cached": 100}
        reports.setdefault(node, {"log": []})["log"].append(entry)
    return by_name(reports)


def test_waits_are_beside_those_of_the_ideal_queue() -> None:
    asks = [Ask(0, chat(), tag="q0"), Ask(1, chat(), tag="q1")]
    results = [done(10, tag="q0"), done(11, tag="q1")]
    # On a node of half the speed each takes 2 s; the second starts 0.2 s after the first has ended.
    seen = log(("n1", "q0", 10.0, 12.0), ("n1", "q1", 12.2, 14.2))
    figures = waits(results, asks, seen, [Spec("n1", "127.0.0.1", slots=1, speed=0.5)])
    assert figures["wait_p99_s"] == pytest.approx(1.2)
    assert figures["ideal_p99_s"] == pytest.approx(1.0)
    assert figures["wait_p99_ratio"] == pytest.approx(1.2)


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
