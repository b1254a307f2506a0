# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ideal central queue, by simulation: what no balancer can do better without knowing the future.

One FIFO; whenever a slot becomes free it takes the oldest request that it may serve; a request that finds several free
takes the fastest. No time passes between.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Server:
    """A slot: its speed, and the models that it serves (all, if none is named)."""

    speed: float = 1.0
    models: tuple[str, ...] = ()

    def may(self, model: str) -> bool:
        return not self.models or model in self.models


@dataclasses.dataclass(frozen=True)
class Arrival:
    """A request. at: seconds; work: seconds on a slot of speed 1."""

    at: float
    work: float
    model: str = ""


def ideal(arrivals: Sequence[Arrival], servers: Sequence[Server]) -> list[float]:
    """Waits in seconds, in the order given, which must be that of arrival."""
    idle = set(range(len(servers)))
    busy: list[tuple[float, int]] = []  # until when, which
    queue: list[int] = []
    waits = [0.0] * len(arrivals)

    def start(number: int, server: int, now: float) -> None:
        waits[number] = now - arrivals[number].at
        heapq.heappush(busy, (now + arrivals[number].work / servers[server].speed, server))

    def free_until(now: float) -> None:
        while busy and busy[0][0] <= now:
            at, server = heapq.heappop(busy)
            number = next((each for each in queue if servers[server].may(arrivals[each].model)), None)
            if number is None:
                idle.add(server)
            else:
                queue.remove(number)
                start(number, server, at)

    for number, arrival in enumerate(arrivals):
        free_until(arrival.at)
        able = [each for each in idle if servers[each].may(arrival.model)]
        if able:
            # The fastest; of equal ones the one that can do the least else.
            best = min(able, key=lambda each: (-servers[each].speed, len(servers[each].models), each))
            idle.remove(best)
            start(number, best, arrival.at)
        else:
            queue.append(number)
    free_until(float("inf"))
    return waits
