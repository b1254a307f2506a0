# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured at a time, and what came of it."""

from __future__ import annotations

import dataclasses
from typing import Any

Figures = dict[str, float | str]
"""Name → figure. The name ends with its unit: ttft_mean_s, gap_p99_ms, cpu_percent; a text is a note or JSON."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement: a scenario with these settings (load, layout, …), through one system."""

    scenario: str
    system: str
    settings: tuple[tuple[str, str | float], ...] = ()

    @classmethod
    def of(cls, scenario: str, system: str, **settings: str | float) -> Point:
        return cls(scenario, system, tuple(sorted(settings.items())))

    @property
    def key(self) -> str:
        """Names it in the store and on the screen."""
        said = ",".join(f"{name}={value}" for name, value in self.settings)
        return f"{self.scenario}/{self.system}" + (f"/{said}" if said else "")

    def get(self, name: str) -> Any:
        return dict(self.settings)[name]


@dataclasses.dataclass(frozen=True)
class Row:
    """A point that was measured."""

    point: Point
    figures: Figures

    @property
    def system(self) -> str:
        return self.point.system

    def get(self, name: str) -> Any:
        """A setting, else a figure, else nothing."""
        return dict(self.point.settings).get(name, self.figures.get(name))
