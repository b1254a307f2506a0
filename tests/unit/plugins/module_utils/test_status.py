# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.filter import status as filters
from ansible_collections.llm.cluster.plugins.module_utils import _status as status
from ansible_collections.llm.cluster.plugins.module_utils._balancer_state import read_state

GIB = 1 << 30
RIGHT, WRONG = "sha256:" + "a5" * 32, "sha256:" + "b6" * 32
NO_ROUTE = {"unreachable": True, "msg": "Task failed: Failed to connect:\n  No route to host"}
HUNG = {"failed": True, "msg": "Task failed: Timed out after 12 second(s)."}
WANTED = [{"name": "m", "digest": RIGHT}]
GPU = {"vendor": "amd", "name": "x", "memory_used": 6 * GIB, "memory_total": 24 * GIB, "utilization_percent": 87.4}


def stats(digest: str = RIGHT, **changed: Any) -> dict[str, Any]:
    """Return what node_stats answers."""
    return {
        "engine": {"kind": "llama_cpp", "version": "b6123", "healthy": True, "reason": ""},
        "cpu": {"load_percent": 65.2, "cpus": 8},
        "memory": {"used": int(14.2 * GIB), "total": 32 * GIB},
        "disk": {"path": "/srv", "free": 1, "total": 2},
        "gpus": [],
        "slots": {"busy": 1, "total": 4},
        "waiting": 0,
        "models": [{"name": "m", "digest": digest, "wanted": RIGHT, "status": "ok" if digest == RIGHT else "wrong"}],
        "held": {},
        "unread": [],
        **changed,
    }


def peer(node: str, state: str = "up", **fields: Any) -> dict[str, Any]:
    minute = {"requests_per_minute": 1243.4, "answered_per_minute": 1200, "latency": 1.2, "timed_out": 0.003}
    return {"name": node, "node": node, "state": state, "slots": 4, "busy": 3, "waiting": 4, "minute": minute, **fields}


def balancer(*peers: dict[str, Any], waiting: int = 4, **fields: Any) -> dict[str, Any]:
    """Return what balancer_info answers."""
    minute = {"requests_per_minute": 1300, "answered_per_minute": 1300, "latency": 2, "timed_out": 0}
    answer = {"version": 7, "policy": "affinity", "peers": list(peers), "queue": {"waiting": waiting}, "minute": minute}
    return read_state({**answer, **fields})


def drained(node: str) -> dict[str, Any]:
    mark = {"name": node, "owner": "operator", "reason": "new disk", "since": 1}
    return peer(node, "drained", reason="drained by operator: new disk", drains=[mark])


def told(nodes: dict[str, Any], balancers: dict[str, Any], prune: bool = False) -> tuple[dict[str, Any], list[str]]:
    nodes = {name: status.answer_of(result) for name, result in nodes.items()}
    balancers = {name: status.answer_of(result) for name, result in balancers.items()}
    found = status.status(nodes, balancers, dict.fromkeys(nodes, WANTED), prune)
    return found, status.status_lines(found)


def figures(nodes: dict[str, Any], balancers: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    nodes = {name: status.answer_of(result) for name, result in nodes.items()}
    balancers = {name: status.answer_of(result) for name, result in balancers.items()}
    found = status.stats(nodes, balancers)
    return found, status.stats_lines(found)


def test_the_table_of_a_cluster_in_each_state() -> None:
    nodes = {"n1": stats(), "n2": stats(WRONG), "n3": NO_ROUTE, "n4": HUNG}
    info = balancer(peer("n1"), drained("n2"), peer("n3", "down", reason="connection refused"), peer("n4"))
    found, lines = told(nodes, {"b": info})
    assert lines == [
        "node  state                             engine           slots  model  digest               drift",
        "n1    up                                llama_cpp b6123  3/4    m      sha256:a5a5a5a5a5a5  ok",
        "n2    drained by operator               llama_cpp b6123  3/4    m      sha256:b6b6b6b6b6b6"
        "  DRIFT: another version, wanted sha256:a5a5a5a5a5a5",
        "n3    unreachable, out at the balancer  -                3/4    -      -                    -",
        "n4    silent, up at the balancer        -                3/4    -      -                    -",
        "",
        "b: up | nodes 2 of 4 up | queue 4 | routing table 7 | policy affinity",
        "",
        "n2: drained by operator: new disk.",
        "n3: Failed to connect: No route to host",
        "n3: out: connection refused.",
        "n4: Timed out after 12 second(s).",
    ]
    assert {name: (entry["state"], entry["drift"]) for name, entry in found["nodes"].items()} == {
        "n1": ("up", "ok"),
        "n2": ("drained", "drift"),
        "n3": ("unreachable", "unreachable"),
        "n4": ("silent", "unreachable"),
    }
    assert found["nodes"]["n2"]["drained_by"] == ["operator"]


@pytest.mark.parametrize(
    ("peers", "word"),
    [
        ([["up"], ["up"]], "up"),
        ([["drained", "drained"]], "drained"),
        ([["down"], ["down"]], "out"),
        ([["probing"]], "probing"),
        ([["up"], ["down"]], "partly up"),
        ([["up", "drained"]], "partly up"),
        ([["down", "drained"]], "out"),
        ([[]], "unplaced"),
        ([["up"], []], "partly up"),
        ([], ""),
    ],
)
def test_one_word_for_a_node(peers: list[list[str]], word: str) -> None:
    at = {str(i): [{"state": state} for state in states] for i, states in enumerate(peers)}
    assert status.condition(at) == word


def test_two_balancers_that_do_not_agree_are_named() -> None:
    _found, lines = told({"n1": stats()}, {"b1": balancer(peer("n1")), "b2": balancer(drained("n1"))})
    assert lines[1].startswith("n1    partly up")
    assert "6/4" in lines[1], "each counts what it has sent"
    assert lines[-1] == "n1: drained by operator: new disk at b2."


def test_without_a_balancer_the_engines_word_counts() -> None:
    sick = stats(engine={"kind": "ollama", "version": None, "healthy": False, "reason": "connection refused"})
    found, lines = told({"n1": stats(), "n2": sick}, {"b": NO_ROUTE})
    assert [entry["state"] for entry in found["nodes"].values()] == ["up", "out"]
    assert "b: unreachable: Failed to connect: No route to host" in lines
    assert lines[-1] == "n2: the engine isn't healthy: connection refused."
    assert "states are the engines' own" in told({"n1": stats()}, {})[1][-1]


def test_what_else_there_is_to_say() -> None:
    unread = [{"part": "gpus", "reason": "nvidia-smi: timed out after 5 s"}]
    _found, lines = told({"n1": stats(unread=unread), "n2": stats()}, {"b": balancer(peer("n1", lacks=["m", "x"]))})
    assert lines[-3:] == [
        "n1: has no m, x, so gets no request for it.",
        "n1: gpus could not be read: nvidia-smi: timed out after 5 s.",
        "n2: is not in the routing table.",
    ]
    assert "unplaced" in lines[2]


def test_one_reason_is_given_once() -> None:
    gone = "m: no answer within 5.5 s"
    engine = {"kind": "llama_cpp", "version": None, "healthy": False, "reason": gone}
    unread = [{"part": part, "reason": gone} for part in ("version", "slots", "waiting")]
    assert status.unread_texts(unread, engine) == []
    assert status.unread_texts(unread, {"reason": ""}) == [("version, slots, waiting", gone)]
    _found, lines = figures({"n1": stats(engine=engine, unread=unread)}, {})
    assert lines[2:] == [f"engine not healthy: {gone}"]


def test_a_model_that_nobody_wants_is_drift_only_where_models_are_pruned() -> None:
    extra = {"name": "old", "digest": WRONG, "wanted": "", "status": "ok", "extra": True}
    node = stats(models=[*stats()["models"], extra])
    for prune, state in ((False, "ok"), (True, "drift")):
        found, lines = told({"n1": node}, {"b": balancer(peer("n1"))}, prune)
        assert found["nodes"]["n1"]["drift"] == state
        assert lines[2].split() == ["old", "sha256:b6b6b6b6b6b6", "not", "wanted", "here"], "the node stands there once"


def test_two_lines_for_a_node() -> None:
    _found, lines = figures({"node1": stats()}, {"b": balancer(peer("node1"))})
    assert lines == [
        "node1: load 65% | memory 14.2/32.0 GB | slots 3/4 | waiting 0",
        "requests: 1243/min | mean 1.2 s | time-outs 0.3% | queue 4",
        "b: requests 1300/min | mean 2.0 s | time-outs 0.0% | queue 4",
    ]


def test_nodes_that_could_not_be_asked_and_parts_that_could_not_be_read() -> None:
    unread = [{"part": "cpu", "reason": "no /proc"}, {"part": "slots", "reason": "m: HTTP 501: off"}]
    half = stats(cpu=None, memory=None, gpus=None, waiting=None, slots={"busy": None, "total": 4}, unread=unread)
    sick = stats(engine={"kind": "ollama", "version": None, "healthy": False, "reason": "connection refused"})
    found, lines = figures({"n1": NO_ROUTE, "n2": half, "n3": sick}, {"b": HUNG})
    assert lines == [
        "n1: unreachable: Failed to connect: No route to host",
        "requests: no balancer tells",
        "n2: load ? | memory ? | slots -/4 | waiting - | gpu ?",
        "requests: no balancer tells",
        "could not be read: cpu: no /proc",
        "could not be read: slots: m: HTTP 501: off",
        "n3: load 65% | memory 14.2/32.0 GB | slots 1/4 | waiting 0 | out",
        "requests: no balancer tells",
        "engine not healthy: connection refused",
        "b: out: Timed out after 12 second(s).",
    ]
    assert found["all"] is None


def test_an_unreachable_node_still_has_its_requests() -> None:
    _found, lines = figures({"n1": NO_ROUTE}, {"b": balancer(peer("n1"))})
    assert lines[0] == "n1: unreachable, up at the balancer: Failed to connect: No route to host"
    assert lines[1].startswith("requests: 1243/min")


def test_a_node_that_takes_nothing_has_no_queue() -> None:
    _found, lines = figures({"n1": stats()}, {"b": balancer(drained("n1"))})
    assert lines[0].endswith("| waiting 0 | drained by operator")
    assert lines[1].endswith("| queue 0")


def minute(rate: float | None, latency: float | None = None, timed_out: float | None = None) -> dict[str, Any]:
    return {"requests_per_minute": rate, "answered_per_minute": rate, "latency": latency, "timed_out": timed_out}


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        ([minute(30, 1, 0), minute(10, 3, 0.1)], "40/min | mean 1.5 s | time-outs 2.5% | queue 2"),
        ([minute(30, 1, 0), minute(0)], "30/min | mean 1.0 s | time-outs 0.0% | queue 2"),
        ([minute(30, 1, 0), minute(None)], "30/min | mean 1.0 s | time-outs 0.0% | queue 2"),
        ([minute(0.94, 1, 0)], "0.9/min | mean 1.0 s | time-outs 0.0% | queue 2"),
        ([minute(0)], "0/min | mean - | time-outs - | queue 2"),
        ([minute(None)], "- | mean - | time-outs - | queue 2"),
    ],
)
def test_several_minutes_as_one(minutes: list[dict[str, Any]], text: str) -> None:
    assert status.requests_text(status.requests(minutes, 2), "") == text


def test_several_balancers_and_all_of_them() -> None:
    found, lines = figures({"n1": stats()}, {"b1": balancer(peer("n1")), "b2": balancer(peer("n1"), waiting=1)})
    assert lines[1] == "requests: 2487/min | mean 1.2 s | time-outs 0.3% | queue 8"
    assert lines[-1] == "all: requests 2600/min | mean 2.0 s | time-outs 0.0% | queue 5"
    assert found["all"]["queue"] == 5


@pytest.mark.parametrize(
    ("gpus", "texts"),
    [
        (None, ["gpu ?"]),
        ([], []),
        ([GPU], ["gpu 87% 6.0/24.0 GB"]),
        ([GPU, {**GPU, "utilization_percent": 12.6}], ["2 gpus 50% 12.0/48.0 GB"]),
        ([{**GPU, "utilization_percent": None, "memory_used": None}], ["gpu -%"]),
    ],
)
def test_gpus(gpus: list[dict[str, Any]] | None, texts: list[str]) -> None:
    assert status.gpu_texts(gpus) == texts


def test_what_was_not_registered_was_not_asked() -> None:
    assert status.answer_of(None) == status.Silent("it was not asked", False)
    assert status.answer_of({"failed": True, "msg": "x" * 1000}) == status.Silent("x" * 300, False)


def test_filters_give_json_and_text() -> None:
    model = {"name": "m", "unit": "m", "digest": RIGHT, "source": {}}
    peers = [{"node": "n1", "address": None, "port": 1, "models": [model]}]
    hostvars = {"n1": {"llm_node_stats": stats(WRONG)}, "b": {"__cluster_balancer": balancer(peer("n1"))}}
    found = filters.status_report(hostvars, ["n1"], ["b"], peers, False)
    assert '"drift": "drift"' in found["json"]
    assert "DRIFT: another version" in found["text"]
    found = filters.stats_report(hostvars, ["n1"], ["b"])
    assert '"load_percent": 65.2' in found["json"]
    assert found["text"].startswith("n1: load 65%")
