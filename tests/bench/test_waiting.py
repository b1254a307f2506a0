# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""That a thousand had to wait is seen in the engine's log, not taken for granted."""

from __future__ import annotations

from typing import Any

import pytest
from bench.scenarios.waiting import SLOTS, held, holders
from simulated.fleet import SERVICE, prompt_of, says

LONG: dict[str, Any] = {"start": 1.0, "outcome": "running"}  # it has not ended yet
BEGIN, END = 6.0, 26.0


def test_slots_that_were_in_use_all_the_time() -> None:
    holders([LONG] * SLOTS + [{"got": 2.0}] * 3, BEGIN, END)
    holders([{**LONG, "end": END}] * SLOTS, BEGIN, END)


@pytest.mark.parametrize(
    "log",
    [
        [],
        [LONG] * (SLOTS - 1),
        [*[LONG] * (SLOTS - 1), {**LONG, "start": BEGIN + 1}],
        [*[LONG] * (SLOTS - 1), {**LONG, "end": END - 1}],
    ],
    ids=["nobody", "one free", "late", "early"],
)
def test_slots_that_were_free_for_a_while(log: list[dict[str, Any]]) -> None:
    with pytest.raises(RuntimeError, match="nothing had to wait"):
        holders(log, BEGIN, END)


def test_the_service_time_survives_a_proxy_that_drops_unknown_fields() -> None:
    body = held("holds1", 28.5, stream=True).body
    assert set(body) == {"model", "messages", "stream"}
    assert says(body) == "holds1"
    found = SERVICE.search(prompt_of(body))
    assert found
    assert found[1] == "28.5"
