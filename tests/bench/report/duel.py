# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One figure of two systems, round by round: in each both had the same arrivals, so the pair says who is better."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from bench.point import Row
from bench.report.failures import failures
from bench.report.rounds import ROUND
from bench.report.tables import say


@dataclasses.dataclass(frozen=True)
class Duel:
    """Values by round, in the figure's unit; less is better. failed: requests of all rounds, by side."""

    ours: Sequence[float]
    theirs: Sequence[float]
    failed: tuple[float, float] = (0, 0)

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.theirs)

    @property
    def ahead(self) -> int:
        """In how many rounds ours is less."""
        return sum(mine < other for mine, other in zip(self.ours, self.theirs, strict=True))

    @property
    def behind(self) -> int:
        return sum(mine > other for mine, other in zip(self.ours, self.theirs, strict=True))

    @property
    def overlap(self) -> bool:
        return min(self.ours) <= max(self.theirs) and min(self.theirs) <= max(self.ours)

    @property
    def parts(self) -> list[float]:
        """Ours over theirs, by round."""
        return [mine / other for mine, other in zip(self.ours, self.theirs, strict=True) if other]

    def said(self, unit: str, rival: str) -> str:
        text = f"{spanned(self.ours, unit)}, {rival} {spanned(self.theirs, unit)}"
        text += "; one round" if len(self.ours) == 1 else f"; shorter in {self.ahead} of {len(self.ours)} rounds"
        for who, count in zip(("ours", rival), self.failed, strict=True):
            text += f"; {who}: {say(count)} failed" if count else ""
        return text


def spanned(values: Sequence[float], unit: str) -> str:
    """The median, and of several the least and the most."""
    text = f"{say(statistics.median(values))} {unit}".strip()
    return text + (f" ({say(min(values))} to {say(max(values))})" if len(values) > 1 else "")


def duel(ours: Sequence[Row], theirs: Sequence[Row], name: str) -> Duel | None:
    """Of the rounds in which both have the figure as a number."""
    others = {row.get(ROUND): row for row in theirs if isinstance(row.get(name), (int, float))}
    pairs = [
        (row, others[row.get(ROUND)])
        for row in ours
        if row.get(ROUND) in others and isinstance(row.get(name), (int, float))
    ]
    if not pairs:
        return None
    failed = (sum(failures(mine, name) for mine, _ in pairs), sum(failures(other, name) for _, other in pairs))
    return Duel([mine.get(name) for mine, _ in pairs], [other.get(name) for _, other in pairs], failed)
