# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``llm cluster load`` as far as it goes without an engine: what is asked of the inventory, checked and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.conftest import Cluster


@pytest.fixture(autouse=True)
def _addresses(folder: Path, tmp_path: Path) -> None:
    for number, host in enumerate(("balancer", "node1", "node2"), 10):
        (folder / "host_vars" / f"{host}.yml").write_text(f"llm_address: 192.0.2.{number}\n")
    (folder / "group_vars" / "all" / "store.yml").write_text(
        f"ollama_models_path: {tmp_path / 'store'}\nllama_cpp_data_dir: {tmp_path / 'store'}\nllm_engine: llama_cpp\n"
    )


def test_a_model_that_the_inventory_has_not_is_refused_with_the_ways_to_add_it(cluster: Cluster, folder: Path) -> None:
    unknown = cluster("load", "gema3")
    assert unknown.returncode == 2
    assert "Did you mean gemma3:4b?" in unknown.stderr
    assert "llm cluster load gema3 --add" in unknown.stderr


def test_where_group_vars_hold_the_models_they_stay_the_operators(cluster: Cluster, folder: Path) -> None:
    before = (folder / "nodes.yml").read_text()
    own = folder / "group_vars" / "all" / "models.yml"
    own.write_text("llm_models:\n  - name: gemma3:4b\n")
    refused = cluster("load", "qwen3:8b", "--add")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "llm_models of node1, node2 is set in group_vars/all/models.yml" in refused.stderr
    assert "llm_models:\n  - name: qwen3:8b\n" in refused.stderr
    assert own.read_text() == "llm_models:\n  - name: gemma3:4b\n"
    assert (folder / "nodes.yml").read_text() == before
    assert not list(folder.glob(".new-*"))


def test_a_model_that_the_nodes_can_not_get_is_not_added(cluster: Cluster, folder: Path) -> None:
    before = (folder / "nodes.yml").read_text()
    lock = "# ours\nmodels: {}\n"
    (folder / "models.lock.yml").write_text(lock)
    nodes = before.replace("- name: gemma3:4b", "- name: gemma3:4b\n        nodes: []")
    (folder / "nodes.yml").write_text(nodes)
    # Nobody listens there.
    refused = cluster("load", "tiny", "--source", "http://127.0.0.1:9/tiny.gguf", "--digest", "a" * 64)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert "tiny was not added; nothing was changed." in refused.stderr
    assert (folder / "nodes.yml").read_text() == nodes
    assert (folder / "models.lock.yml").read_text() == lock
    assert "Traceback" not in refused.stderr


def test_a_model_that_a_node_does_not_serve_yet_is_not_loaded(cluster: Cluster, folder: Path) -> None:
    failed = cluster("load", "gemma3:4b")
    assert failed.returncode == 1, failed.stdout + failed.stderr
    for node in ("node1", "node2"):
        assert f"{node}: failed at: Check that the node serves it" in failed.stderr
    assert "Run llm cluster deploy, which brings it there." in failed.stderr
