# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's share on real hosts: what it gives, to whom, what it can see, and that nothing is left of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.demo_cluster import Cluster, PlaybookRun

UNIT = "llm-cluster-share.service"
STORE = "/var/lib/share-test"
NAME = "sha256-" + "ab" * 32
TOKEN = "not-a-secret-token-of-the-first-run"
SECOND = "not-a-secret-token-of-the-second-run"
NODES = {"node1", "node2", "node3"}

PLAY = """
- hosts: llm_nodes
  tasks:
    - ansible.builtin.setup: {gather_subset: [network]}
    - llm.cluster.model_share:
        state: "{{ wanted }}"
        address: "{{ ansible_facts['default_ipv4']['address'] }}"
        token: "{{ shown }}"
        allowed: "{{ ansible_play_hosts | map('extract', hostvars, ['ansible_facts', 'default_ipv4', 'address']) }}"
        models_dir: STORE/models
        partial_dir: STORE/partial
        runtime_max: 600
""".replace("STORE", STORE)

ASK = """python3 -c '
import http.client
connection = http.client.HTTPConnection("{address}", 8090, timeout=5)
connection.request("GET", "/blobs/{name}", headers={{"Authorization": "Bearer {token}"}})
answer = connection.getresponse()
print(answer.status, answer.read().decode().strip())
' 2>&1 | tail -n 1"""


def share(cluster: Cluster, folder: Path, wanted: str, token: str = TOKEN, *more: str) -> PlaybookRun:
    """Bring the share to a state on all nodes."""
    play = folder / "share.yml"
    play.write_text(PLAY)
    run = cluster.playbook(str(play), "-e", f"wanted={wanted} shown={token}", "-v", *more, folder=folder)
    assert run.code == 0, run.output
    assert token not in run.output
    return run


@pytest.fixture
def started(cluster: Cluster, tmp_path: Path) -> Iterator[PlaybookRun]:
    yield share(cluster, tmp_path, "started")
    share(cluster, tmp_path, "stopped")
    for node in NODES:
        cluster.ssh(node, f"rm -r {STORE}")


def ask(cluster: Cluster, host: str, token: str = TOKEN) -> str:
    """Ask node1's share from a host."""
    address = cluster.ssh("node1", "hostname -I").split()[0]
    return cluster.ssh(host, ASK.format(address=address, name=NAME, token=token)).strip()


def test_a_share_from_its_start_to_its_end(cluster: Cluster, started: PlaybookRun, tmp_path: Path) -> None:
    assert set(started.changed()) == NODES
    # Files of root and of an engine's own user, both nobody else's.
    cluster.ssh("node1", f"cd {STORE}/models && echo weights > {NAME}.gguf && chmod 600 {NAME}.gguf")
    assert ask(cluster, "node2") == "200 weights"
    cluster.ssh("node1", f"chown nobody {STORE}/models/{NAME}.gguf")
    assert ask(cluster, "node1") == "200 weights"
    assert ask(cluster, "node2", "another-token-of-somebody").split() == ["401"]
    assert "refused" in ask(cluster, "balancer")

    score = cluster.ssh("node1", f"systemd-analyze security --no-pager {UNIT}")
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", score)
    assert found, score
    assert float(found.group(1)) <= 2.0, score
    # Of the root folder it has programs; of the rest empty folders, and its own two.
    mounted = cluster.ssh("node1", f"cat /proc/$(systemctl show -P MainPID {UNIT})/mountinfo")
    mounts = {
        line.split()[4]: (line.split()[5].split(","), line.split(" - ")[1].split()[0]) for line in mounted.splitlines()
    }
    for path in ("/etc", "/var", "/srv", "/opt", "/run", "/home", "/root"):
        assert (mounts[path][0][0], mounts[path][1]) == ("ro", "tmpfs"), mounted
    inside = {
        path for path in mounts if path.startswith(("/etc/", "/var/", "/srv/", "/opt/", "/run/", "/home/", "/root/"))
    }
    inside -= {"/var/tmp", "/run/user", "/run/systemd/incoming", *(path for path in inside if "credentials" in path)}
    assert inside == {f"{STORE}/models", f"{STORE}/partial", "/run/llm-cluster/share"}, mounted
    assert all(mounts[path][0][0] == "ro" for path in inside), mounted
    assert cluster.ssh("node1", "stat -c %a:%U /run/llm-cluster/share /run/llm-cluster/share/token").split() == [
        "700:root",
        "600:root",
    ]
    assert TOKEN not in cluster.ssh("node1", f"ps -eo args; journalctl --no-pager -u {UNIT}")

    # The same once more is nothing; what another run left is replaced.
    assert share(cluster, tmp_path, "started").changed() == {}
    assert set(share(cluster, tmp_path, "started", SECOND, "--check").changed()) == NODES
    assert ask(cluster, "node2") == "200 weights"
    cluster.ssh("node3", f"systemctl kill --signal=KILL {UNIT}")
    assert set(share(cluster, tmp_path, "started", SECOND).changed()) == NODES
    assert ask(cluster, "node2").split() == ["401"]
    assert ask(cluster, "node2", SECOND) == "200 weights"

    assert set(share(cluster, tmp_path, "stopped").changed()) == NODES
    assert share(cluster, tmp_path, "stopped").changed() == {}
    for node in sorted(NODES):
        assert (
            cluster.ssh(node, f"systemctl is-active {UNIT}; ls /run/llm-cluster", check=False).split()[0] == "inactive"
        )
        assert "share" not in cluster.ssh(node, "ls /run/llm-cluster")
    assert "refused" in ask(cluster, "node2")
