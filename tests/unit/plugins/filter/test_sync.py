# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.filter import sync

DIGEST = "sha256:" + "a" * 64
PEER: dict[str, Any] = {
    "name": "n1",
    "node": "n1",
    "engine": "ollama",
    "address": "192.0.2.1",
    "port": 8000,
    "models": [{"name": "m", "digest": DIGEST, "preload": True, "unit": "m"}],
}
STATS = {
    "models": [{"name": "m", "status": "ok", "digest": DIGEST, "held": True, "loaded": DIGEST}],
    "held": {DIGEST: 1},
}
INFO = {"nodes": {"n1": [{"name": "n1", "node": "n1", "state": "up", "models": ["m"], "lacks": []}]}, "drains": []}


@pytest.mark.parametrize(
    "result",
    [None, {}, {"failed": True, "nodes": {}}, {"unreachable": True}, {"skipped": True}],
)
def test_a_task_without_a_result_tells_nothing(result):
    hostvars = {"n1": {} if result is None else {"said": result}}
    assert sync.registered(hostvars, ["n1"], "said") == {"n1": None}


def hostvars(**more):
    return {"n1": {"llm_node_stats": STATS, **more}, "b": {"__sync_info": INFO}}


def test_the_plan_reads_what_hosts_registered():
    plan = sync.sync_plan([PEER], hostvars(), ["n1"], ["b"], batch="1", min_available="1", run="R")
    assert plan["preview"] == ["Nothing is to be switched."]
    assert (plan["refused"], plan["lost"], plan["unknown"]) == ([], [], {})


def test_the_plan_without_answers():
    plan = sync.sync_plan([PEER], {"n1": {}, "b": {}}, ["n1"], ["b"], batch=1, min_available=1, run="R")
    assert plan["lost"] == ["b"]
    assert plan["preview"] == ["n1: can't be reached.", "Balancer b gives no answer.", "Nothing is to be switched."]


def test_questions_go_to_what_was_switched_too():
    idle = {**PEER, "models": [{**PEER["models"][0], "preload": False}]}
    assert sync.sync_questions([idle], [], "Hello", "4") == []
    (question,) = sync.sync_questions([idle], ["m"], "Hello", "4")
    assert (question["model"], question["url"], question["max_tokens"]) == ("m", "http://192.0.2.1:8000", 4)


def test_the_table_of_a_cluster_without_one_stays_empty():
    assert sync.sync_table({}, hostvars(), ["n1"], ["b"]) == {}
    table = {"peers": [{"name": "n1", "node": "n1", "models": ["m"]}]}
    assert sync.sync_table(table, hostvars(), ["n1"], ["b"]) == table


def test_a_shortage_goes_by_what_the_nodes_serve():
    assert sync.sync_shortage(INFO, [PEER], ["n1"], "1")
    assert sync.sync_shortage(INFO, [PEER], ["n2"], "1") == []


def test_a_shortage_that_shows_once_a_node_is_drained():
    drained = {"nodes": {"n1": [{"name": "n1", "node": "n1", "state": "drained", "models": ["m"], "lacks": []}]}}
    assert sync.sync_shortage(drained, [PEER], ["n1"], 1) == []
    (sentence,) = sync.sync_shortage(drained, [PEER], ["n1"], 1, before=INFO)
    assert "while n1 is switched" in sentence
    assert sync.sync_shortage(drained, [PEER], ["n1"], 0, before=INFO) == []
    assert sync.sync_shortage(drained, [PEER], ["n1"], 1, before=drained) == []


def test_a_sync_of_another_controller_is_left_alone_unless_it_is_taken_over():
    mine, other = "20261123T122508Z-aaaaaaaa", "20261123T122508Z-bbbbbbbb"
    mark = {"name": "n1", "owner": "sync", "reason": sync.sync_turn(other, "60") + "new version of m"}
    said = {"n1": {"llm_node_stats": STATS}, "b": {"__sync_info": {**INFO, "drains": [mark]}}, "c": {}}

    def refused(**more):
        plan = sync.sync_plan([PEER], said, ["n1"], ["b", "c"], batch=1, min_available=0, run=mine, **more)
        return [sentence for sentence in plan["refused"] if other in sentence]

    assert len(refused()) == 1
    assert refused(take_over=True) == []


def test_where_things_stand_and_what_programs_read():
    plan = sync.sync_plan([PEER], hostvars(), ["n1"], ["b"], batch=1, min_available=1, run="R")
    lines = sync.sync_standing(plan, [PEER], hostvars(__sync_ended="checked"), ["n1"])
    assert [line.split("  ")[-1].strip() for line in lines] == ["state", "as locked; checked"]
    assert sync.sync_result([PEER], hostvars(), ["n1"], False)["ok"] is True
    assert sync.sync_result([PEER], {"n1": {}}, ["n1"], False)["unreachable"] == ["n1"]
