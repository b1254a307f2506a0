# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A central queue, by simulation, as a measure for balancers: first come, first served, without any time lost.

Whenever a slot becomes free it takes the oldest request that it may serve; a request that finds several free takes the
fastest. It is no bound: on slots of unequal speeds one that lets a request wait for a fast slot can be better.
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


@dataclasses.dataclass(frozen=True)
class Served:
    """wait: seconds from the arrival; by: the slot that it got."""

    wait: float
    by: Server


def ideal(arrivals: Sequence[Arrival], servers: Sequence[Server]) -> list[float]:
    """Waits in seconds, in the order given, which must be that of arrival."""
    return [served.wait for served in central(arrivals, servers)]


def central(arrivals: Sequence[Arrival], servers: Sequence[Server]) -> list[Served]:
    """Of each arrival, in the order given, which must be that of arrival. Each must have a slot that may serve it."""
    idle = set(range(len(servers)))
    busy: list[tuple[float, int]] = []  # until when, which
    queue: list[int] = []
    found: dict[int, Served] = {}

    def start(number: int, server: int, now: float) -> None:
        found[number] = Served(now - arrivals[number].at, servers[server])
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
    return [found[number] for number in range(len(arrivals))]
