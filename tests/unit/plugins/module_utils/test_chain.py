# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _chain
from ansible_collections.llm.cluster.plugins.module_utils._chain import Node

X, Y = "sha256:" + "a" * 64, "sha256:" + "b" * 64
URL, FILE = {"url": "https://mirror/x"}, {"file": "/srv/x.gguf"}


def node(name: str, lacks: str = "", holds: str = "", source: dict[str, str] | None = None) -> Node:
    """Return a node that wants what it lacks and holds, each letter a version."""
    digests = {"x": X, "y": Y}
    models = [
        {"name": letter, "digest": digests[letter], "source": source or URL}
        for letter in "xy"
        if letter in lacks + holds
    ]
    return Node(name, f"http://{name}:8090", models, {digests[k] for k in lacks}, {digests[k] for k in holds})


def summary(plan: _chain.Plan) -> dict[str, list[str]]:
    """Return by node what it does: ``version<peers``, with a ! where the controller sends."""
    return {
        name: [
            f"{model['name']}{'!' if name in plan.send else ''}<"
            + ",".join(peer.removeprefix("http://").removesuffix(":8090") for peer in model["peers"])
            for model in models
        ]
        for name, models in {**plan.fetch, **plan.send}.items()
    }


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        pytest.param([node("a", "x")], {}, id="one node alone has nobody to help it"),
        pytest.param([node("a", "", "x"), node("b", "", "x")], {}, id="nothing is lacking"),
        pytest.param(
            [node("a", "x"), node("b", "x"), node("c", "x")],
            {"a": ["x<"], "b": ["x<a"], "c": ["x<b,a"]},
            id="the first goes to the origin, the others to those before them, the nearest first",
        ),
        pytest.param(
            [node("a", "", "x"), node("b", "x")], {"b": ["x<a"]}, id="a node that has it is asked before the origin"
        ),
        pytest.param(
            [node("a", "x"), node("h", "", "x"), node("b", "x"), node("i", "", "x")],
            {"a": ["x<h,i"], "b": ["x<a,i,h"]},
            id="predecessors before holders, which take turns",
        ),
        pytest.param(
            [node("a", "xy"), node("b", "y")],
            {"a": ["y<"], "b": ["y<a"]},
            id="what only one lacks is left out",
        ),
        pytest.param(
            [node("a", "xy"), node("b", "xy"), node("c", "y")],
            {"a": ["x<", "y<c"], "b": ["x<a", "y<a,c"], "c": ["y<"]},
            id="who begins with a version is at its head",
        ),
        pytest.param(
            [node("a", "x", source=FILE), node("b", "x", source=FILE)],
            {"a": ["x!<"], "b": ["x<a"]},
            id="a file on the controller goes to the first node only",
        ),
        pytest.param(
            [node("a", "x", source=FILE), node("h", "", "x", source=FILE)],
            {"a": ["x<h"]},
            id="or to none, when a node has it",
        ),
        pytest.param(
            [node("a", "xy", source=FILE), node("b", "xy", source=FILE)],
            {"a": ["x!<", "y!<"], "b": ["x<a", "y<a"]},
            id="one node gets all files",
        ),
    ],
)
def test_who_gets_what_from_whom(nodes: list[Node], expected: dict[str, list[str]]) -> None:
    assert summary(_chain.plan(nodes, [each.name for each in nodes])) == expected


def test_who_is_sent_files_is_last_for_what_the_others_can_fetch() -> None:
    def mixed(name: str) -> Node:
        made = node(name, "xy")
        made.models[1]["source"] = FILE
        return made

    plan = _chain.plan([mixed("a"), mixed("b"), mixed("c")], ["a", "b", "c"])
    assert summary(plan) == {"a": ["y!<", "x!<c,b"], "b": ["y<a", "x<"], "c": ["y<b,a", "x<b"]}


def test_only_targets_fetch_and_only_who_is_needed_serves() -> None:
    nodes = [node("a", "x"), node("b", "x"), node("h", "", "x"), *(node(f"i{n}", "", "x") for n in range(5))]
    plan = _chain.plan(nodes, ["a"])
    assert summary(plan) == {"a": ["x<h,i0,i1"]}
    assert plan.serve == ["a", "h", "i0", "i1"]


def test_nobody_is_asked_through_the_whole_chain() -> None:
    plan = _chain.plan([node(f"n{n}", "x") for n in range(9)], [f"n{n}" for n in range(9)])
    assert summary(plan)["n8"] == ["x<n7,n6,n5,n4"]


def test_patience_grows_along_the_chain_so_that_only_the_next_one_goes_elsewhere() -> None:
    plan = _chain.plan([node(f"n{n:02}", "x") for n in range(16)], [f"n{n:02}" for n in range(16)])
    bears = [plan.fetch[name][0]["patience"] for name in sorted(plan.fetch)]
    assert bears[1:5] == [10, 15, 20, 25]
    assert bears[-1] == 60
    assert bears[1:] == sorted(bears[1:])
    # Who may come late is waited for.
    assert _chain.patience(1, earlier=1, sent=False) == 30
    assert _chain.patience(1, earlier=0, sent=True) == 300


def found(name: str, digest: str, wanted: str, status: str = "ok") -> dict[str, Any]:
    return {"name": name, "digest": digest, "wanted": wanted, "status": status}


def looked(name: str, before: str, after: str, changed: bool, held: list[str] | None = None) -> dict[str, Any]:
    return {"name": name, "digest_before": before, "digest_after": after, "changed": changed, "held": held or []}


@pytest.mark.parametrize(
    ("host_vars", "expected"),
    [
        pytest.param({}, None, id="nobody looked"),
        pytest.param({"llm_node_stats": {"unreachable": True}}, None, id="nobody could look"),
        pytest.param({"__models_look": {"failed": True, "models": [looked("m", X, X, False)]}}, None, id="failed"),
        pytest.param(
            {"llm_node_stats": {"models": [found("m", X, Y, "wrong")], "held": {X: 5}}},
            ({"m": Y}, {Y}, {X}),
            id="another version is served",
        ),
        pytest.param(
            {"llm_node_stats": {"models": [found("m", X, Y, "wrong")], "held": {X: 5, Y: 5}}},
            ({"m": Y}, set(), {X, Y}),
            id="the wanted one waits to be served",
        ),
        pytest.param(
            {"llm_node_stats": {"models": [found("m", X, X, "corrupt")], "held": {X: 5}}},
            ({"m": X}, {X}, set()),
            id="damaged",
        ),
        pytest.param(
            {"llm_node_stats": {"models": [found("m", X, "")], "held": {X: 5}}},
            ({}, set(), {X}),
            id="any version will do",
        ),
        pytest.param({"__models_look": {"models": [looked("m", "", X, True)]}}, ({"m": X}, {X}, set()), id="missing"),
        pytest.param({"__models_look": {"models": [looked("m", X, X, False)]}}, ({"m": X}, set(), {X}), id="there"),
        pytest.param(
            {"__models_look": {"models": [looked("m", X, X, True)]}}, ({"m": X}, {X}, set()), id="damaged there"
        ),
        pytest.param(
            {"__models_look": {"models": [looked("m", X, Y, True, [Y])]}}, ({"m": Y}, set(), {X, Y}), id="held"
        ),
        pytest.param(
            {"__models_look": {"models": [looked("m", "", "unknown until it is fetched", True)]}},
            ({}, set(), set()),
            id="a registry that tells no digest",
        ),
    ],
)
def test_what_a_node_lacks_and_holds(host_vars: dict[str, Any], expected: Any) -> None:
    assert _chain.seen(host_vars) == expected


@pytest.mark.parametrize(
    ("host_vars", "engine", "models", "partial"),
    [
        ({}, "llama_cpp", "/var/lib/llama-cpp/models", "/var/lib/llama-cpp/partial"),
        ({}, "ollama", "/var/lib/ollama/models", "/var/lib/ollama/partial"),
        ({"llama_cpp_data_dir": "/d"}, "llama_cpp", "/d/models", "/d/partial"),
        ({"ollama_models_path": "/d/o"}, "ollama", "/d/o", "/d/partial"),
        ({"models_dir": "/m", "models_partial_dir": "/p"}, "ollama", "/m", "/p"),
    ],
)
def test_folders_of_a_host_that_is_not_in_play(
    host_vars: dict[str, Any], engine: str, models: str, partial: str
) -> None:
    assert _chain.folders(host_vars, engine) == {"models_dir": models, "partial_dir": partial}
