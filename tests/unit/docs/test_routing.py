# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of routes in the documents are right as they stand, and do what the text beside them says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.llm.cluster.plugins.filter import topology
from ansible_collections.llm.cluster.plugins.module_utils import _routes

ROOT = Path(__file__).parents[3]
KEY = "0123456789abcdef0123456789abcdef"
KEYS = [{"name": "team-a", "key": KEY}, {"name": "batch-nightly", "key": KEY}]
CLUSTER = {"llm_api_keys": KEYS, "llm_require_api_key": True}
ROLES = {"nodes": ["node1", "node2", "node3"], "balancers": ["balancer"], "clients": []}


def host(number: int, group: str, models: list[str], **facts: int) -> dict[str, Any]:
    return {
        "llm_address": f"192.0.2.{number}",
        "group_names": [group] if group == "llm_balancers" else [group, "llm_nodes"],
        "llm_models": [{"name": model} for model in models],
        "ansible_facts": {"llm_node_facts": {"cpus": 8, "architecture": "x86_64", "gpus": 1, **facts}},
    }


HOSTS = {
    "node1": host(1, "llama_nodes", ["llama3:8b", "phi3"], gpu_memory_gb=48, memory_gb=63),
    "node2": host(2, "mistral_nodes", ["mistral:7b", "llama3:8b"], gpu_memory_gb=24, memory_gb=126),
    "node3": host(3, "general_nodes", ["phi3", "llama3:8b", "gemma3:4b"], gpu_memory_gb=0, memory_gb=63),
    "balancer": host(4, "llm_balancers", []),
}


def documented(page: str) -> list[list[dict[str, Any]]]:
    """Return llm_routes of each example on a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    examples = map(yaml.safe_load, re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return [example["llm_routes"] for example in examples if "llm_routes" in example]


def commented(page: str) -> list[dict[str, Any]]:
    """Return llm_routes of an inventory in which they are commented out."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(r"^# llm_routes:\n(#  .*\n)+", text, re.MULTILINE)
    assert found is not None
    routes: list[dict[str, Any]] = yaml.safe_load(re.sub(r"^# ?", "", found.group(0), flags=re.MULTILINE))["llm_routes"]
    return routes


EXAMPLES = [
    *documented("README.md"),
    *documented("docs/routing.md"),
    commented("inventories/example/group_vars/all/main.yml"),
]


def names(routes: list[dict[str, Any]]) -> str:
    return ", ".join(route["name"] for route in routes)


def test_the_examples_are_found() -> None:
    assert [len(routes) for routes in EXAMPLES] == [2, 3, 2, 3, 2, 5]


@pytest.mark.parametrize("routes", EXAMPLES, ids=names)
def test_an_example_is_right(routes: list[dict[str, Any]]) -> None:
    cluster = {**CLUSTER, "llm_routes": routes}
    assert topology.inventory_problems(HOSTS, ROLES, cluster) == []
    assert topology.inventory_warnings(HOSTS, ROLES["nodes"], cluster) == []
    table = topology.FilterModule().filters()["routing_table"](
        topology.cluster_peers(ROLES["nodes"], HOSTS),
        default_model="",
        api_keys=KEYS,
        require_key=True,
        policy="affinity",
        routes=routes,
        limits={},
    )
    assert topology.routing_problems(table, {}) == []
    assert topology.routing_problems({**table, "routes": [{"name": "a", "peers": ["x"]}]}, {}) != []


@pytest.mark.parametrize(
    ("name", "model", "allowed", "preferred"),
    [
        ("long-prompts", "llama3:8b", ["node1", "node2", "node3"], ["node1"]),
        ("long-conversations", "llama3:8b", ["node1", "node2", "node3"], ["node2"]),
        ("llama", "llama3:8b", ["node1"], []),
        ("mistral", "mistral:7b", ["node2"], []),
        ("rest", "phi3", ["node3"], []),
    ],
)
def test_an_example_does_what_it_says(name: str, model: str, allowed: list[str], preferred: list[str]) -> None:
    peers = topology.cluster_peers(ROLES["nodes"], HOSTS)
    table_peers = topology._topology.table_peers(peers)
    found = [route for routes in EXAMPLES for route in routes if route["name"] == name]
    assert len(found) == 3
    for route in found:
        assert [peer["name"] for peer in _routes.allowed(route, table_peers, model)] == allowed
        assert [peer["name"] for peer in _routes.preferred(route, table_peers, model)] == preferred


def test_the_message_in_the_text_is_what_is_said() -> None:
    routes = [{"name": "big", "require": {"gpu_memory_gb": ">48"}}]
    (problem,) = topology.inventory_problems(HOSTS, ROLES, {**CLUSTER, "llm_routes": routes})
    assert problem in (ROOT / "docs/routing.md").read_text(encoding="utf-8")


def test_every_field_condition_and_label_is_explained() -> None:
    page = (ROOT / "docs/routing.md").read_text(encoding="utf-8")
    words = [*_routes.ROUTE_FIELDS, *_routes.WHEN_FIELDS, *topology._topology.FACT_LABELS, "engine", "groups"]
    assert [word for word in words if f"`{word}`" not in page] == []
