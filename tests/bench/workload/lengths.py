# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long prompts and answers are: log-normal, fitted to the published quantiles of real traces of conversations."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from statistics import NormalDist

NORMAL = NormalDist()


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens. The few beyond `most` are drawn again, so that a run's load doesn't hang on a single request."""

    p50: float
    p90: float
    most: float

    @functools.cached_property
    def normal(self) -> NormalDist:
        """Of the logarithms before the cut, so that the quantiles are right after it."""
        kept = 1.0  # part of the draws that is not beyond `most`
        for _ in range(50):
            low, high = NORMAL.inv_cdf(0.5 * kept), NORMAL.inv_cdf(0.9 * kept)
            sigma = math.log(self.p90 / self.p50) / (high - low)
            found = NormalDist(math.log(self.p50) - sigma * low, sigma)
            kept = found.cdf(math.log(self.most))
        return found

    def draw(self, source: random.Random) -> int:
        while (length := source.lognormvariate(self.normal.mean, self.normal.stdev)) > self.most:
            pass
        return max(1, round(length))


PROMPT = Lengths(1020, 2735, 8160)
ANSWER = Lengths(129, 424, 1032)
