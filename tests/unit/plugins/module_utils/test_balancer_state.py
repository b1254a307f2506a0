# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._balancer_state import (
    known_names,
    marks_on,
    peers_named,
    read_state,
)

ANSWER: dict[str, Any] = {
    "version": 3,
    "default_model": "m",
    "policy": "affinity",
    "peers": [
        {
            "name": "n1/a",
            "node": "n1",
            "busy": 1,
            "minute": {"requests_per_minute": 3, "timed_out": 0},
            "in_flight": [{"id": "r", "model": "m", "seconds": 1.5}],
            "drains": [{"owner": "operator", "reason": "", "since": 1, "name": "n1"}],
        },
        {"name": "n2", "node": "n2", "in_flight": {}, "drains": {}, "lacks": {}, "new": "field"},
    ],
    "drains": [{"name": "n1", "owner": "operator", "reason": ""}, {"name": "gone", "owner": "x", "reason": "y"}],
    "queue": {"waiting": 2, "sets": {}},
    "keys": {},
    "workers": [{"pid": 1, "held": 1}],
}


def test_every_field_is_there() -> None:
    state = read_state(ANSWER)
    one, two = state["nodes"]["n1"][0], state["nodes"]["n2"][0]
    assert set(one) == set(two)
    assert "new" not in two, "the form is what is documented"
    assert one["in_flight"] == [{"id": "r", "model": "m", "key": None, "seconds": 1.5, "ending": False}]
    assert (two["in_flight"], two["drains"], two["lacks"], two["since"]) == ([], [], [], None)
    assert state["queue"] == {"waiting": 2, "bytes": 0, "oldest": None, "drain_rate": 0, "sets": []}
    assert state["keys"] == []
    nothing = {"requests_per_minute": None, "answered_per_minute": None, "latency": None, "timed_out": None}
    assert one["minute"] == {**nothing, "requests_per_minute": 3, "timed_out": 0}
    assert (two["minute"], two["waiting"], state["minute"]) == (nothing, 0, nothing)


def test_lists_are_not_shared() -> None:
    read_state(ANSWER)["nodes"]["n2"][0]["models"].append("m")
    assert read_state(ANSWER)["nodes"]["n2"][0]["models"] == []


@pytest.mark.parametrize("answer", [{}, {"peers": {}, "drains": {}, "queue": [], "keys": None, "workers": 3}])
def test_a_balancer_without_a_table(answer: dict[str, Any]) -> None:
    state = read_state(answer)
    assert state["nodes"] == {}
    assert state["version"] == 0
    assert known_names(state) == []


def test_names() -> None:
    state = read_state(ANSWER)
    assert known_names(state) == ["n1", "n1/a", "n2"]
    assert [peer["name"] for peer in peers_named(state, "n1")] == ["n1/a"]
    assert [peer["name"] for peer in peers_named(state, "n1/a")] == ["n1/a"]
    assert peers_named(state, "n") == []
    assert marks_on(state, "n1") == {"operator": ""}
    assert marks_on(state, "n1/a") == {}, "the mark is on the node, not on the peer"
    assert marks_on(state, "gone") == {"x": "y"}
