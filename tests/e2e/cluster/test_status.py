# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What status and stats say of the cluster, and what they cost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from e2e.demo_cluster import Cluster

NODE = re.compile(r"^(\w+): load \d+% \| memory [\d.]+/[\d.]+ GB \| slots \d+/\d+ \| waiting \d+$", re.MULTILINE)
REQUESTS = re.compile(
    r"^requests: [\d.]+/min \| mean ([\d.]+ s|-) \| time-outs ([\d.]+%|-) \| queue \d+$", re.MULTILINE
)


def test_status_tells_each_node_and_its_model_in_one_remote_task(cluster: Cluster, tmp_path: Path) -> None:
    run = cluster.playbook("playbooks/status.yml", folder=tmp_path)
    assert run.code == 0, run.output
    (model,) = cluster.endpoint["models"]
    for node in cluster.endpoint["nodes"]:
        assert re.search(rf"^{node}  up +llama_cpp \S+ +\d/\d +{model} +sha256:\w+ +ok$", run.output, re.MULTILINE)
    assert "balancer: up | nodes 3 of 3 up" in run.output
    assert not run.changed()
    assert {host: len(seen["remote"]) for host, seen in run.hosts.items()} == dict.fromkeys(run.hosts, 1)


def test_stats_gives_two_lines_for_each_node(cluster: Cluster, tmp_path: Path) -> None:
    run = cluster.playbook("playbooks/stats.yml", folder=tmp_path)
    assert run.code == 0, run.output
    assert sorted(NODE.findall(run.output)) == sorted(cluster.endpoint["nodes"])
    assert len(REQUESTS.findall(run.output)) == len(cluster.endpoint["nodes"])
    assert not run.changed()


@pytest.mark.parametrize("name", ["status", "stats"])
def test_a_program_can_cut_the_report_out_or_read_it_from_a_file(cluster: Cluster, tmp_path: Path, name: str) -> None:
    report = tmp_path / "report.json"
    arguments = (f"playbooks/{name}.yml", "-e", "output=json", "-e", f"output_file={report}")
    run = cluster.playbook(*arguments, folder=tmp_path)
    assert run.code == 0, run.output
    lines = run.output.splitlines()
    printed = json.loads("\n".join(lines[lines.index("{") : lines.index("}") + 1]))
    assert printed == json.loads(report.read_text())
    assert {node: entry["state"] for node, entry in printed["nodes"].items()} == dict.fromkeys(
        cluster.endpoint["nodes"], "up"
    )


def test_drift_and_drains_are_marked(cluster: Cluster, tmp_path: Path) -> None:
    wanted = {"name": cluster.endpoint["models"][0], "source": {"file": "/srv/x.gguf"}, "digest": "sha256:" + "b" * 64}
    (tmp_path / "wanted.json").write_text(json.dumps({"llm_models": [wanted]}))
    drain = ("-e", "node=node2", "-e", '{"drain_reason": "new disk"}')
    assert cluster.playbook("playbooks/drain.yml", *drain, folder=tmp_path).code == 0
    try:
        run = cluster.playbook("playbooks/status.yml", "-e", f"@{tmp_path}/wanted.json", folder=tmp_path)
    finally:
        assert cluster.playbook("playbooks/resume.yml", "-e", "node=node2", folder=tmp_path).code == 0
    assert run.code == 0, run.output
    assert len(re.findall(r"DRIFT: another version, wanted sha256:b{12}$", run.output, re.MULTILINE)) == 3
    assert re.search(r"^node2  drained by operator ", run.output, re.MULTILINE)
    assert "node2: drained by operator: new disk." in run.output.splitlines()


def test_a_node_that_is_gone_is_told_of(cluster: Cluster, tmp_path: Path) -> None:
    nowhere = ("-e", "{ansible_host: 192.0.2.1}", "--limit", "node3")
    run = cluster.playbook("playbooks/stats.yml", *nowhere, "-e", "connect_timeout=1", folder=tmp_path)
    assert run.code == 0, run.output
    assert re.search(r"^node3: unreachable: .*192\.0\.2\.1", run.output, re.MULTILINE)
