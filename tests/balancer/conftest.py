# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: a real nginx, simulated engines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from balancer.engines import Engine
from balancer.harness import Balancer, MakeBalancer, MakeEngine, check_log, wait_for


@pytest.fixture(scope="session")
def shared_balancer() -> Iterator[Balancer]:
    balancer = Balancer(workers=2)
    yield balancer
    balancer.destroy()


@pytest.fixture
def balancer(shared_balancer: Balancer) -> Iterator[Balancer]:
    """The shared nginx; afterwards no slot may be held and no Lua error logged."""
    mark = len(shared_balancer.errors())
    yield shared_balancer
    wait_for(lambda: shared_balancer.busy() == 0, 3, "all slots are free again")
    check_log(shared_balancer.errors()[mark:])


@pytest.fixture
def own_balancer() -> Iterator[MakeBalancer]:
    """Starts nginx instances of a test's own."""
    made: list[Balancer] = []

    def make(**kwargs: Any) -> Balancer:
        made.append(Balancer(**kwargs))
        return made[-1]

    yield make
    for balancer in made:
        text = balancer.errors()
        balancer.destroy()
        check_log(text)


@pytest.fixture
def engine() -> Iterator[MakeEngine]:
    """Makes simulated engines, each on a port of its own."""
    made: list[Engine] = []

    def make(name: str = "n1", peer: dict[str, Any] | None = None, **kwargs: Any) -> Engine:
        made.append(Engine(name, **kwargs))
        made[-1].peer = peer or {}
        return made[-1]

    yield make
    for each in made:
        each.stop()
