# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which a model is added, and what stays when it stops on the way. Ansible's part is in tests/cli."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llm_cluster_ops import Cluster, RunFailedError, _models
from llm_cluster_ops._errors import UsageError
from llm_cluster_ops._runner import Failure, Run

NODES = "all:\n  vars:\n    llm_models:\n      - name: a\nllm_nodes:\n  hosts:\n    node1:\n"


class Recorded(Cluster):
    """A cluster whose playbooks are only noted; the one that is to fail does."""

    fails = ""

    def play(self, playbook: str | Path, name: str, **options: Any) -> Run:
        self.played = [*getattr(self, "played", []), name]
        drafts = [path.read_text() for path in options.get("inventory", [])]
        assert all("name: b" in draft for draft in drafts)
        if name == "lock":
            (self.folder / "models.lock.yml").write_text("models: {a: 1, b: 2}\n")
        run = Run(name, Path("/logs/x.log"))
        if name == self.fails:
            run.failures.append(Failure("node1", "x", "no"))
            raise RunFailedError(run)
        return run


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    (tmp_path / "nodes.yml").write_text(NODES)

    def variables(folder: Path, *more: Path) -> dict[str, Any]:
        named = ["a", *(["b"] if any("name: b" in path.read_text() for path in more) else [])]
        return {"node1": {"llm_models": [{"name": name} for name in named]}}

    monkeypatch.setattr(_models, "host_variables", variables)
    return Recorded(tmp_path)


def test_one_that_is_there_is_loaded(cluster: Recorded) -> None:
    cluster.load("a")
    assert cluster.played == ["load"]
    cluster.load("a", add=True)
    assert cluster.played == ["load", "load"]
    with pytest.raises(UsageError, match="in llm_models already"):
        cluster.load("a", source="https://x/y.gguf")


@pytest.mark.parametrize(("locked", "before"), [(False, []), (True, ["lock"])])
def test_a_new_one_is_checked_written_deployed_and_loaded(cluster: Recorded, locked: bool, before: list[str]) -> None:
    if locked:
        (cluster.folder / "models.lock.yml").write_text("models: {a: 1}\n")
    runs = cluster.load("b", add=True)
    assert cluster.played == [*before, "check-model", "deploy", "load"] == [run.name for run in runs]
    assert (cluster.folder / "nodes.yml").read_text() == NODES.replace("- name: a\n", "- name: a\n      - name: b\n")
    assert not list(cluster.folder.glob(".new-*"))


@pytest.mark.parametrize("step", ["lock", "check-model"])
def test_what_fails_before_it_is_written_leaves_everything(cluster: Recorded, step: str) -> None:
    lock = cluster.folder / "models.lock.yml"
    lock.write_text("models: {a: 1}\n")
    cluster.fails = step
    with pytest.raises(RunFailedError, match="b was not added; nothing was changed"):
        cluster.load("b", add=True)
    assert (cluster.folder / "nodes.yml").read_text() == NODES
    assert lock.read_text() == "models: {a: 1}\n"


@pytest.mark.parametrize("step", ["deploy", "load"])
def test_what_fails_later_says_how_to_go_on(cluster: Recorded, step: str) -> None:
    cluster.fails = step
    with pytest.raises(RunFailedError, match="llm cluster deploy, then llm cluster load b"):
        cluster.load("b", add=True)
    assert "- name: b" in (cluster.folder / "nodes.yml").read_text()


def test_a_list_that_only_ansible_can_read_is_left_to_it(cluster: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_models, "host_variables", lambda *_paths: {"node1": {"llm_models": "{{ ours }}"}})
    cluster.load("b")
    with pytest.raises(UsageError, match="These are the lines to add"):
        cluster.load("b", add=True)
    assert cluster.played == ["load"]
