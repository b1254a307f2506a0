# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long prompts and answers are: log-normal, fitted to the published quantiles of real traces of conversations."""

from __future__ import annotations

import dataclasses
import math
import random

NORMAL_P90 = 1.2815515655446004  # of the standard normal distribution


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens. The few beyond `most` are drawn again, so that a run's load doesn't hang on a single request."""

    p50: float
    p90: float
    most: float

    def draw(self, source: random.Random) -> int:
        sigma = math.log(self.p90 / self.p50) / NORMAL_P90
        while (length := source.lognormvariate(math.log(self.p50), sigma)) > self.most:
            pass
        return max(1, round(length))


PROMPT = Lengths(1020, 2735, 8160)
ANSWER = Lengths(129, 424, 1032)
