# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What adding and removing a node says and leaves when it stops on the way. Only drain is Ansible's own here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from llm_cluster_ops import Cluster, RunFailedError
from llm_cluster_ops._runner import Failure, Run
from llm_cluster_ops.cluster import Node

NODES = "llm_nodes:\n  hosts:\n    node1:\n    node2:\nllm_balancers:\n  hosts:\n    b1:\n    b2:\n"
UNKNOWN = "The balancer has no node or peer node2. It knows: node1."


class Recorded(Cluster):
    """A cluster whose playbooks are only noted; the one that is to fail does, with what it passed over."""

    fails = ""
    interrupted = False
    ignored: tuple[tuple[str, str], ...] = ()

    def play(self, playbook: str | Path, name: str, **options: Any) -> Run:
        self.played = [*getattr(self, "played", []), name]
        run = Run(name, Path("/logs/x.log"), interrupted=self.interrupted)
        if name == self.fails:
            run.ignored += [Failure(host, "Give it nothing new", reason) for host, reason in self.ignored]
            run.failures.append(Failure("b1", "x", "no"))
            raise RunFailedError(run)
        return run


class Drained(Recorded):
    """A cluster that really drains."""

    def play(self, playbook: str | Path, name: str, **options: Any) -> Run:
        noted = super().play(playbook, name, **options)
        return Cluster.play(self, playbook, name, **options) if name == "drain" else noted


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    office = tmp_path / "office"
    (office / "group_vars" / "all").mkdir(parents=True)
    (office / "nodes.yml").write_text(NODES)
    (office / "group_vars" / "all" / "here.yml").write_text(
        f"ansible_connection: local\nansible_python_interpreter: {sys.executable}\nansible_become: false\n"
        f"balancer_admin_socket: {tmp_path / 'admin.sock'}\n"
    )
    return office


def test_a_node_is_removed_before_any_balancer_was_deployed(folder: Path) -> None:
    cluster = Drained(folder)
    cluster.remove_node("node2")
    assert cluster.played == ["drain", "clean", "balancers"]
    assert cluster.nodes() == ["node1"]


def test_a_balancer_that_is_not_reached_may_give_it_requests(folder: Path) -> None:
    (folder / "host_vars").mkdir()
    (folder / "host_vars" / "b2.yml").write_text("ansible_connection: ssh\nansible_host: 127.0.0.1\nansible_port: 1\n")
    cluster = Drained(folder)
    with pytest.raises(RunFailedError, match="Connection refused") as failed:
        cluster.remove_node("node2", leave_host=True)
    assert "llm cluster deploy" not in str(failed.value)
    assert cluster.played == ["drain"]
    assert cluster.nodes() == ["node1", "node2"]


def test_a_node_that_only_some_balancers_do_not_have_is_not_removed_while_others_give_it_requests(folder: Path) -> None:
    cluster = Recorded(folder)
    cluster.fails, cluster.ignored = "drain", (("b2", UNKNOWN),)
    with pytest.raises(RunFailedError, match="llm cluster deploy --limit llm_balancers"):
        cluster.remove_node("node2")
    cluster.ignored = (("b1", UNKNOWN), ("b2", UNKNOWN))
    assert cluster.remove_node("node2").node == "node2"


def test_ctrl_c_ends_removing_a_node_too(folder: Path) -> None:
    cluster = Recorded(folder)
    cluster.interrupted = True
    cluster.fails, cluster.ignored = "drain", (("b1", UNKNOWN), ("b2", UNKNOWN))
    with pytest.raises(RunFailedError):
        cluster.remove_node("node2")
    assert cluster.nodes() == ["node1", "node2"]


def test_a_node_that_is_out_while_balancers_still_list_it_is_told_so(folder: Path) -> None:
    cluster = Recorded(folder)
    cluster.fails = "balancers"
    with pytest.raises(RunFailedError, match="node2 is out of the inventory; balancers may still list it"):
        cluster.remove_node("node2")
    assert cluster.nodes() == ["node1"]


def test_the_first_node_can_not_be_given_up_by_removing_it(folder: Path) -> None:
    cluster = Recorded(folder)
    cluster.fails = "deploy"
    with pytest.raises(RunFailedError, match="llm cluster remove-node node3"):
        cluster.add_node(Node("node3"))
    (folder / "nodes.yml").write_text("llm_nodes:\n  hosts:\n")
    with pytest.raises(RunFailedError, match=r"by taking it out of nodes\.yml by hand") as failed:
        cluster.add_node(Node("node4"))
    assert "remove-node" not in str(failed.value)
