# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an inventory to the routing table by Ansible itself, here: nodes outside the run, one that can't be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
INVENTORY: dict[str, Any] = {
    "all": {
        "vars": {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "llm_require_api_key": False,
            "llm_models": [{"name": "llama3:8b", "nodes": ["llama_nodes"]}, {"name": "phi3", "nodes": ["rest_nodes"]}],
            "llm_balancer_policy": "least_busy",
            "llm_routes": [
                {"name": "llama", "when": {"model": "llama*"}, "require": {"groups": "llama_nodes", "memory_gb": ">0"}},
                {"name": "rest", "require": {"groups": "rest_nodes"}, "prefer": {"rack": "b"}},
            ],
        }
    },
    "llm_nodes": {
        "children": {
            "llama_nodes": {
                "hosts": {
                    "node1": {"llm_address": "192.0.2.11"},
                    # Nothing listens there.
                    "down": {
                        "llm_address": "192.0.2.12",
                        "ansible_connection": "ssh",
                        "ansible_host": "127.0.0.1",
                        "ansible_port": 9,
                    },
                }
            },
            "rest_nodes": {
                "hosts": {"node2": {"llm_address": "192.0.2.13", "llm_node_labels": {"rack": "b", "gpu_memory_gb": 48}}}
            },
        }
    },
    "llm_balancers": {"hosts": {"balancer": {"llm_address": "192.0.2.10"}}},
}
PLAYS = [
    {
        "hosts": "llm_nodes:llm_balancers",
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.include_role": {"name": "llm.cluster.cluster", "tasks_from": part, "public": True}}
            for part in ("facts", "check")
        ],
    },
    {
        "hosts": "balancer",
        "gather_facts": False,
        "roles": [{"role": "llm.cluster.cluster"}],
        "tasks": [
            *(
                {"ansible.builtin.include_vars": f"{ROOT}/roles/balancer/{part}/main.yml"}
                for part in ("defaults", "vars")
            ),
            {
                "ansible.builtin.copy": {"content": "{{ result | to_json }}", "dest": "{{ file }}", "mode": "0600"},
                "vars": {
                    "result": {
                        "table": "{{ balancer_routing_table }}",
                        "unread": "{{ llm_cluster_peers | llm.cluster.unread_labels }}",
                        "problems": "{{ __balancer_table_problems }}",
                    }
                },
            },
        ],
    },
]


def run(folder: Path, limit: str, **variables: Any) -> tuple[int, str, dict[str, Any]]:
    """Run the plays and return the exit code, the output, and what they wrote."""
    result = folder / "result.json"
    (folder / "hosts.yml").write_text(yaml.safe_dump(INVENTORY, sort_keys=False))
    (folder / "play.yml").write_text(yaml.safe_dump(PLAYS))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            f"--inventory={folder / 'hosts.yml'}",
            f"--limit={limit}",
            f"--extra-vars={json.dumps({**variables, 'file': str(result)})}",
            str(folder / "play.yml"),
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr, json.loads(result.read_text()) if result.exists() else {}


def test_nodes_outside_the_run_have_their_labels_and_one_that_is_down_stops_nothing(tmp_path: Path) -> None:
    code, output, result = run(tmp_path, "balancer", balancer_queue_length=7)
    assert code == 0, output
    # Here a run once ended: successfully, and without having done anything.
    assert result, output
    table = result["table"]
    assert [peer["name"] for peer in table["peers"]] == ["node1", "down", "node2"]
    read, down, labelled = (peer["labels"] for peer in table["peers"])
    assert sorted(read) == ["architecture", "cpus", "engine", "gpu_memory_gb", "gpus", "groups", "memory_gb"]
    assert read["groups"] == ["llama_nodes", "llm_nodes"]
    assert down == {"engine": "ollama", "groups": ["llama_nodes", "llm_nodes"]}
    assert labelled == {**read, "groups": ["llm_nodes", "rest_nodes"], "rack": "b", "gpu_memory_gb": 48}
    assert result["unread"] == {"down": ["memory_gb", "cpus", "architecture", "gpus", "gpu_memory_gb"]}
    assert (table["policy"], table["limits"]["queue_length"], table["limits"]["retry_budget"]) == ("least_busy", 7, 0.2)
    assert [route["name"] for route in table["routes"]] == ["llama", "rest"]
    assert result["problems"] == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (
            {"llm_routes": [{"name": "big", "require": {"rack": "c"}}]},
            "llm_routes[big]: can match no peer: none has rack c (there is b).",
        ),
        ({"balancer_retry_budget": 20}, "limit retry_budget is 20, it must be a number from 0 to 1"),
    ],
)
def test_what_is_wrong_is_said_before_anything_changes(tmp_path: Path, variables: dict[str, Any], words: str) -> None:
    _code, output, result = run(tmp_path, "node1,balancer", **variables)
    said = " ".join(output.split()) + " ".join(result.get("problems", []))
    assert words in said, output
