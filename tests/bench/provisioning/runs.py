# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one run of a playbook takes: wall time, processor time of the controller, remote tasks."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench.point import Figures
from bench.provisioning.ending import kill
from bench.provisioning.hosts import BALANCER, ROOT, Hosts
from e2e.demo_cluster import playbook_environment

CALLBACKS = [ROOT / "tests" / "callbacks", Path(__file__).with_name("callbacks")]
RUN_SECONDS = 1500


@dataclass(frozen=True)
class Run:
    """One run of a playbook; times in seconds.

    controller: processor time of ansible-playbook and all that it started and waited for (ssh's shared connections are
    not among that); main: the part of it that its main process took alone. hosts: processor time in all containers,
    which also serve meanwhile. node_tasks: remote tasks of the node with most of them.
    """

    wall: float
    controller: float
    main: float
    hosts: float
    node_tasks: int
    balancer_tasks: int
    tasks: int
    changed: int
    changes: str = ""  # the names of the tasks that changed something

    def figures(self) -> Figures:
        return {
            "wall_s": round(self.wall, 2),
            "controller_cpu_s": round(self.controller, 2),
            "controller_main_cpu_s": round(self.main, 2),
            "hosts_cpu_s": round(self.hosts, 2),
            "remote_tasks_node": self.node_tasks,
            "remote_tasks_balancer": self.balancer_tasks,
            "remote_tasks": self.tasks,
            "changed_tasks": self.changed,
            "changes": self.changes,
        }


def run_playbook(hosts: Hosts, playbook: str, *arguments: str) -> Run:
    """Run a playbook to its end.

    :raises RuntimeError: with the end of what it printed, when it fails or takes longer than RUN_SECONDS
    """
    report, main, log = (hosts.folder / name for name in ("tasks.json", "main.txt", "playbook.log"))
    environment = playbook_environment(
        report,
        ANSIBLE_CALLBACK_PLUGINS=":".join(map(str, CALLBACKS)),
        ANSIBLE_CALLBACKS_ENABLED="count_tasks,controller_time",
        CONTROLLER_TIME_FILE=str(main),
    )
    before, began = hosts.processor_seconds(), time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["ansible-playbook", "-i", str(hosts.inventory), playbook, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status, controller = _wait(process.pid, began + RUN_SECONDS)
    except BaseException:
        # In a session of its own it gets no Ctrl-C, and would go on with the hosts that are taken down meanwhile.
        kill(process.pid)
        process.wait()
        raise
    wall = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{playbook} ended with {process.returncode}:\n{log.read_text(errors='replace')[-4000:]}")
    seen = json.loads(report.read_text(encoding="utf-8"))["hosts"]
    counts = {host: len(each["remote"]) for host, each in seen.items()}
    return Run(
        wall=wall,
        controller=controller,
        main=float(main.read_text(encoding="utf-8")),
        hosts=hosts.processor_seconds() - before,
        node_tasks=max((counts.get(node, 0) for node in hosts.nodes), default=0),
        balancer_tasks=counts.get(BALANCER, 0),
        tasks=sum(counts.values()),
        changed=sum(len(each["changed"]) for each in seen.values()),
        changes=", ".join(sorted({task for each in seen.values() for task in each["changed"]})),
    )


def _wait(pid: int, deadline: float) -> tuple[int, float]:
    """Wait for a process group's leader; return its wait status and the processor time of it and its children."""
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline:
            kill(pid)
            deadline = float("inf")
        time.sleep(0.05)
