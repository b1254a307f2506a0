# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module balancer_routing with a real balancer: what Lua keeps and says again is the table that was put."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._admin import AdminClient, RefusedError
from ansible_collections.llm.cluster.plugins.module_utils._routing_table import LIMITS, normal_table
from ansible_collections.llm.cluster.plugins.modules.balancer_routing import put_table
from balancer.harness import Balancer, MakeBalancer

TABLE: dict[str, Any] = {
    "default_model": "m",
    "policy": "weighted_round_robin",
    "keys": [
        {"name": "a", "sha256": "AB" * 32, "requests_per_minute": 60, "concurrent": 2, "models": ["m*"]},
        {"name": "b", "sha256": "CD" * 32},
    ],
    "peers": [
        {
            "name": name,
            "engine": "ollama",
            "address": f"127.0.0.{number}",
            "port": 9,
            "models": ["m", "n"],
            "slots": 2,
            "weight": 1.5,
            "labels": {
                "groups": ["llm_nodes"],
                "gpu_memory_gb": 24.0,
                "driver": "1.10",
                "ssd": True,
                "racks": [],
                "memory_gb": 63,
            },
        }
        for number, name in enumerate(("node1", "node2"), 2)
    ],
    "routes": [
        {
            "name": "all-of-it",
            "when": {
                "model": ["m", "alias*"],
                "prompt_chars_over": 10.0,
                "messages_under": 5,
                "stream": False,
                "path": "/v1/*",
                "key": None,
            },
            "require": {"gpu_memory_gb": ">=24", "ssd": True, "groups": ["llm_nodes", "others"]},
            "prefer": {"memory_gb": 63},
            "peers": ["node1"],
            "model": "m",
            "fallback": "n",
        },
        {"name": "rest", "when": {}, "require": None},
    ],
    "limits": {name: default + 0.25 for name, (default, _least, most) in LIMITS.items() if default + 0.25 < most},
}


@pytest.fixture
def client(own_balancer: MakeBalancer) -> AdminClient:
    balancer: Balancer = own_balancer(workers=1)
    return AdminClient(str(balancer.variables["balancer_admin_socket"]), 5)


def put(client: AdminClient, table: dict[str, Any], **keep: list[str]) -> list[str]:
    changes: list[str] = put_table(client, normal_table(table), keep, False)["changes"]
    return changes


def test_a_second_time_nothing_changes(client: AdminClient) -> None:
    assert "route all-of-it: added" in put(client, TABLE)
    assert put(client, TABLE) == []
    assert put(client, {**TABLE, "limits": {}})[0].startswith("limits: connect_timeout 1.25 -> 1, ")
    other = copy.deepcopy(TABLE)
    other["routes"][0]["fallback"] = "m"
    other["keys"][1]["concurrent"] = 1
    assert put(client, {**other, "limits": {}}) == [
        "key b: concurrent none -> 1",
        "route all-of-it: fallback n -> m",
    ]


def test_labels_that_could_not_be_read_are_those_in_force(client: AdminClient) -> None:
    put(client, TABLE)
    unread = copy.deepcopy(TABLE)
    del unread["peers"][0]["labels"]["gpu_memory_gb"]
    with pytest.raises(RefusedError, match=r"routes\[all-of-it\]: can match no peer"):
        put(client, unread)
    assert put(client, unread, node1=["gpu_memory_gb", "cpus"]) == []
