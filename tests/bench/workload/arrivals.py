# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When requests come: moments in seconds from the beginning."""

from __future__ import annotations

import itertools
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


def within(seconds: float, count: int, seed: int, cv: float = 1.0) -> list[float]:
    """So many moments of such a process, stretched so that they take just these seconds.

    As the seed leaves them they end a few percent too early or too late, and the load would be as far from what it is
    called. The gap that would follow the last one counts, as a mean one.
    """
    moments = list(itertools.islice(bursty(count / seconds, cv, seed), count))
    stretch = seconds * count / (count + 1) / moments[-1]
    return [at * stretch for at in moments]
