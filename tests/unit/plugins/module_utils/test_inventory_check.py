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
        ({"n1": {"llm_node_labels": ["gpu"]}}, ["n1", "llm_node_labels"]),
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
    (warning,) = check.warnings({"n1": {"ansible_facts": facts}}, ["n1"])
    assert all(words in warning for words in ("n1", "2 cores", "8.2 GB of memory", "50 GB of free disk", "10 Mbit/s"))


def test_nodes_that_are_large_or_unknown_are_not_warned_of() -> None:
    facts = {"processor_vcpus": 8, "memtotal_mb": 15900, "mounts": [{"mount": "/", "size_available": 200e9}]}
    assert check.warnings({"n1": {"ansible_facts": facts}, "n2": {}}, ["n1", "n2"]) == []
