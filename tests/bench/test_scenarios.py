# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny runs for real: engines, a balancer, a load, figures."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import scenarios
from bench.point import Point
from bench.scenarios import MissingError
from bench.systems import REGISTRY

TINY = [
    Point.of("sweep", "affinity", layout="equal", load=0.7, seconds=4, cv=1.0, round=0),
    Point.of("sweep", "nginx_engine_queue", layout="equal", load=0.7, seconds=4, cv=1.0, round=0),
    Point.of("multi_turn", "affinity", load=0.5, seconds=3, round=0),
    Point.of("failover", "affinity", round=0, seconds=8, dies=2, back=4),
    Point.of("streams", "nginx_plain", streams=10, tokens=5),
]


def measured(point: Point, folder: Path) -> dict[str, float | str]:
    system = REGISTRY[point.system]()
    if not system.installed():
        pytest.skip(f"{point.system} is not installed")
    return scenarios.load(point.scenario).run(point, system, folder)


@pytest.mark.parametrize("point", TINY, ids=lambda point: f"{point.scenario}-{point.system}")
def test_a_scenario_gives_figures(point: Point, tmp_path: Path) -> None:
    figures = measured(point, tmp_path)
    assert figures["failed"] == 0 or point.scenario == "failover", figures
    if point.scenario == "sweep":
        assert figures["requests"] == pytest.approx(4 * 0.7 * 12 / 0.75, rel=0.4)
        assert 0 <= figures["wait_mean_s"] < 2  # type: ignore[operator]
        assert "n3" in str(figures["shares"])
    if point.scenario == "multi_turn":
        assert figures["hit_rate"] > 0.5  # type: ignore[operator]
    if point.scenario == "failover":
        assert figures["not_begun_failed"] == 0, figures


def test_what_a_system_cannot_do_is_missing_not_failed(tmp_path: Path) -> None:
    point = Point.of("sweep", "nginx_plain", layout="models", load=0.5, seconds=2, cv=1.0, round=0)
    with pytest.raises(MissingError, match="model"):
        measured(point, tmp_path)
