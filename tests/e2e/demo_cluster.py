# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cluster that the end-to-end tests look at: inventories/demo under the name LLM_DEMO_NAME (default e2e)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass
class PlaybookRun:
    """What a run of ansible-playbook did: its exit code, output, and per host what the counting callback saw."""

    code: int
    output: str
    seconds: float
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def changed(self) -> dict[str, list[str]]:
        """Return the names of the tasks that changed something, by host."""
        return {host: seen["changed"] for host, seen in self.hosts.items() if seen["changed"]}


def playbook_environment(report: Path, **more: str) -> dict[str, str]:
    """Return the environment of ansible-playbook, with the counting callback that writes to ``report``."""
    return {
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "callbacks"),
        "ANSIBLE_CALLBACKS_ENABLED": "count_tasks",
        "COUNT_TASKS_FILE": str(report),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **more,
    }


def run_playbook(inventory: str, *arguments: str, folder: Path, **environment: str) -> PlaybookRun:
    """Run ansible-playbook; ``folder`` takes the counting callback's report."""
    report = folder / "tasks.json"
    done = subprocess.run(
        ["ansible-playbook", "-i", inventory, *arguments],
        cwd=ROOT,
        env=playbook_environment(report, **environment),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    seen = json.loads(report.read_text())
    return PlaybookRun(done.returncode, done.stdout + done.stderr, seen["seconds"], seen["hosts"])


@dataclass(frozen=True)
class Cluster:
    """Access to the hosts of the cluster and to Ansible."""

    name: str

    @property
    def ssh_config(self) -> Path:
        return ROOT / ".testbed" / self.name / "ssh_config"

    @property
    def endpoint(self) -> dict[str, Any]:
        """What the demo wrote: base_url, api_key, models, nodes."""
        content: dict[str, Any] = json.loads((ROOT / f".{self.name}" / "endpoint.json").read_text())
        return content

    def ssh(self, host: str, command: str, check: bool = True, timeout: float = 120) -> str:
        """Run a command on a host and return what it printed.

        :raises AssertionError: with all it printed, when it fails and ``check`` is set
        """
        done = subprocess.run(
            ["ssh", "-F", str(self.ssh_config), host, command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def playbook(self, *arguments: str, folder: Path) -> PlaybookRun:
        """Run ansible-playbook on the demo's inventory; ``folder`` takes the counting callback's report."""
        return run_playbook("inventories/demo", *arguments, folder=folder, LLM_DEMO_NAME=self.name)
