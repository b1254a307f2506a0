# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What more hosts would take: a line through two measurements, a fixed part and a part for each node.

``measured``: the line through the wall times. Here the hosts' own work shares the controller's cores, so it is what one
machine that is everything at once would take: too much, for hosts with cores of their own.
``controller``: the line through the controller's processor time, shared out over its cores; but not less than the line
through what its main process takes, which is one thread. No cluster of that size is done sooner, whatever its hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SIZES = (100, 1000)


@dataclass(frozen=True)
class Line:
    """``fixed + each * nodes``."""

    fixed: float
    each: float

    def at(self, nodes: int) -> float:
        return self.fixed + self.each * nodes


def line(points: Mapping[int, float]) -> Line:
    """The line through two points, nodes → value. A slope or a beginning below zero is noise: it counts as zero.

    :raises ValueError: unless there are two points
    """
    if len(points) != 2:
        raise ValueError("a line takes two points")
    (few, low), (many, high) = sorted(points.items())
    each = max(0.0, (high - low) / (many - few))
    return Line(max(0.0, low - each * few), each)


def extrapolate(
    runs: Mapping[int, Mapping[str, float]], cores: int, sizes: tuple[int, ...] = SIZES
) -> dict[str, float]:
    """What a playbook takes with more nodes.

    :param runs: nodes → figures of its run; two of them
    :param cores: of the controller
    :return: fixed and per-node parts in seconds, and for each size the two bounds and the remote tasks
    """
    wall, cpu, main, tasks = (
        line({nodes: figures[name] for nodes, figures in runs.items()})
        for name in ("wall_s", "controller_cpu_s", "controller_main_cpu_s", "remote_tasks")
    )
    found = {
        "wall_fixed_s": wall.fixed,
        "wall_each_s": wall.each,
        "controller_cpu_fixed_s": cpu.fixed,
        "controller_cpu_each_s": cpu.each,
        "controller_main_cpu_each_s": main.each,
    }
    for size in sizes:
        found[f"measured_line_{size}_s"] = wall.at(size)
        found[f"controller_bound_{size}_s"] = max(cpu.at(size) / cores, main.at(size))
        found[f"remote_tasks_{size}"] = tasks.at(size)
    return {name: round(value, 3) for name, value in found.items()}
