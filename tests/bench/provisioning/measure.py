# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What it takes to make a cluster of bare hosts, to run that again, and to bring another version of a model to it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from bench.point import Figures
from bench.provisioning.hosts import Hosts
from bench.provisioning.runs import Run, run_playbook
from demo.model import fetch

# Step → what it is, in the order in which they are run.
STEPS = {
    "first": "`site.yml` on bare hosts",
    "second": "`site.yml` again",
    "sync": "`sync`, nothing to do",
    "switch": "`sync`, another version for all nodes",
}


def measure(nodes: int, folder: Path, say: Callable[[str], None] = print) -> Figures:
    """Run all steps with so many nodes and a balancer; STEP_FIGURE → figure, and `cores` of controller and hosts.

    :raises RuntimeError: when a playbook fails
    """
    hosts = Hosts(nodes, folder, fetch(folder / "model"))
    figures: Figures = {"cores": os.cpu_count() or 1}

    def note(step: str, run: Run) -> None:
        figures.update({f"{step}_{name}": value for name, value in run.figures().items()})
        say(
            f"{nodes} nodes, {step}: {run.wall:.1f} s, controller {run.controller:.1f} s, {run.node_tasks} tasks a node"
        )

    try:
        hosts.start()
        run_playbook(hosts, "playbooks/lock.yml")
        note("first", run_playbook(hosts, "site.yml"))
        note("second", run_playbook(hosts, "site.yml"))
        note("sync", run_playbook(hosts, "playbooks/sync.yml"))
        hosts.offer_new_model()
        run_playbook(hosts, "playbooks/lock.yml", "-e", "lock_update=all")
        note("switch", run_playbook(hosts, "playbooks/sync.yml"))
    finally:
        hosts.stop()
    return figures
