# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that broke off between writing and doing: the next one does what is left, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from e2e.demo_cluster import Cluster

UNIT = "llama-cpp@gemma3-270m.service"
PHASES = ("site.yml", "--limit", "node1,node3", "--tags", "firewall,llama_cpp")
LOAD = "Load the table now and at every start"


def main_pid(cluster: Cluster, node: str) -> str:
    return cluster.ssh(node, f"systemctl show --value --property MainPID {UNIT}").strip()


@pytest.fixture
def left_undone(cluster: Cluster) -> None:
    """Leave what such runs leave: files as they should be, but newer than what runs, and another table or none."""
    cluster.ssh("node1", "touch /etc/llama-cpp/gemma3-270m.env")
    cluster.ssh("node1", """sed 's/comment "[0-9a-f]*"/comment "older"/' /etc/llm-cluster/firewall.nft | nft -f -""")
    cluster.ssh("node3", "touch /etc/systemd/system/llamacpp.slice && nft delete table inet llm_cluster")


def test_the_next_run_does_what_one_left_undone(cluster: Cluster, left_undone: None, tmp_path: Path) -> None:
    before = {node: main_pid(cluster, node) for node in ("node1", "node3")}
    run = cluster.playbook(*PHASES, folder=tmp_path)
    assert run.code == 0, run.output[-6000:]
    changed = {host: [task.split(" : ")[-1] for task in tasks] for host, tasks in run.changed().items()}
    assert changed == {
        "node1": [LOAD, "Run the instances"],
        "node3": [LOAD, "Let the running instances talk to the new addresses"],
    }
    assert "older" not in cluster.ssh("node1", "nft list table inet llm_cluster")
    assert "comment" in cluster.ssh("node3", "nft list table inet llm_cluster")
    assert main_pid(cluster, "node1") != before["node1"]
    assert main_pid(cluster, "node3") == before["node3"]

    again = cluster.playbook(*PHASES, folder=tmp_path)
    assert again.code == 0, again.output[-6000:]
    assert again.changed() == {}
