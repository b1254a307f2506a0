# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fleets that are measured: their simulated engines."""

from __future__ import annotations

from balancer.harness import free_port
from bench.workload import scale
from simulated.fleet import Spec

# slots, speed, models
NODES: dict[str, list[tuple[int, float, list[str]]]] = {
    "equal": [(4, 1.0, ["m"])] * 3,
    "unequal": [(1, 2.0, ["m"]), (2, 1.0, ["m"]), (4, 1.0, ["m"]), (16, 0.5, ["m"])],
    "models": [(4, 1.0, ["a", "b"]), (4, 1.0, ["b", "c"]), (4, 1.0, ["c", "a"])],
}
SAID = {
    "equal": "three equal nodes, 4 slots each, one model",
    "unequal": "four nodes with 1, 2, 4 and 16 slots and speeds 2, 1, 1 and 0.5, one model",
    "models": "three equal nodes, 4 slots each, two of three models on each; half of the requests are for one of them",
}
MODELS: dict[str, list[tuple[str, float]]] = {"models": [("a", 0.5), ("b", 0.3), ("c", 0.2)]}


def engines(layout: str, network: int) -> list[Spec]:
    port = free_port()
    return [
        Spec(
            f"n{i}",
            f"127.0.{network}.{i}",
            port,
            slots=slots,
            speed=speed,
            models=models,
            strict=True,
            prefill=scale.PREFILL,
            gap=scale.GAP,
        )
        for i, (slots, speed, models) in enumerate(NODES[layout], 1)
    ]


def capacity(specs: list[Spec]) -> float:
    """Slots of speed 1."""
    return sum(spec.slots * spec.speed for spec in specs)
