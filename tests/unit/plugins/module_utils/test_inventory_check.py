# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.filter.topology import cluster_defaults
from ansible_collections.llm.cluster.plugins.module_utils import _inventory_check as check

KEY = "0123456789abcdef0123456789abcdef"
FACTS = {"distribution": "Debian", "distribution_version": "13.1"}
HOSTS: dict[str, dict[str, Any]] = {
    "n1": {"llm_address": "192.0.2.1", "group_names": ["llm_nodes"], "ansible_facts": FACTS},
    "n2": {"llm_address": "192.0.2.2", "group_names": ["llm_nodes"], "ansible_facts": FACTS},
    "b": {"llm_address": "192.0.2.3", "group_names": ["llm_balancers"], "ansible_facts": FACTS},
    "c": {"group_names": ["llm_clients"], "ansible_facts": FACTS},
}
ROLES = {"nodes": ["n1", "n2"], "balancers": ["b"], "clients": ["c"]}


def problems(changes: dict[str, dict[str, Any]], cluster: dict[str, Any], roles: dict[str, list[str]]) -> list[str]:
    """Check the good inventory above with some hosts' variables changed."""
    hosts = copy.deepcopy(HOSTS)
    for variables in hosts.values():
        variables["llm_models"] = [{"name": "m:1b"}]
    for name, variables in changes.items():
        hosts.setdefault(name, {"group_names": ["llm_nodes"]}).update(variables)
    keys = {"llm_api_keys": [{"name": "team", "key": KEY}]}
    return check.problems(hosts, roles, {**cluster_defaults(), **keys, **cluster})


def test_a_good_inventory_has_no_problem() -> None:
    assert problems({}, {}, ROLES) == []


def gguf(**model: Any) -> dict[str, Any]:
    return {"llm_engine": "llama_cpp", "llm_models": [{"name": "m:1b", **model}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n1": {"ansible_facts": {"distribution": "Fedora", "distribution_version": "42"}}}, ["n1", "Fedora 42"]),
        ({"n1": {"ansible_facts": {"distribution": "Debian", "distribution_version": "11.3"}}}, ["n1", "Debian 12"]),
        (
            {"b": {"ansible_facts": {"distribution": "Ubuntu", "distribution_version": "22.04"}}},
            ["b", "Ubuntu 22.04", "Ubuntu 24"],
        ),
        ({"c": {"ansible_facts": {"distribution": "Fedora", "distribution_version": "42"}}}, ["c", "Fedora 42"]),
        ({"b": {"llm_address": "llm.example.com"}}, ["b", "'llm.example.com'", "IP address"]),
        ({"b": {"llm_address": None}}, ["b", "no address is known"]),
        ({"n1": {"llm_node_backup": "perhaps"}}, ["n1", "llm_node_backup", "true or false"]),
        (
            {"n1": {"llm_models": [{"name": "m:1b", "digset": "sha256:12"}]}},
            ["n1", "digset is no key of a model", "digest"],
        ),
        ({"n1": {"llm_models": [{"name": "m:1b", "preload": "later"}]}}, ["m:1b", "preload", "true or false"]),
        ({"n1": {"llm_engine": "vllm"}}, ["n1", "'vllm'", "ollama, llama_cpp"]),
        ({"n1": {"llm_address": None}}, ["n1", "llm_address"]),
        ({"n1": {"llm_address": "node1.example.com"}}, ["n1", "'node1.example.com'", "IP address"]),
        ({"n1": {"llm_address": "192.0.2.2"}}, ["n1 and n2", "192.0.2.2"]),
        ({"n1": {"llm_node_slots": 0}}, ["n1", "llm_node_slots", "from 1"]),
        ({"n1": {"llm_node_slots": 1.5}}, ["llm_node_slots", "whole number"]),
        ({"n1": {"llm_node_slots": "many"}}, ["llm_node_slots", "'many'"]),
        ({"n1": {"llm_node_weight": 0}}, ["n1", "llm_node_weight"]),
        ({"n1": {"llm_node_port": 70000}}, ["n1", "llm_node_port"]),
        ({"n1": {"llm_share_port": 0}}, ["n1", "llm_share_port", "from 1"]),
        ({"n1": {"llm_node_port": 8090}}, ["n1", "port 8090", "llm_share_port"]),
        ({"n1": {"llm_share_port": "8000"}}, ["n1", "port 8000", "llm_share_port"]),
        (
            {"n1": {"llm_share_port": 8000, **gguf(source={"file": "/y"}, port=8000)}},
            ["n1 listens on port 8000", "llm_share_port"],
        ),
        ({"n1": {"llm_node_labels": ["gpu"]}}, ["n1", "llm_node_labels"]),
        ({"n1": {"llm_node_labels": {"gpu": {"memory": 24}}}}, ["n1", "label gpu"]),
        ({"n1": {"llm_node_labels": {"racks": ["a", None]}}}, ["n1", "label racks"]),
        ({"n1": {"llm_models": []}}, ["n1", "no model"]),
        ({"n1": {"llm_models": ["m"]}}, ["n1", "llm_models", "name"]),
        ({"n1": {"llm_models": [{"name": "m:1b"}, {"name": "m:1b"}]}}, ["n1", "m:1b twice"]),
        ({"n1": {"llm_models": [{"name": "m:1b", "nodes": ["n1", "n3"]}]}}, ["m:1b", "n3"]),
        ({"n1": gguf()}, ["source.url or source.file"]),
        ({"n1": gguf(source={"url": "http://x/y"})}, ["needs its digest"]),
        ({"n1": gguf(source={"url": "http://x/y", "file": "/y"})}, ["exactly one"]),
        ({"n1": gguf(source={"path": "/y"})}, ["exactly one"]),
        ({"n1": gguf(source={"file": "/y"}, digest="sha256:12")}, ["64 hexadecimal digits"]),
        ({"n1": gguf(source={"file": "/y"}, slots=0)}, ["slots"]),
        ({"n1": {"llm_models": [{"name": "m:1b", "source": {"file": "/y"}}]}}, ["ollama takes models from a registry"]),
        (
            {
                "n1": {
                    "llm_engine": "llama_cpp",
                    "llm_models": [
                        {"name": "a", "source": {"file": "/a"}, "port": 8001},
                        {"name": "b", "source": {"file": "/b"}},
                    ],
                }
            },
            ["a and b", "port 8001"],
        ),
        (
            {
                "n1": {
                    "llm_engine": "llama_cpp",
                    "llm_models": [
                        {"name": "a:b", "source": {"file": "/a"}},
                        {"name": "a/b", "source": {"file": "/b"}},
                    ],
                }
            },
            ["a:b and a/b", "unit name a-b"],
        ),
    ],
)
def test_a_host_problem_names_the_host_and_what_to_do(changes: dict[str, dict[str, Any]], words: list[str]) -> None:
    found = problems(changes, {}, ROLES)
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"llm_default_model": "other"}, ["llm_default_model", "other", "m:1b"]),
        ({"llm_api_keys": []}, ["llm_api_keys is empty"]),
        ({"llm_api_keys": ["abc"]}, ["llm_api_keys must be a list"]),
        ({"llm_api_keys": [{"name": "a"}]}, ["neither key nor sha256"]),
        ({"llm_api_keys": [{"name": "a", "key": "CHANGE-ME-0123456789"}]}, ["still the example's"]),
        ({"llm_api_keys": [{"name": "a", "key": "short"}]}, ["shorter than 16"]),
        ({"llm_api_keys": [{"name": "a", "sha256": "12"}]}, ["sha256", "64"]),
        ({"llm_api_keys": [{"name": "team a", "key": KEY}]}, ["'team a'", "letter or digit"]),
        ({"llm_api_keys": [{"name": "a", "key": KEY, "model": ["m*"]}]}, ["a", "model is no field of a key"]),
        ({"llm_api_keys": [{"name": "a", "key": KEY, "models": "m*"}]}, ["key a", "models must be a list"]),
        ({"llm_api_keys": [{"name": "a", "key": KEY, "models": []}]}, ["key a", "models must be a list"]),
        ({"llm_api_keys": [{"name": "a", "key": KEY, "concurrent": 0}]}, ["key a", "concurrent is 0"]),
        ({"llm_api_keys": [{"name": "a", "key": KEY, "requests_per_minute": "many"}]}, ["requests_per_minute is many"]),
        ({"llm_routes": "m*"}, ["llm_routes: must be a list"]),
        ({"llm_routes": [{"name": "a", "when": {"modle": "m"}}]}, ["llm_routes[a].when: unknown field 'modle'"]),
        ({"llm_routes": [{"name": "a"}, {"name": "a"}]}, ["llm_routes[a].name", "two routes"]),
        ({"llm_routes": [{"name": "a", "peers": ["b"]}]}, ["llm_routes[a].peers", "'b'"]),
        ({"llm_routes": [{"name": "a", "model": "qwen3"}]}, ["llm_routes[a].model", "'qwen3'", "m:1b"]),
        (
            {"llm_routes": [{"name": "a", "require": {"groups": "gpus"}}]},
            ["llm_routes[a]: can match no peer", "none has groups gpus", "llm_nodes"],
        ),
        ({"llm_api_keys": [{"name": "a", "key": KEY}, {"name": "a", "key": KEY}]}, ["names a twice"]),
    ],
)
def test_a_cluster_problem_says_what_to_do_and_never_the_key(cluster: dict[str, Any], words: list[str]) -> None:
    found = problems({}, cluster, ROLES)
    assert len(found) == 1, found
    assert all(word in found[0] for word in words), found
    assert KEY not in found[0]
    assert "CHANGE-ME" not in found[0]


def test_a_laboratory_may_do_without_keys() -> None:
    assert problems({}, {"llm_api_keys": [], "llm_require_api_key": False}, ROLES) == []


@pytest.mark.parametrize(
    ("roles", "word"),
    [
        ({"nodes": [], "balancers": ["b"], "clients": []}, "llm_nodes"),
        ({"nodes": ["n1"], "balancers": [], "clients": []}, "llm_balancers"),
    ],
)
def test_empty_groups_are_named(roles: dict[str, list[str]], word: str) -> None:
    assert word in problems({}, {}, roles)[0]


def test_names_that_differ_in_case_only_are_one_name() -> None:
    found = problems(
        {"N1": {"llm_address": "192.0.2.7", "llm_models": [{"name": "m:1b"}]}}, {}, {**ROLES, "nodes": ["n1", "N1"]}
    )
    assert found == ["n1 and N1 are one name written differently: rename one of them."]


def test_hosts_without_facts_are_not_judged_by_their_system() -> None:
    assert problems({"n1": {"ansible_facts": {}}}, {}, ROLES) == []


def test_small_nodes_are_warned_of() -> None:
    facts = {
        "processor_vcpus": 2,
        "memtotal_mb": 8000,
        "mounts": [{"mount": "/", "size_available": 50e9}],
        "default_ipv4": {"interface": "eth0"},
        "eth0": {"speed": 10},
    }
    (warning,) = check.warnings({"n1": {"ansible_facts": facts}}, ["n1"], cluster_defaults())
    assert all(words in warning for words in ("n1", "2 cores", "8.2 GB of memory", "50 GB of free disk", "10 Mbit/s"))


def test_nodes_that_are_large_or_unknown_are_not_warned_of() -> None:
    facts = {"processor_vcpus": 8, "memtotal_mb": 15900, "mounts": [{"mount": "/", "size_available": 200e9}]}
    assert check.warnings({"n1": {"ansible_facts": facts}, "n2": {}}, ["n1", "n2"], cluster_defaults()) == []


LIMITED = {"name": "team", "key": KEY, "requests_per_minute": "60", "concurrent": 2, "models": ["m*"]}


def test_keys_may_have_limits() -> None:
    assert problems({}, {"llm_api_keys": [LIMITED]}, ROLES) == []


def test_a_route_is_not_refused_for_a_node_whose_facts_are_not_known() -> None:
    known = {"ansible_facts": {**FACTS, "llm_node_facts": {"memory_gb": 32}}}
    routes = [{"name": "big", "require": {"memory_gb": ">64"}}]
    assert problems({"n1": known}, {"llm_routes": routes}, ROLES) == []
    (problem,) = problems({"n1": known, "n2": known}, {"llm_routes": routes}, ROLES)
    assert problem == "llm_routes[big]: can match no peer: none has memory_gb >64 (there is 32)."


def rule_warnings(cluster: dict[str, Any]) -> list[str]:
    """Return the warnings of two nodes that are large enough, with 32 GiB each."""
    hosts = {
        node: {
            "llm_address": address,
            "group_names": ["llm_nodes"],
            "llm_models": [{"name": "m:1b"}],
            "ansible_facts": {"llm_node_facts": {"memory_gb": 32, "gpus": 0, "gpu_memory_gb": 0}},
        }
        for node, address in (("n1", "192.0.2.1"), ("n2", "192.0.2.2"))
    }
    return check.warnings(hosts, ["n1", "n2"], {**cluster_defaults(), "llm_api_keys": [LIMITED], **cluster})


@pytest.mark.parametrize(
    ("cluster", "warning"),
    [
        (
            {"llm_routes": [{"name": "a", "prefer": {"gpu_memory_gb": ">24"}}]},
            "Route a prefers gpu_memory_gb >24, but none of the nodes that it allows is such.",
        ),
        (
            {"llm_routes": [{"name": "a", "when": {"key": "teams-*"}}]},
            "Route a is for key teams-*, but llm_api_keys has none of that name.",
        ),
        (
            {"llm_routes": [{"name": "all"}, {"name": "b"}, {"name": "c"}]},
            "Route all takes every request, so those after it never come to their turn: b, c.",
        ),
        (
            {"llm_api_keys": [{**LIMITED, "models": ["llama*", "gpt-*"]}]},
            "Key team may use llama*, gpt-* only, but no node serves such a model.",
        ),
    ],
)
def test_rules_that_can_have_no_effect_are_warned_of(cluster: dict[str, Any], warning: str) -> None:
    assert rule_warnings(cluster) == [warning]


@pytest.mark.parametrize(
    "cluster",
    [
        {},
        {"llm_routes": [{"name": "a", "when": {"key": "te*"}, "prefer": {"memory_gb": ">16"}}, {"name": "b"}]},
        {
            "llm_api_keys": [{**LIMITED, "models": ["gpt-4o"]}],
            "llm_routes": [{"name": "a", "when": {"model": "gpt-4o"}, "model": "m:1b"}],
        },
        {"llm_routes": [{"name": "a", "prefer": {"cpus": ">16"}}]},
    ],
)
def test_rules_that_may_have_an_effect_are_not(cluster: dict[str, Any]) -> None:
    assert rule_warnings(cluster) == []


A, B = ("sha256:" + letter * 64 for letter in "ab")
LOCKED = {"m:1b": {"ollama": {"digest": A, "size": 1, "source": {}}, "llama_cpp": {"digest": B}}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"n1": {"llm_models": [{"name": "m:1b", "digest": A}]}}, []),
        (
            {"n1": {"llm_models": [{"name": "m:1b", "digest": B}]}},
            [f"llm_models wants {B}, the lock file says {A} (ollama). Run playbooks/lock.yml", "different answers"],
        ),
        # On another engine it is another digest, and what is locked is enough for a URL.
        ({"n1": gguf(source={"url": "http://x/y"})}, []),
        # Pinned, it is the same from anywhere.
        ({"n1": {"llm_models": [{"name": "m:1b", "source": {"registry": "mirror:5000/m:1b"}}]}}, []),
    ],
)
def test_what_is_wanted_agrees_with_the_lock(changes: dict[str, Any], words: list[str]) -> None:
    found = problems(changes, {"llm_lock": LOCKED}, ROLES)
    assert len(found) == len(words)
    for problem, part in zip(found, words, strict=True):
        assert part in problem


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"digest": A}, {"digest": B}, f"Model m:1b would be {A} on n1 and {B} on n2"),
        ({"digest": A}, {}, f"would be {A} on n1 and any version on n2"),
        ({"source": {"registry": "x"}}, {"source": {"registry": "y"}}, "different sources on n1 and n2"),
        ({"source": {"registry": "x"}, "digest": A}, {"source": {"registry": "y"}, "digest": A}, ""),
    ],
)
def test_one_model_is_one_version(one: dict[str, Any], other: dict[str, Any], words: str) -> None:
    changes = {"n1": {"llm_models": [{"name": "m:1b", **one}]}, "n2": {"llm_models": [{"name": "m:1b", **other}]}}
    found = problems(changes, {}, ROLES)
    assert len(found) == bool(words)
    assert words in "".join(found)


READ = {**FACTS, "llm_node_facts": {"memory_gb": 64, "cpus": 8, "architecture": "x86_64", "gpus": 0}}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"memory_gb": ">32"}, ""),
        ({"rakc": "b"}, "labels asks for rakc, which no node has; there are architecture"),
        ({"memory_gb": ">many"}, "labels.memory_gb: must be a value, a comparison"),
        (["memory_gb"], "labels: must be an object"),
    ],
)
def test_labels_that_place_a_model_are_right(labels: Any, words: str) -> None:
    wanted = {"llm_models": [{"name": "m:1b"}, {"name": "large", "labels": labels}], "ansible_facts": READ}
    found = problems({"n1": wanted, "n2": wanted}, {}, ROLES)
    assert len(found) == bool(words)
    assert words in "".join(found)


@pytest.mark.parametrize(
    ("facts", "labels", "words"),
    [
        (READ, {"memory_gb": ">32"}, []),
        (READ, {"memory_gb": ">100"}, ["Model large is on no node: none has memory_gb >100."]),
        (
            READ,
            {"gpu_memory_gb": ">24"},
            ["large is on no node", "n1: gpu_memory_gb could not be read, so model large (gpu_memory_gb >24) isn't"],
        ),
        (FACTS, {"memory_gb": ">32"}, ["nobody knows whether model large (memory_gb >32) belongs there"]),
    ],
)
def test_warnings_of_placement_by_label(facts: dict[str, Any], labels: dict[str, Any], words: list[str]) -> None:
    wanted = [{"name": "m:1b"}, {"name": "large", "labels": labels}]
    hosts = {"n1": {**HOSTS["n1"], "ansible_facts": facts, "llm_models": wanted}}
    found = check.label_warnings(hosts, ["n1"], cluster_defaults())
    assert len(found) == len(words)
    for warning, part in zip(found, words, strict=True):
        assert part in warning
