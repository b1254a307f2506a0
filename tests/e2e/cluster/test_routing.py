# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes from the inventory to the nodes: labels are the nodes' own, a route narrows, one for no node is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
from e2e.demo_cluster import Cluster

NODES = ("node1", "node2", "node3")
ROUTING = "curl -sf --unix-socket /run/llm-cluster/admin.sock http://x/routing"


def routing(cluster: Cluster) -> dict[str, Any]:
    """Return the routing table in force."""
    table: dict[str, Any] = json.loads(cluster.ssh("balancer", ROUTING))
    return table


def who_answers(cluster: Cluster, questions: int) -> set[str]:
    """Ask as often and return the peers that answered."""
    client = openai.OpenAI(
        base_url=cluster.endpoint["base_url"], api_key=cluster.endpoint["api_key"], max_retries=0, timeout=60
    )
    return {
        client.completions.with_raw_response.create(
            model=cluster.endpoint["models"][0], prompt=f"Question {number}:", max_tokens=1
        ).headers["X-LLM-Peer"]
        for number in range(questions)
    }


def test_the_labels_are_what_the_nodes_have(cluster: Cluster) -> None:
    labels = {peer["name"]: peer["labels"] for peer in routing(cluster)["peers"]}
    for node in NODES:
        kilobytes = int(cluster.ssh(node, "awk '/^MemTotal/ {print $2}' /proc/meminfo"))
        assert labels[node]["memory_gb"] == round(kilobytes / 1024 / 1024)
        assert labels[node]["cpus"] == int(cluster.ssh(node, "getconf _NPROCESSORS_ONLN"))
        assert labels[node]["architecture"] == cluster.ssh(node, "uname -m").strip()
        assert (labels[node]["engine"], labels[node]["groups"]) == ("llama_cpp", ["llm_nodes"])
        assert labels[node]["gpus"] >= 0


def test_a_route_that_no_node_can_take_stops_the_run_before_it_changes_anything(
    cluster: Cluster, tmp_path: Path
) -> None:
    routes = {"llm_routes": [{"name": "huge", "require": {"memory_gb": ">100000"}}]}
    run = cluster.playbook("site.yml", "-e", json.dumps(routes), folder=tmp_path)
    assert run.code != 0
    assert "llm_routes[huge]: can match no peer: none has memory_gb >100000" in " ".join(run.output.split())
    assert run.changed() == {}


def test_a_route_narrows_the_nodes_at_once(cluster: Cluster, tmp_path: Path) -> None:
    arguments = ("site.yml", "--tags", "balancer", "--limit", "balancer")
    routes = {"llm_routes": [{"name": "one", "when": {"path": "/v1/completions"}, "peers": ["node2"]}]}
    before = routing(cluster)["peers"]
    try:
        run = cluster.playbook(*arguments, "-e", json.dumps(routes), folder=tmp_path)
        assert run.code == 0, run.output[-6000:]
        assert {host: [task.split(" : ")[-1] for task in tasks] for host, tasks in run.changed().items()} == {
            "balancer": ["Put the routing table"]
        }
        # The nodes are outside the run, and are in the table as before.
        assert routing(cluster)["peers"] == before
        assert who_answers(cluster, 6) == {"node2"}
    finally:
        run = cluster.playbook(*arguments, folder=tmp_path)
    assert run.code == 0, run.output[-6000:]
    assert routing(cluster).get("routes", []) in ([], {})
