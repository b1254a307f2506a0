# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A converged cluster: a second run changes nothing and is quick; check mode tells the truth."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.demo_cluster import Cluster

MOST_REMOTE_TASKS = 30
MOST_SECONDS = 60
# How long 20 pings of all hosts take tells how slow the machine is today: 11 s where a second run took 54 and 64 s.
PINGS, MOST_TIMES_PINGS = 20, 7


def most_seconds_today(cluster: Cluster, folder: Path) -> float:
    """What a second run may take on a machine that is slow today."""
    playbook = folder / "pings.yml"
    playbook.write_text("- hosts: all\n  gather_facts: false\n  tasks:\n" + "    - ping:\n" * PINGS)
    pings = cluster.playbook(str(playbook), folder=folder)
    assert pings.code == 0, pings.output[-6000:]
    print(f"{PINGS} pings of all hosts: {pings.seconds:.1f} s")
    return MOST_TIMES_PINGS * pings.seconds


def test_a_second_run_changes_nothing_and_is_quick(cluster: Cluster, tmp_path: Path) -> None:
    run = cluster.playbook("site.yml", folder=tmp_path)
    assert run.code == 0, run.output[-6000:]
    counts = {host: len(seen["remote"]) for host, seen in run.hosts.items()}
    print(f"second site.yml: {run.seconds:.1f} s, remote tasks {counts}")
    assert run.changed() == {}
    assert max(counts[host] for host in ("node1", "node2", "node3")) <= MOST_REMOTE_TASKS
    assert run.seconds <= MOST_SECONDS or run.seconds <= most_seconds_today(cluster, tmp_path)


def test_check_mode_of_a_converged_cluster_reports_nothing(cluster: Cluster, tmp_path: Path) -> None:
    run = cluster.playbook("site.yml", "--check", "--diff", folder=tmp_path)
    assert run.code == 0, run.output[-6000:]
    assert run.changed() == {}
    assert "\n+" not in run.output


def test_check_mode_reports_just_what_changed_and_no_secret(cluster: Cluster, tmp_path: Path) -> None:
    key = "obviously-a-fake-key-for-this-test"
    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps({"llm_node_weight": 3, "llm_api_keys": [{"name": "demo", "key": key}]}))
    run = cluster.playbook("site.yml", "--check", "--diff", "-e", f"@{variables}", folder=tmp_path)
    assert run.code == 0, run.output[-6000:]
    # Both are parts of the routing table; the client's host is the balancer, and its users' key is the same one.
    changed = {host: [task.split(" : ")[-1] for task in tasks] for host, tasks in run.changed().items()}
    assert changed == {"balancer": ["Put the routing table", "Set up users' llm for the endpoint"]}
    assert "weight" in run.output
    assert key not in run.output
    assert cluster.endpoint["api_key"] not in run.output
