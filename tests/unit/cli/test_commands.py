# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The group beside another plugin's command of that name, and bad input; the rest goes through the real llm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from llm_cluster_ops import Cluster, plugin
from llm_cluster_ops.cluster import Model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nodes.yml").write_text(
        "llm_nodes: {hosts: {node1: , node2: }}\nllm_balancers: {hosts: {balancer: }}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, other: click.Command | None = None) -> Result:
    """Run ``llm cluster …`` with another plugin's command in its place before."""
    cli = click.Group("llm")
    if other is not None:
        cli.add_command(other, "cluster")
    plugin.register_commands(cli)
    return CliRunner().invoke(cli, ["cluster", *arguments])


@click.command("cluster")
@click.argument("collection")
@click.argument("n", type=int)
@click.option("--truncate", type=int)
def theirs(collection: str, n: int, truncate: int | None) -> None:
    click.echo(f"theirs {collection} {n} {truncate}")


def test_the_other_command_is_called_as_before() -> None:
    assert call("texts", "3", "--truncate", "5", other=theirs).output == "theirs texts 3 5\n"
    assert call("--truncate", "5", "texts", "3", other=theirs).output == "theirs texts 3 5\n"
    # Even a collection with the name of one of our commands can be had.
    assert call("cluster", "status", "3", other=theirs).output == "theirs status 3 None\n"
    assert "add-node" in call("--help", other=theirs).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deploy", "--limit", "balancr"), "Did you mean balancer or llm_balancers?"),
        (("resume", "node3"), "There is no node 'node3'. Did you mean node2 or node1?"),
        (("add-node", "h", "--engine", "olama"), "Did you mean ollama?"),
        (("add-node", "h", "--label", "rack"), "write KEY=VALUE"),
        (("add-node", "h:ssh"), "'ssh' in 'h:ssh' is no port"),
        (("add-node", "node1"), "node1 is in the inventory already (llm_nodes)"),
        (("remove-node", "zzz"), "There is no node 'zzz'. The nodes are node1, node2."),
        (("remove-node", "node1", "--purge-models", "--leave-host"), "give one of them"),
        (("lock", "--from", "nodeX"), "There is no node 'nodeX'"),
        (("init", "."), "There is a cluster in"),
        (("drain", "node1", "--timeout", "-1"), "x>=0"),
        (("verfy",), "Did you mean verify?"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_input_is_named_and_changes_nothing(arguments: tuple[str, ...], words: str) -> None:
    refused = call(*arguments)
    assert refused.exit_code == 2, refused.output
    assert words in refused.output
    assert isinstance(refused.exception, SystemExit)


def test_what_the_system_refuses_is_told_without_a_traceback(folder: Path) -> None:
    (folder / "busy").write_text("a file")
    refused = call("init", "busy/office")
    assert refused.exit_code == 1
    assert "busy" in refused.output
    assert isinstance(refused.exception, SystemExit)


def test_who_reads_no_further_gets_no_error(tmp_path: Path) -> None:
    program = "import click; from llm_cluster_ops import plugin; c = click.Group(); plugin.register_commands(c); c()"
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, "cluster", "init", str(tmp_path / "office")],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "XDG_CONFIG_HOME": str(tmp_path)},
            stdout=writes,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (1, "")
    assert (tmp_path / "office" / "nodes.yml").exists()


def test_without_a_terminal_a_model_is_one_line_however_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, nodes = f"sha256:{'0' * 64}", [f"node{number}" for number in range(99)]
    monkeypatch.setattr(Cluster, "models", lambda self: [Model("gemma3:4b", {digest: nodes}, [])])
    heading, row = call("models", "--dir", str(folder)).output.splitlines()
    assert heading.split() == ["model", "digest", "nodes"]
    assert row.split() == ["gemma3:4b", digest, *", ".join(nodes).split()]
