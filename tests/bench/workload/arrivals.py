# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When requests come: moments in seconds from the beginning."""

from __future__ import annotations

import random
from collections.abc import Iterator

CODE_CV = 2.1  # of the gaps between requests, as published for traces of assistants that write code


def poisson(rate: float, seed: int) -> Iterator[float]:
    """At this many per second, without end."""
    return bursty(rate, 1.0, seed)


def bursty(rate: float, cv: float, seed: int) -> Iterator[float]:
    """Gaps from a gamma distribution with this coefficient of variation (1: a Poisson process)."""
    source, at = random.Random(seed), 0.0
    shape = 1 / cv**2
    while True:
        at += source.gammavariate(shape, 1 / (rate * shape))
        yield at
