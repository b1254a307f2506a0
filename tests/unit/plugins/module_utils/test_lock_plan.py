# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.filter.topology import cluster_defaults
from ansible_collections.llm.cluster.plugins.module_utils import _lock_plan as plan

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
GGUF = {"name": "x", "source": {"file": "/here/x.gguf"}}
READ = {"llm_node_facts": {"memory_gb": 64}}


def hosts(**models: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nodes whose names begin with l have llama.cpp."""
    return {
        node: {
            "llm_engine": "llama_cpp" if node.startswith("l") else "ollama",
            "group_names": ["g"],
            "llm_models": wanted,
        }
        for node, wanted in models.items()
    }


def wants(given: dict[str, dict[str, Any]]) -> dict[tuple[str, str], plan.Want]:
    found, problems = plan.wants(given, given, cluster_defaults())
    assert problems == []
    return found


def entry(digest: str = A, **source: str) -> dict[str, Any]:
    return {"digest": digest, "size": 5, "source": source}


def test_each_model_on_each_engine_is_wanted_once() -> None:
    found = wants(hosts(n1=[{"name": "m"}], n2=[{"name": "m"}], l1=[GGUF, {"name": "y", "nodes": ["n1"]}]))
    assert {key: want.nodes for key, want in found.items()} == {
        ("m", "ollama"): ["n1", "n2"],
        ("x", "llama_cpp"): ["l1"],
    }
    assert found["m", "ollama"].source == {"registry": "m"}


@pytest.mark.parametrize("other", [{"digest": B}, {"source": {"registry": "y"}}])
def test_nodes_that_disagree(other: dict[str, Any]) -> None:
    given = hosts(n1=[{"name": "m"}], n2=[{"name": "m", **other}])
    (problem,) = plan.wants(given, given, cluster_defaults())[1]
    assert problem.startswith("m (ollama): llm_models of n2 and of n1 want different digests or sources")


@pytest.mark.parametrize(("facts", "nodes"), [(READ, ["n1"]), ({}, []), ({"llm_node_facts": {"memory_gb": 8}}, None)])
def test_models_placed_by_labels(facts: dict[str, Any], nodes: list[str] | None) -> None:
    given = hosts(n1=[{"name": "m", "labels": {"memory_gb": ">32"}}])
    given["n1"]["ansible_facts"] = facts
    found = wants(given)
    assert [want.nodes for want in found.values()] == ([] if nodes is None else [nodes])
    # What may be on a node keeps its entry, and is not asked for.
    assert bool(plan.to_ask(found, {}, [])) is bool(nodes)
    kept = {"m": {"ollama": entry(registry="m")}}
    assert plan.new_lock(found, kept, [], [])[0] == ({} if nodes is None else kept)


@pytest.mark.parametrize(
    ("model", "locked", "names", "asked"),
    [
        ({}, None, [], True),
        ({}, entry(registry="m"), [], False),
        ({}, entry(registry="m"), ["m"], True),
        ({}, entry(registry="m"), ["all"], True),
        ({}, entry(registry="m"), ["other"], False),
        ({"digest": A}, entry(registry="m"), [], False),
        ({"digest": B}, entry(registry="m"), [], True),
        ({"source": {"registry": "mirror/m"}}, entry(registry="m"), [], True),
    ],
)
def test_only_what_is_not_locked_is_asked(model: dict[str, Any], locked: Any, names: list[str], asked: bool) -> None:
    found = wants(hosts(n1=[{"name": "m", **model}]))
    lock = {"m": {"ollama": locked}} if locked else {}
    assert bool(plan.to_ask(found, lock, names)) is asked


@pytest.mark.parametrize(
    ("given", "names"), [("a", ["a"]), ("a, b:1", ["a", "b:1"]), (["a"], ["a"]), ("", []), ([], []), (None, [])]
)
def test_names_to_update(given: Any, names: list[str]) -> None:
    assert plan.update_names(given) == names


def test_a_misspelt_name_is_told() -> None:
    found = wants(hosts(n1=[{"name": "m"}]))
    assert plan.update_problems(found, ["m", "all"]) == []
    assert plan.update_problems(found, ["n"]) == ["lock_update names n, which is not in llm_models; there are m."]


def test_the_first_node_that_can_be_reached_asks() -> None:
    url = {"name": "u", "source": {"url": "http://x/u"}}
    found = wants(hosts(n1=[{"name": "m"}], n2=[{"name": "m"}], l1=[GGUF, url]))
    asked = plan.to_ask(found, {}, [])
    names = {host: [model["name"] for model in models] for host, models in plan.askers(asked, ["n2", "l1"]).items()}
    assert names == {"n2": ["m"], "": ["x"], "l1": ["u"]}
    assert set(plan.askers(asked, [])) == {""}


def answer(digest: str = "", size: int | None = None, problem: str = "") -> dict[str, Any]:
    return {"name": "m", "engine": "ollama", "digest": digest, "size": size, "problem": problem}


@pytest.mark.parametrize(
    ("model", "answers", "locked", "problem"),
    [
        ({}, [answer(B, 9)], (B, 9), ""),
        ({}, [answer(A)], (A, 5), ""),  # the size that is known
        ({}, [answer(problem="It is silent.")], (A, 5), "m (ollama): It is silent."),
        ({}, [], (A, 5), "m (ollama): nobody could be asked."),
        ({"digest": B}, [answer(B, 9)], (B, 9), ""),
        ({"digest": B}, [answer(problem="It is silent.")], (B, None), ""),
        ({"digest": B}, [answer(C, 9)], (A, 5), f"m (ollama): llm_models wants {B}, the source has {C} now."),
    ],
)
def test_what_is_locked(
    model: dict[str, Any], answers: list[dict[str, Any]], locked: tuple[str, int | None], problem: str
) -> None:
    found = wants(hosts(n1=[{"name": "m", **model}, {"name": "stays"}]))
    old = {
        "m": {"ollama": entry(registry="m"), "llama_cpp": entry()},
        "stays": {"ollama": entry(C, registry="stays")},
        "goes": {"ollama": entry()},
    }
    new, problems = plan.new_lock(found, old, plan.to_ask(found, old, ["m"]), answers)
    assert new == {
        "m": {"ollama": {"digest": locked[0], "size": locked[1], "source": {"registry": "m"}}},
        "stays": old["stays"],
    }
    assert len(problems) == bool(problem)
    assert "".join(problems).startswith(problem)


@pytest.mark.parametrize(
    ("served", "digest", "problem"),
    [
        ([{"name": "m", "digest": A, "size": 5, "status": "ok"}], A, ""),
        ([{"name": "m", "digest": A, "size": 5, "status": "wrong"}], A, ""),
        ([{"name": "m", "digest": A, "size": 5, "status": "corrupt"}], "", "n1 serves a damaged file of it."),
        ([{"name": "m", "digest": "", "status": "missing"}], "", "n1 does not serve it."),
        ([], "", "n1 does not serve it."),
    ],
)
def test_versions_from_a_node(served: list[dict[str, Any]], digest: str, problem: str) -> None:
    asked = plan.to_ask(wants(hosts(n1=[{"name": "m"}], l1=[GGUF])), {}, [])
    (found,) = plan.served_answers(asked, "n1", "ollama", served)
    assert (found["name"], found["engine"], found["digest"]) == ("m", "ollama", digest)
    assert found["problem"].startswith(problem)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"url": "https://anna:secret@x.example/m.gguf"}, {"url": "https://x.example/m.gguf"}),
        ({"file": "/home/anna/models/m.gguf"}, {"file": "m.gguf"}),
        ({"registry": "host:5000/a/m:1", "url": None}, {"registry": "host:5000/a/m:1"}),
    ],
)
def test_sources_tell_no_secret_and_no_folder(source: dict[str, Any], shown: dict[str, str]) -> None:
    assert plan.lock_source(source) == shown


def test_changes_are_a_line_each() -> None:
    old = {"a": {"ollama": entry(A)}, "b": {"ollama": entry(A)}, "c": {"ollama": entry(A)}, "d": {"ollama": entry(A)}}
    new = {"a": {"ollama": entry(B)}, "c": {"ollama": entry(A, registry="x")}, "d": old["d"], "e": {"ollama": entry(C)}}
    assert plan.changes(old, new) == [
        f"a (ollama): {A} → {B}",
        f"b (ollama): {A} → nothing",
        f"c (ollama): {A} (source or size)",
        f"e (ollama): nothing → {C}",
    ]
