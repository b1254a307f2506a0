# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""verify.yml tells what is wrong: an engine that is down from a firewall in the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.demo_cluster import Cluster

UNIT = "llama-cpp@gemma3-270m.service"
QUICK = ("playbooks/verify.yml", "-e", "verify_timeout=5 verify_questions=2 verify_max_tokens=2")


def words_of(output: str) -> str:
    """Return the output on one line, so that it doesn't matter where Ansible broke a sentence."""
    return " ".join(output.replace("\n", " ").split())


@pytest.fixture
def foreign_firewall(cluster: Cluster) -> Iterator[None]:
    """A table such as a host's own firewall has, which drops what comes to node1's engine from outside."""
    rules = "table inet foreign { chain input { type filter hook input priority 10; iif != lo tcp dport 8000 drop; }; }"
    cluster.ssh("node1", f"nft '{rules}'")
    yield
    cluster.ssh("node1", "nft delete table inet foreign")


@pytest.fixture
def stopped_engine(cluster: Cluster) -> Iterator[None]:
    cluster.ssh("node2", f"systemctl stop {UNIT}")
    yield
    cluster.ssh("node2", f"systemctl start {UNIT}")


def test_a_firewall_in_the_way_is_called_one(cluster: Cluster, foreign_firewall: None, tmp_path: Path) -> None:
    run = cluster.playbook(*QUICK, folder=tmp_path)
    assert run.code != 0
    assert "node1: answers on the node itself, but not to balancer" in words_of(run.output)
    assert "A firewall is in the way" in words_of(run.output)


def test_an_engine_that_is_down_is_named(cluster: Cluster, stopped_engine: None, tmp_path: Path) -> None:
    run = cluster.playbook(*QUICK, folder=tmp_path)
    assert run.code != 0
    assert "node2: gemma3:270m at http://" in words_of(run.output)
    assert "connection refused" in words_of(run.output)
    assert "firewall" not in words_of(run.output)
