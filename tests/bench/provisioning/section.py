# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The benchmark page's part on provisioning, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.provisioning.measure import STEPS
from bench.provisioning.model import SIZES, extrapolate

HOW = """\
Bare Debian 13 hosts, as containers of the test bed, on this machine: nodes with llama.cpp and Gemma 3 270M, and one
host that is balancer and client. Their images hold systemd, SSH and Python and nothing of ours. Packages, wheels and
the model really are fetched and installed. Ansible runs with the checkout's `ansible.cfg` (50 forks, pipelining),
over SSH.

*Wall* is what a user waits. Controller and hosts share {cores} here, so the first run of ten hosts mostly waits
for ten hosts' pip and apt on these. *Controller* is the processor time of ansible-playbook and its workers, *main*
the part of it that is one thread; *hosts* is the processor time of all containers together, their engines included. A
task in a loop counts once for each item.
"""
MORE = """\
#### What it extrapolates to

A straight line through the two sizes: a fixed part (which holds the balancer) and a part for each node. The upper
figure is the line through the wall times: every host's own work on the controller's {cores} cores, as here, which no
real cluster has. The lower one is what the controller alone needs: its processor time over {cores} cores, or its main
process's if that is longer. A cluster whose hosts have cores of their own lies between, plus, for every 50 hosts
(`forks`), what the slowest host takes for its own installation. Assumed: the cost of a node stays the same, memory
suffices (a worker process for each fork), one network for all. Nothing of that size has been run.

`sync` switches node after node (`llm_sync_batch: 1`), so that the others serve: that part is linear on purpose, and
of its two figures the upper one is the nearer. `llm_sync_batch: 10` switches ten at once, at best in a tenth of the
time, but never faster than the controller's processor time allows.
"""


def section(runs: Mapping[int, Mapping[str, Any]], cores: int | None) -> str:
    """Markdown.

    :param runs: nodes → figures of measure()
    :param cores: of the machine that was measured; nothing, where that was not noted, is extrapolated
    """
    lines = [
        HOW.format(cores=f"{cores} cores" if cores else "the same cores"),
        "| playbook | nodes | wall | controller | main | hosts | remote tasks a node | changed |",
    ]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for step, words in STEPS.items():
        for nodes in sorted(runs):
            seen = step_figures(runs[nodes], step)
            times = " | ".join(
                f"{seen[name]:.1f} s" for name in ("wall_s", "controller_cpu_s", "controller_main_cpu_s", "hosts_cpu_s")
            )
            lines.append(
                f"| {words} | {nodes} | {times} | {seen['remote_tasks_node']:.0f} | {seen['changed_tasks']:.0f} |"
            )
    lines += [
        f"\nThe second run with {nodes} nodes still changed something, which it should not: {changes}."
        for nodes, changes in sorted((nodes, figures.get("second_changes")) for nodes, figures in runs.items())
        if changes
    ]
    if cores and len(runs) == 2:
        lines += ["", MORE.format(cores=cores), _table(runs, cores)]
    return "\n".join(lines) + "\n"


def step_figures(figures: Mapping[str, Any], step: str) -> dict[str, float]:
    """The numbers of one step, by their names without it."""
    found = {name.removeprefix(f"{step}_"): value for name, value in figures.items() if name.startswith(f"{step}_")}
    return {name: float(value) for name, value in found.items() if not isinstance(value, str)}


def _table(runs: Mapping[int, Mapping[str, Any]], cores: int) -> str:
    heads = " | ".join(f"{size} nodes, wall | remote tasks" for size in SIZES)
    lines = [
        f"| playbook | controller CPU, fixed | and each node | {heads} |",
        "|---|--:|--:|" + "--:|--:|" * len(SIZES),
    ]
    for step, words in STEPS.items():
        found = extrapolate({nodes: step_figures(figures, step) for nodes, figures in runs.items()}, cores)
        cells = [f"{found['controller_cpu_fixed_s']:.1f} s", f"{found['controller_cpu_each_s']:.2f} s"]
        for size in SIZES:
            bounds = (found[f"controller_bound_{size}_s"], found[f"measured_line_{size}_s"])
            cells += [" to ".join(map(_time, bounds)), f"{found[f'remote_tasks_{size}']:.0f}"]
        lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
