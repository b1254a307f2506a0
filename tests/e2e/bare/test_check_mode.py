# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""site.yml --check on hosts that were never converged ends well and changes nothing on them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from e2e.demo_cluster import Cluster

HOSTS = ["node1", "node2", "node3", "balancer"]
# What logging in leaves behind, whoever does it: Ansible's own temporary folder and the login records.
LOGIN_TRACES = (
    "/root/.ansible",
    "/var/log/wtmp",
    "/var/log/lastlog",
    "/var/log/btmp",
    "/var/lib/systemd",
    "/var/log/journal",
)


def differences(cluster: Cluster, host: str) -> set[str]:
    """Return what Docker sees changed in the host's file system since its image, without the traces of a login."""
    done = subprocess.run(["docker", "diff", f"llm-{cluster.name}-{host}"], capture_output=True, text=True, check=True)
    parents = {"/root", "/var", "/var/log", "/var/lib", "/var/lib/private"}
    return {
        line
        for line in done.stdout.splitlines()
        if not line[2:].startswith(LOGIN_TRACES) and not (line.startswith("C ") and line[2:] in parents)
    }


def test_check_mode_on_bare_hosts_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    before = {host: differences(cluster, host) for host in HOSTS}
    run = cluster.playbook("site.yml", "--check", "--diff", folder=tmp_path)
    assert run.code == 0, run.output[-6000:]
    after = {host: differences(cluster, host) for host in HOSTS}
    assert after == before
    # It did look: users, files and units are predicted; what can't be is named in one line.
    predicted = {task.split(" : ")[-1] for task in run.changed()["node1"] + run.changed()["balancer"]}
    assert {"Write the llm command", "Create the engine's user", "Write the unit", "Write nginx.conf"} <= predicted
    assert "Check mode: installing" in run.output
    assert "Check mode: starting" in run.output


def test_one_host_that_fails_its_preflight_stops_all(cluster: Cluster, tmp_path: Path) -> None:
    before = {host: differences(cluster, host) for host in HOSTS}
    cluster.ssh(
        "balancer", "python3 -m http.server 80 --directory /run >/dev/null 2>&1 & echo $! > /run/test-server.pid"
    )
    try:
        run = cluster.playbook("site.yml", folder=tmp_path)
    finally:
        cluster.ssh("balancer", "kill $(cat /run/test-server.pid)")
    assert run.code != 0
    assert "cannot be made a balancer, nothing was changed" in run.output
    assert run.changed() == {}
    assert {host: differences(cluster, host) for host in HOSTS} == before


def test_a_broken_inventory_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    before = {host: differences(cluster, host) for host in HOSTS}
    run = cluster.playbook("site.yml", "-e", "llm_node_slots=0 llm_default_model=none", folder=tmp_path)
    assert run.code != 0
    assert "llm_node_slots is" in run.output
    assert {host: differences(cluster, host) for host in HOSTS} == before
