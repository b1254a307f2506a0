# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _topology as topology

DEFAULTS: dict[str, Any] = {
    "llm_engine": "ollama",
    "llm_node_port": 8000,
    "llm_node_slots": 4,
    "llm_node_weight": 1,
    "llm_node_backup": False,
    "llm_node_labels": {},
    "llm_models": [],
}
TWO_MODELS = [{"name": "a:1b", "source": {"url": "http://mirror/a.gguf"}}, {"name": "B/c", "slots": 1}]


def host(**variables: Any) -> dict[str, Any]:
    return {"llm_address": "192.0.2.1", **variables}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"llm_address": "192.0.2.9"}, "192.0.2.9"),
        ({"ansible_facts": {"default_ipv4": {"address": "192.0.2.3"}}}, "192.0.2.3"),
        ({"ansible_facts": {"default_ipv4": {}, "default_ipv6": {"address": "2001:db8::3"}}}, "2001:db8::3"),
        ({"llm_address": "", "ansible_facts": {"default_ipv4": {"address": "192.0.2.3"}}}, "192.0.2.3"),
        ({"ansible_host": "192.0.2.8", "ansible_facts": {"default_ipv4": {"address": "192.0.2.3"}}}, "192.0.2.3"),
        ({"ansible_host": "192.0.2.8"}, "192.0.2.8"),
        ({"ansible_host": "node1.example.com"}, None),
        ({"inventory_hostname": "192.0.2.11"}, "192.0.2.11"),
        ({"ansible_host": "192.0.2.8", "inventory_hostname": "192.0.2.11"}, "192.0.2.8"),
        ({"ansible_host": "node1.example.com", "inventory_hostname": "192.0.2.11"}, None),
        ({"inventory_hostname": "node1"}, None),
        ({}, None),
    ],
)
def test_address_of_prefers_the_inventory(variables: dict[str, Any], expected: str | None) -> None:
    assert topology.address_of(variables) == expected


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (("192.0.2.1", 80), "http://192.0.2.1"),
        (("192.0.2.1", 8000), "http://192.0.2.1:8000"),
        (("2001:db8::1", 443, True), "https://[2001:db8::1]"),
        (("llm.example.com", "8443", True), "https://llm.example.com:8443"),
    ],
)
def test_urls_are_as_short_as_can_be(arguments: tuple[Any, ...], url: str) -> None:
    assert topology.url_of(*arguments) == url


@pytest.mark.parametrize(
    ("model", "unit"),
    [("gemma3:270m", "gemma3-270m"), ("org/Name_V2:Q4", "org-name-v2-q4"), ("../etc", "etc"), (":::", "model")],
)
def test_unit_names_are_safe_in_files_and_units(model: str, unit: str) -> None:
    assert topology.unit_name(model) == unit


def test_an_ollama_node_is_one_peer_with_all_models() -> None:
    (peer,) = topology.node_peers("n1", host(llm_models=TWO_MODELS, llm_node_weight=2), DEFAULTS)
    assert (peer["name"], peer["port"], peer["slots"], peer["weight"]) == ("n1", 8000, 4, 2.0)
    assert [model["name"] for model in peer["models"]] == ["a:1b", "B/c"]
    assert peer["models"][1]["source"] == {"registry": "B/c"}


def test_a_llama_cpp_node_is_one_peer_per_model_on_consecutive_ports() -> None:
    first, second = topology.node_peers("n1", host(llm_engine="llama_cpp", llm_models=TWO_MODELS), DEFAULTS)
    assert (first["name"], first["port"], first["slots"]) == ("n1/a-1b", 8000, 4)
    assert (second["name"], second["port"], second["slots"]) == ("n1/b-c", 8001, 1)


def test_a_llama_cpp_node_with_one_model_is_called_like_the_node() -> None:
    models = [{"name": "a:1b", "port": 9000}]
    (peer,) = topology.node_peers("n1", host(llm_engine="llama_cpp", llm_models=models), DEFAULTS)
    assert (peer["name"], peer["port"]) == ("n1", 9000)


def test_a_node_without_models_has_no_peer() -> None:
    assert topology.node_peers("n1", host(), DEFAULTS) == []


@pytest.mark.parametrize(
    ("nodes", "placed"), [(None, True), ([], True), (["n1"], True), (["big"], True), (["n2"], False)]
)
def test_placement_by_host_or_group(nodes: list[str] | None, placed: bool) -> None:
    assert topology.placed_on({"name": "m", "nodes": nodes}, "n1", ["llm_nodes", "big"]) is placed


@pytest.mark.parametrize(
    ("given", "normal"), [(None, None), ("", None), ("ABC", "sha256:abc"), ("sha256:aBc", "sha256:abc")]
)
def test_digests_have_one_form(given: str | None, normal: str | None) -> None:
    assert topology.normal_digest(given) == normal


@pytest.mark.parametrize(
    ("value", "truth"), [(True, True), (False, False), ("false", False), ("False", False), ("no", False), ("yes", True)]
)
def test_booleans_may_come_as_text(value: Any, truth: bool) -> None:
    (peer,) = topology.node_peers("n1", host(llm_models=TWO_MODELS, llm_node_backup=value), DEFAULTS)
    assert peer["backup"] is truth


def facts(**values: Any) -> dict[str, Any]:
    return {"ansible_facts": {"llm_node_facts": values}, "group_names": ["llm_nodes", "big"], "llm_models": TWO_MODELS}


ALL_FACTS = {"memory_gb": 63, "cpus": 16, "architecture": "x86_64", "gpus": 1, "gpu_memory_gb": 24}
ALWAYS = {"engine": "ollama", "groups": ["big", "llm_nodes"]}


@pytest.mark.parametrize(
    ("variables", "labels", "unknown"),
    [
        (facts(**ALL_FACTS), {**ALWAYS, **ALL_FACTS}, []),
        (facts(), ALWAYS, ["memory_gb", "cpus", "architecture", "gpus", "gpu_memory_gb"]),
        (
            {**facts(**ALL_FACTS), "llm_node_labels": {"gpu_memory_gb": 48, "rack": "b", "groups": ["mine"]}},
            {**ALWAYS, **ALL_FACTS, "gpu_memory_gb": 48, "rack": "b", "groups": ["mine"]},
            [],
        ),
        (
            {**facts(memory_gb=63, cpus=8), "llm_node_labels": {"architecture": "riscv64", "gpus": None}},
            {**ALWAYS, "memory_gb": 63, "cpus": 8, "architecture": "riscv64"},
            ["gpu_memory_gb"],
        ),
    ],
)
def test_labels_come_from_the_node_and_the_inventory(
    variables: dict[str, Any], labels: dict[str, Any], unknown: list[str]
) -> None:
    (peer,) = topology.node_peers("n1", host(**variables), DEFAULTS)
    assert peer["labels"] == labels
    assert topology.unread_labels([peer]) == ({"n1": unknown} if unknown else {})


LOCK = {"a:1b": {"ollama": {"digest": "sha256:aa", "size": 7, "source": {}}, "llama_cpp": {"digest": "sha256:bb"}}}


@pytest.mark.parametrize(
    ("engine", "explicit", "expected"),
    [
        ("ollama", None, ("sha256:aa", 7)),
        ("llama_cpp", None, ("sha256:bb", None)),
        ("ollama", "AA", ("sha256:aa", 7)),
        ("ollama", "CC", ("sha256:cc", None)),
    ],
)
def test_a_model_has_its_own_digest_or_else_the_locked_one(engine: str, explicit: str | None, expected: Any) -> None:
    wanted = [{"name": "a:1b", "digest": explicit}]
    (peer,) = topology.node_peers("n1", host(llm_engine=engine, llm_models=wanted), DEFAULTS, LOCK)
    (model,) = peer["models"]
    assert (model["digest"], model["size"]) == expected


BY_LABEL = [
    {"name": "a", "labels": {"gpu_memory_gb": ">24"}},
    {"name": "b"},
    {"name": "c", "labels": {"rack": ["b", "c"]}},
]


@pytest.mark.parametrize(
    ("variables", "certain", "possible"),
    [
        ({**facts(**ALL_FACTS), "llm_node_labels": {"rack": "b"}}, ["b", "c"], ["b", "c"]),
        (facts(**{**ALL_FACTS, "gpu_memory_gb": 48}), ["a", "b"], ["a", "b"]),
        (facts(memory_gb=63), ["b"], ["b"]),  # reached, but the GPU could not be read
        ({"group_names": []}, ["b"], ["a", "b"]),  # not reached
    ],
)
def test_placement_by_label(variables: dict[str, Any], certain: list[str], possible: list[str]) -> None:
    values = host(**{**variables, "llm_models": BY_LABEL})
    for doubtful, expected in ((False, certain), (True, possible)):
        (peer,) = topology.node_peers("n1", values, DEFAULTS, doubtful=doubtful)
        assert [model["name"] for model in peer["models"]] == expected


def test_names_and_ports_do_not_depend_on_labels() -> None:
    values = host(llm_engine="llama_cpp", llm_models=BY_LABEL, llm_node_labels={"rack": "b"})
    peers = topology.node_peers("n1", values, DEFAULTS)
    assert [(peer["name"], peer["port"]) for peer in peers] == [("n1/b", 8001), ("n1/c", 8002)]


def test_keys_are_kept_as_their_sha256_only() -> None:
    entries = topology.key_entries([{"name": "z", "key": "secret"}, {"name": "a", "sha256": "AB" * 32}])
    assert entries == [
        {"name": "a", "sha256": "ab" * 32},
        {"name": "z", "sha256": hashlib.sha256(b"secret").hexdigest()},
    ]


def test_the_routing_table_names_models_and_carries_no_key() -> None:
    peers = topology.node_peers("n1", host(llm_models=TWO_MODELS), DEFAULTS)
    table = topology.routing_table(
        peers,
        default_model="",
        api_keys=[{"name": "z", "key": "secret", "concurrent": 2, "models": ["a*"], "requests_per_minute": None}],
        require_key=True,
        limits={"probe_interval": 2},
        policy="least_busy",
        routes=[{"name": "all"}],
    )
    assert table["schema"] == 1
    assert table["default_model"] == "a:1b"
    assert table["peers"][0]["models"] == ["a:1b", "B/c"]
    assert table["limits"] == {"probe_interval": 2}
    assert (table["policy"], table["routes"]) == ("least_busy", [{"name": "all"}])
    assert sorted(table["keys"][0]) == ["concurrent", "models", "name", "sha256"]
    assert sorted(table["peers"][0]) == sorted([*topology.TABLE_PEER, "models"])
    assert "secret" not in str(table)
