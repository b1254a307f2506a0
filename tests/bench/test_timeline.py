# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When all is well again: what counts, and what says nothing."""

from __future__ import annotations

from bench.measure.timeline import recovery, steps
from load.client import Result

EVENT = 3.0


def stream(due: float, token: float = 0.1) -> Result:
    return Result(f"r{due}", due, status=200, ending="done", first=token, token=token, tokens=1, total=token)


def failure(due: float, total: float = 0.1) -> Result:
    return Result(f"x{due}", due, total=total, error="OSError: reset")


def streams(begin: float, end: float, token: float = 0.1) -> list[Result]:
    """Ten in a second."""
    return [stream(begin + 0.1 * i, token) for i in range(round(10 * (end - begin)))]


def test_nothing_that_anybody_noticed() -> None:
    figures = recovery(steps(streams(0, 10), 0, 10), EVENT)
    assert (figures["last_failure_s"], figures["recovered_s"]) == (0, 0)


def test_calm_between_two_failures_is_no_recovery() -> None:
    figures = recovery(steps([*streams(0, 12), failure(3.1), failure(7.2)], 0, 12), EVENT)
    assert (figures["last_failure_s"], figures["recovered_s"]) == (4.5, 4.5)


def test_steps_in_which_nothing_was_asked_say_nothing() -> None:
    failing = [failure(3 + 0.1 * i) for i in range(70)]
    figures = recovery(steps([*streams(0, 3), *failing], 0, 30), EVENT)
    assert figures["recovered_s"] == "not within the run", "after the load's end there is only silence"
    gap = recovery(steps([*streams(0, 3), failure(3.1), *streams(3.5, 4), *streams(5, 9)], 0, 9), EVENT)
    assert gap["recovered_s"] == 0.5, "a gap among good ones does not begin it anew"


def test_slow_first_tokens_are_no_recovery() -> None:
    figures = recovery(steps([*streams(0, 3), *streams(3, 5, token=2.0), *streams(5, 12)], 0, 12), EVENT)
    assert (figures["last_failure_s"], figures["recovered_s"]) == (0, 2)
