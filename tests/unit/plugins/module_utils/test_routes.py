# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cases that routes.lua is tested with too, then what only this side says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _routes as routes

SHARED = json.loads((Path(__file__).parents[3] / "fixtures" / "routes.json").read_text(encoding="utf-8"))
PEERS = SHARED["peers"]


@pytest.mark.parametrize("case", SHARED["conditions"], ids=lambda case: f"{case.get('label')} {case['condition']}")
def test_conditions(case: dict[str, Any]) -> None:
    labels = {"it": case["label"]} if "label" in case else {}
    assert routes.is_condition(case["condition"])
    assert routes.holds(case["condition"], labels, "it") is case["holds"]


@pytest.mark.parametrize("condition", SHARED["bad_conditions"], ids=str)
def test_what_is_no_condition(condition: Any) -> None:
    assert not routes.is_condition(condition)


@pytest.mark.parametrize("case", SHARED["globs"], ids=lambda case: f"{case['glob']} {case['text']}")
def test_globs(case: dict[str, Any]) -> None:
    assert routes.glob_matches(case["glob"], case["text"]) is case["matches"]


@pytest.mark.parametrize("case", SHARED["cases"], ids=lambda case: case["name"])
def test_routes(case: dict[str, Any]) -> None:
    found = routes.problems(case["routes"], PEERS)
    assert all(problem.startswith("routes[") for problem in found)
    if case["problem"] is None:
        assert found == []
    else:
        assert any(case["problem"] in problem for problem in found), found
    by_name = {route["name"]: route for route in case["routes"] if isinstance(route, dict) and "name" in route}
    for which in ("allowed", "preferred"):
        for name, by_model in case.get(which, {}).items():
            for model, expected in by_model.items():
                chosen = getattr(routes, which)(by_name[name], PEERS, model)
                assert [peer["name"] for peer in chosen] == expected, (which, name, model)


@pytest.mark.parametrize(
    ("route", "words"),
    [
        ({"require": {"gpu_memory": ">24"}}, "none has gpu_memory >24 (no peer has that label)"),
        ({"require": {"zone": ["c", "d"]}}, "none has zone c or d (there is a, b)"),
        ({"when": {"model": ["qwen*", "gemma*"]}}, "none serves a model named qwen* or gemma*"),
        (
            {"peers": ["gpu2"], "require": {"zone": "a"}, "when": {"model": "phi3"}},
            "none has at once zone a, a name in peers (gpu2), a model named phi3",
        ),
        ({"model": "qwen3"}, ".model: no peer serves 'qwen3' (served: llama3:8b, mistral:7b, phi3:latest)"),
        ({"whan": {}}, "unknown field 'whan'; there are name, when, require"),
    ],
)
def test_a_problem_says_what_there_is(route: dict[str, Any], words: str) -> None:
    (problem,) = routes.problems([{"name": "a", **route}], PEERS)
    assert words in problem


def test_there_is_an_end_to_routes() -> None:
    (problem,) = routes.problems([{"name": f"r{number}"} for number in range(501)], PEERS)
    assert problem == "routes: there are 501, more than 500"


def test_paths_are_those_of_the_balancer() -> None:
    lua = (Path(__file__).parents[4] / "roles/balancer/files/lua/llm_cluster/surface.lua").read_text(encoding="utf-8")
    lines = re.findall(r'^    \["POST (\S+)"\] = \{ kind = "inference"(.*)\}', lua, re.MULTILINE)
    engines = {path: re.search(r'engine = "(\w+)"', rest) for path, rest in lines}
    assert {path: engine and engine.group(1) for path, engine in engines.items()} == routes.PATHS


def test_a_name_that_is_used_three_times_is_said_once() -> None:
    found = routes.problems([{"name": "a"}, {"name": "a"}, {"name": "a"}], PEERS)
    assert found == ["routes[a].name: 'a' is used by two routes"]


@pytest.mark.parametrize("given", [None, {"name": "a"}, "llama*"])
def test_routes_are_a_list(given: Any) -> None:
    assert routes.problems(given, PEERS) == ["routes: must be a list"]


def test_a_label_that_could_not_be_read_is_no_reason_to_refuse() -> None:
    down = {**PEERS[4], "labels": {}, "unknown_labels": ["gpu_memory_gb"]}
    route = {"name": "a", "require": {"gpu_memory_gb": ">100"}}
    assert routes.problems([route], [*PEERS[:4], down]) == []
    assert routes.problems([{**route, "require": {"memory_gb": ">1000"}}], [*PEERS[:4], down]) != []
