# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From rows to lines of the page: rounds become one, verdicts say what is shown, and who is better is named."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from bench import scenarios
from bench.plan import plan
from bench.point import Figures, Point, Row
from bench.provisioning.measure import STEPS
from bench.report import origin, plots, targets, wins
from bench.report.failures import failures
from bench.report.rounds import merged, spread_of
from bench.report.tables import label
from matplotlib.figure import Figure


def row(scenario: str, system: str, figures: Figures, **settings: str | float) -> Row:
    return Row(Point.of(scenario, system, **settings), figures)


def test_rounds_become_one_row() -> None:
    seen = [
        (1.0, 3, "2 x 502; 1 x timeout", "n1 40 %, n2 60 %"),
        (9.0, 7, "4 x 503 overloaded; 3 x 502", "n1 50 %, n2 50 %"),
        (2.0, 0, "", "n2 100 %"),
    ]
    rows = [
        *(row("sweep", "haproxy", {"x_s": x, "failed": n, "errors": e, "shares": s}, load=0.9, round=i)
          for i, (x, n, e, s) in enumerate(seen)),
        row("sweep", "haproxy", {"x_s": 5.0, "failed": 1, "errors": ""}, load=0.5, round=0),
        row("sweep", "affinity", {"x_s": 6.0}, load=0.9),
    ]  # fmt: skip
    three, alone, before = merged(rows)
    assert three.point == Point.of("sweep", "haproxy", load=0.9)
    assert three.figures == {
        "x_s": 2.0, "failed": 10, "errors": "5 x 502; 4 x 503 overloaded; 1 x timeout", "shares": "n1 30 %, n2 70 %",
        "rounds": 3,
    }  # fmt: skip
    assert (alone.get("x_s"), alone.get("rounds")) == (5.0, 1)
    assert before.figures == {"x_s": 6.0, "rounds": 1}


def test_a_round_without_a_figure_is_left_out_and_a_text_is_not_averaged() -> None:
    seen: list[float | str] = [1.0, "not within the run", 3.0]
    rows = [row("f", "a", {"y_s": y}, round=i) for i, y in enumerate(seen)]
    assert merged([*rows, row("f", "a", {}, round=3)])[0].figures == {"y_s": "not within the run", "rounds": 4}
    assert spread_of(rows, "y_s") == (2.0, 1.0, 3.0)
    assert spread_of(rows, "z_s") is None


def sweep(ours: list[float], theirs: list[float], layout: str = "unequal", failed: int = 0) -> list[Row]:
    """Waits at load 0.9, in s, by round; failed: of HAProxy's requests in each."""
    setting: dict[str, str | float] = {"layout": layout, "load": 0.9, "cv": 1.0, "seconds": 60}
    return [
        *(row("sweep", "affinity", {"wait_p99_s": x, "failed": 0}, **setting, round=i) for i, x in enumerate(ours)),
        *(
            row("sweep", "haproxy", {"wait_p99_s": x, "failed": failed}, **setting, round=i)
            for i, x in enumerate(theirs)
        ),
    ]


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        ([1.0, 2.0, 3.0], [1.1, 2.1, 3.1], targets.MET),  # in every round, whatever the ranges
        ([1.0, 2.0, 3.0], [1.1, 2.1, 2.9], targets.NOISE),
        ([1.2, 2.2, 3.0], [1.1, 2.1, 3.1], targets.NOISE),
        ([1.2, 2.2, 3.2], [1.1, 2.1, 3.1], targets.MISSED),
        ([1.0], [1.0], targets.ONCE),
        ([1.0], [1.1], targets.ONCE),
        ([1.0], [], targets.UNKNOWN),
    ],
)
def test_shorter_is_what_is_shorter_in_every_round(ours: list[float], theirs: list[float], verdict: str) -> None:
    found = verdicts({"sweep": sweep(ours, theirs)})
    assert found["wait p99 at load 0.9, unequal nodes: shorter than HAProxy's"].verdict == verdict


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "said"),
    [
        ([1.0, 2.03, 2.9], [1.1, 2.0, 3.1], targets.MET, "2.03 s (1 to 2.9), HAProxy 2 s (1.1 to 3.1); shorter in 2"),
        ([1.0, 2.03, 2.9], [1.1, 2.0, 3.1], targets.MET, "; within noise"),
        ([1.0, 2.1, 3.2], [1.1, 2.0, 3.1], targets.MISSED, "; within noise"),
        ([1.01], [1.0], targets.MET, "one round"),
    ],
)  # fmt: skip
def test_not_longer_bears_the_tolerance_that_it_tells(
    ours: list[float], theirs: list[float], verdict: str, said: str
) -> None:
    found = verdicts({"sweep": sweep(ours, theirs, "equal")})
    target = found["wait p99 at load 0.9, equal nodes: not longer than HAProxy's (by the medians at most 2 % longer)"]
    assert target.verdict == verdict
    assert said in target.seen


def test_a_gain_is_that_of_the_median_round() -> None:
    rows = [
        row("multi_turn", name, {"ttft_mean_s": x, "failed": 0, "hit_rate": 0.9}, load=0.65, round=i, **cache)
        for name, values in (("affinity", (1.0, 1.2, 3.0)), ("least_busy", (2.0, 2.0, 2.0)))
        for i, x in enumerate(values)
        for cache in ({}, {"cache": "slot"})
    ]
    rows = [each for each in rows if each.get("cache") is None or each.get("round") == 0]
    target = verdicts({"multi_turn": rows})[
        "chats of many turns, load 0.65, mean time to first token: half of least_busy's or less"
    ]
    assert target.verdict == targets.MISSED
    assert target.seen == "1.2 s, least_busy 2 s; by round -40 % (-50 to 50)"


def verdicts(results: dict[str, list[Row]]) -> dict[str, targets.Target]:
    return {target.wanted: target for target in targets.targets(results)}


def test_whoever_is_better_is_named_with_all_others_that_are() -> None:
    setting = {"peers": 10}
    rows = [
        row("many_peers", "affinity", {"p99_ms": 1.0, "per_s": 100, "bad": 0}, **setting),
        row("many_peers", "haproxy", {"p99_ms": 0.5, "per_s": 104, "bad": 0}, **setting),
        row("many_peers", "litellm", {"p99_ms": 0.1, "per_s": 900, "bad": 7}, **setting),
        row("many_peers", "nginx_plain", {"p99_ms": 0.4, "per_s": 200, "bad": 0}, **setting),
    ]
    where = ["many peers", "peers 10"]
    nginx, haproxy = label("nginx_plain"), label("haproxy")
    assert wins.wins({"many_peers": rows}) == [
        [*where, "latency p99, ms", "1", f"{nginx} 0.4; {haproxy} 0.5"],
        [*where, "requests/s, 32 connections", "100", f"{nginx} 200"],
    ]


def test_better_in_some_rounds_is_said() -> None:
    found = wins.wins({"sweep": sweep([1.0, 2.0, 3.0], [1.1, 1.0, 2.0])})
    assert found == [
        ["sweep", "layout unequal, load 0.9", "wait p99, s", "2", f"{label('haproxy')} 1.1 (in 2 of 3 rounds)"]
    ]
    assert not wins.wins({"sweep": sweep([2.0], [1.0], failed=3)}), "who fails requests does not compete"


def test_where_a_node_dies_failures_are_compared_and_never_is_the_longest() -> None:
    rows = [
        row("failover", "affinity", {"failed": 0, "recovered_s": "not within the run", "not_begun_failed": 0}, round=0),
        row("failover", "haproxy", {"failed": 9, "recovered_s": 3.0, "not_begun_failed": 9}, round=0),
    ]
    assert wins.wins({"failover": rows}) == [["failover", "", "recovered after, s", "never", f"{label('haproxy')} 3"]]


@pytest.mark.parametrize(
    ("figures", "figure", "count"),
    [
        ({"failed": 3}, "", 3),
        ({"16kB_1_bad": 2, "64kB_1_bad": 5, "16kB_1_p50_ms": 1.0}, "16kB_1_p50_ms", 2),
        ({"bad": 4}, "p99_ms", 4),
        ({"refused": "990 x 502; 2 x 429 queue_full"}, "core_percent", 992),
        ({"refused": "none"}, "core_percent", 0),
    ],
)
def test_failures_are_one_figure(figures: Figures, figure: str, count: int) -> None:
    assert failures(row("s", "haproxy", figures), figure) == count


def test_points_where_requests_failed_are_hollow() -> None:
    rows = [
        row("sweep", "nginx_plain", {"goodput_per_s": load, "wait_p99_s": 0.01, "failed": bad}, load=load, round=0)
        for load, bad in ((0.5, 0), (0.7, 0), (0.9, 40))
    ]
    axes = Figure().subplots()
    plots.measured(axes, "nginx_plain", rows, "load", "wait_p99_s", of_answered=True)
    through, hollow = axes.get_lines()
    assert np.array_equal(through.get_xdata(), [0.5, 0.7])
    assert np.array_equal(hollow.get_xdata(), [0.9])
    assert (hollow.get_markerfacecolor(), hollow.get_linestyle()) == ("white", "None")


def test_parts_of_the_page_from_different_machines_and_revisions_say_so() -> None:
    def part(version: str, memory: str) -> dict[str, Any]:
        run = {"form": "short", "date": "2026-01-01 00:00 UTC", "command": "make bench", "revision": "aaa"}
        return {
            "run": {**run, "machine": {"memory": memory}, "versions": {"haproxy": version}, "about": {}, "missing": {}},
            "points": [{"revision": "bbb", "date": "2026-01-02 00:00 UTC"}, {}],
        }

    same = {"overhead": part("2.6", "8 GiB"), "streams": part("2.6", "8 GiB")}
    assert "| 2.6 |" in origin.systems(same)
    assert origin.machine(same) == "| machine |  |\n|---|---|\n| memory | 8 GiB |\n"
    other = {**same, "streams": part("3.0", "9 GiB")}
    assert "| 2.6 (Overhead); 3.0 (Streams) |" in origin.systems(other)
    assert origin.machine(other).startswith("| machine | Overhead | Streams |")
    assert "| 2026-01-01 00:00 UTC to 2026-01-02 00:00 UTC | short | make bench | bbb, aaa |" in origin.runs(same)


TEXTS = {"errors", "shares", "refused", "timeline"}
# What was asked for, what was simulated, how it was measured, and failures, which keep a system from being compared.
NO_MERIT = re.compile(
    r"requests|rounds|chats|busy|realised_load|\w+_tokens|ideal_\w+|late_p99_ms|\w*direct_\w+"
    r"|placement_us"  # only ours is asked for it
    r"|failed|\w*bad|truncated_\w+|waiting|answered"
    r"|wait_p99_ratio"  # over what is the same for all, so it is compared as wait_p99_s
)
TABLES = ["overhead", "streams", "sweep", "multi_turn", "no_reuse", "scale_out", "waiting", "many_peers", "failover"]


@pytest.mark.parametrize("scenario", TABLES)
def test_every_figure_of_a_table_is_compared(scenario: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()

    def get(self: Row, name: str) -> object:
        settings = dict(self.point.settings)
        asked.update({name}.difference(settings, TEXTS))
        return settings.get(name, "none" if name in TEXTS else 1.0)

    points = plan(True, ["direct", "affinity", "haproxy"], [scenario])
    settings = {name for point in points for name, _ in point.settings}
    monkeypatch.setattr(Row, "get", get)
    scenarios.load(scenario).section([Row(point, {}) for point in points])
    compared = {each.figure for each in wins.COMPARED if each.scenario == scenario}
    assert asked & compared
    assert not {name for name in asked - compared - settings if not NO_MERIT.fullmatch(name)}


def test_provisioning_extrapolates_by_the_cores_of_the_run_only() -> None:
    times = ("wall_s", "controller_cpu_s", "controller_main_cpu_s", "hosts_cpu_s")
    names = (*times, "remote_tasks_node", "remote_tasks", "changed_tasks")
    figures: Figures = {f"{step}_{name}": 1.0 for step in STEPS for name in names}
    rows = [row("provisioning", "direct", figures, nodes=nodes) for nodes in (3, 10)]
    old = scenarios.load("provisioning").section(rows)
    assert "share the same cores here" in old
    assert "extrapolates" not in old
    new = scenarios.load("provisioning").section([Row(each.point, {**each.figures, "cores": 7}) for each in rows])
    assert "share 7 cores here" in new
    assert "over 7 cores" in new
