# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A run goes on where it was ended, and its results become the page."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from bench import __main__ as command
from bench import scenarios
from bench.measure.code import fingerprint
from bench.measure.lateness import flagged
from bench.plan import SHORT, plan, turns
from bench.point import Figures, Point, Row
from bench.report import page, plots, targets
from bench.report.rounds import rounds
from bench.store import TRIES, Published, Record, Run, rows
from bench.systems import REGISTRY

ALL = ["direct", *(name for name in REGISTRY if name != "direct")]
HEAD = {
    "form": "short",
    "date": "2026-01-01 00:00 UTC",
    "command": "make bench",
    "revision": "abc",
    "code": "1",
    "machine": {"processor": "2 cores"},
    "versions": {"affinity": "1"},
    "about": {"affinity": "It waits."},
    "missing": {"haproxy": "it is not installed"},
}


def test_systems_take_turns_at_being_first() -> None:
    points = [Point.of("s", system, load=load) for load in (1, 2, 3) for system in ("a", "b")]
    assert [(p.get("load"), p.system) for p in turns(points)] == [
        *((1, "a"), (1, "b"), (2, "b"), (2, "a")),
        *((3, "a"), (3, "b")),
    ]


@pytest.mark.parametrize("full", [False, True])
def test_every_point_of_a_plan_has_a_key_of_its_own(full: bool) -> None:
    points = plan(full, ALL, scenarios.names() if full else list(SHORT))
    assert len({point.key for point in points}) == len(points)
    assert {point.scenario for point in points} == set(scenarios.names() if full else SHORT)


def test_a_run_goes_on_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    points = [Point.of("s", "a", load=load) for load in (1, 2, 3)]
    run = Run(tmp_path / "run.jsonl")
    run.begin(HEAD)
    run.add(Record(points[0], {"x_s": 1.5}))
    run.add(Record(points[1], {"x_s": 2.5}))
    whole = run.file.read_text()
    run.file.write_text(whole[:-20])
    again = Run(run.file)
    assert again.head == HEAD
    assert again.left(points) == points[1:]
    again.write()
    again.add(Record(points[1], {}, error="it broke"))
    last = Run(run.file)
    assert last.left(points) == [points[2], points[1]], "what failed is tried again, after the others"
    assert last.records[points[0].key].figures == {"x_s": 1.5}


def test_a_second_signal_does_not_cut_the_end_short() -> None:
    before = {number: signal.getsignal(number) for number in command.ENDINGS}
    try:
        with pytest.raises(SystemExit) as ended:
            command.end(signal.SIGHUP, None)
        assert ended.value.code == 129
        for number in command.ENDINGS:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_always_fails_does_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    point = Point.of("s", "a")
    run = Run(tmp_path / "run.jsonl")
    run.begin(HEAD)
    for left in ([point], []):
        run.add(Record(point, {}, error="it broke", date="2026-01-01 00:01 UTC", revision="abc"))
        again = Run(run.file)
        assert again.left([point]) == left
        assert again.records[point.key] == run.records[point.key]


def test_what_a_kill_cut_off_does_not_spoil_the_next_line(tmp_path: Path) -> None:
    run = Run(tmp_path / "run.jsonl")
    run.begin(HEAD)
    run.add(Record(Point.of("s", "a"), {"x_s": 1.5}))
    run.file.write_text(run.file.read_text() + '{"scenario": "s", "sys')
    again = Run(run.file)
    again.go_on(HEAD)
    again.add(Record(Point.of("s", "b"), {"x_s": 2.5}))
    assert list(Run(run.file).records) == ["s/a", "s/b"]


def test_a_run_goes_on_only_with_figures_of_one_kind(tmp_path: Path) -> None:
    """What is there is never deleted, and a rival that appears or goes changes nothing of it."""
    points = [Point.of("s", system) for system in ("affinity", "haproxy")]
    changed: list[dict[str, Any]] = [
        {"code": "2"},
        {"machine": {"processor": "4 cores"}},
        {"versions": {"affinity": "2"}},
    ]
    for number, change in enumerate(changed):
        run = Run(tmp_path / f"{number}.jsonl")
        run.begin(HEAD)
        run.add(Record(points[0], {"x_s": 1.5}))
        come = {**HEAD, "date": "later", "versions": {"haproxy": "3", "affinity": "1"}, "missing": {}}
        command.begin(run, come, points, fresh=False)
        assert Run(run.file).records.keys() == {"s/affinity"}
        assert (run.head["date"], run.head["missing"], run.head["versions"]) == (HEAD["date"], {}, come["versions"])
        gone = {**HEAD, "versions": {"haproxy": "3"}, "missing": {"affinity": "gone"}}
        command.begin(run, gone, points[1:], fresh=False)
        assert run.head["versions"]["affinity"] == "1"
        before = run.file.read_text()
        command.begin(run, {**HEAD, **change}, points, fresh=False)
        assert not Run(run.file).records
        assert (tmp_path / f"{number}.2026-01-01-00-00.1.jsonl").read_text() == before


def test_what_failed_in_an_earlier_run_is_tried_again_before_one_begins_anew(tmp_path: Path) -> None:
    points = [Point.of("s", system) for system in ("affinity", "haproxy")]
    run = Run(tmp_path / "run.jsonl")
    run.begin({**HEAD, "command": "bench s --systems affinity"})
    run.add(Record(points[0], {"x_s": 1.5}))
    for _ in range(TRIES):
        run.add(Record(points[1], {}, error="it broke"))
    assert run.left(points) == []
    command.begin(run, {**HEAD, "command": "bench s"}, points, fresh=False)
    assert run.left(points) == points[1:]
    assert run.head["command"] == "bench s --systems affinity; bench s"


def test_a_run_that_is_whole_begins_anew_and_is_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run.jsonl")
    for _ in range(3):
        command.begin(run, HEAD, [Point.of("s", "a")], fresh=False)
        run.add(Record(Point.of("s", "a"), {"x_s": 1.5}))
    assert len(list(tmp_path.glob("run.*.jsonl"))) == 2


def test_the_fingerprint_is_of_what_measures(tmp_path: Path) -> None:
    places = ["bench/rig.py", "bench/report/page.py", "load/client.py", "simulated/fleet.py", "balancer/harness.py"]
    for place in places:
        (tmp_path / "tests" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / place).write_text("1")
    before = fingerprint(tmp_path)
    (tmp_path / "tests/bench/report/page.py").write_text("2")
    (tmp_path / "tests/bench/test_more.py").write_text("2")
    assert fingerprint(tmp_path) == before
    (tmp_path / "tests/simulated/fleet.py").write_text("2")
    assert fingerprint(tmp_path) != before


def test_a_client_that_was_late_is_named() -> None:
    rows = [Row(Point.of("s", name), {"late_p99_ms": late}) for name, late in (("a", 4.9), ("b", 7.25))]
    assert flagged([*rows, Row(Point.of("s", "old"), {})]) == ["the client itself was late in s/b: p99 7.25 ms"]


def test_results_of_a_scenario_are_replaced_as_a_whole(tmp_path: Path) -> None:
    published = Published(tmp_path / "results.json")
    for name, load in (("old", 1), ("new", 2)):
        run = Run(tmp_path / f"{name}.jsonl")
        run.begin({**HEAD, "form": name})
        run.add(Record(Point.of("client", "direct", load=load), {"x_s": load}))
        published.take(run)
    known = published.read()
    assert [row.get("load") for row in rows(known, "client")] == [2]
    assert known["client"]["run"]["form"] == "new"


def invented(point: Point) -> Figures:
    """Plausible figures of any scenario, for the page's own sake."""
    names = [
        *(f"{size}kB_{many}{rest}" for size in (1, 16, 64) for many in (1, 32) for rest in OVERHEAD),
        *("plain_per_s", "wrk_per_s", "tokens_per_s", "gap_p99_ms", "direct_gap_p99_ms", "ttft_p99_ms"),
        *("direct_ttft_p99_ms", "cpu_ms_per_token", "failed", "requests", "wait_mean_s", "wait_p95_s", "wait_p99_s"),
        *(
            "ideal_p99_s",
            "wait_p99_ratio",
            "ttft_mean_s",
            "ttft_p50_s",
            "ttft_p95_s",
            "ttft_p99_s",
            "goodput_percent",
            "e2e_mean_s",
        ),
        *("goodput_per_s", "hit_rate", "busy", "answered_per_s", "waiting", "core_percent", "kilobytes_each"),
        *("idle_core_percent", "p50_ms", "p99_ms", "per_s", "cpu_ms", "bad", "not_begun_failed", "truncated_told"),
        *("truncated_silent", "last_failure_s", "recovered_s", "usual_ttft_s", "worst_ttft_s"),
    ]
    value = 1.0 + ALL.index(point.system)
    timeline = json.dumps([[5, 0, 0, 0.1], [3, 1, 1, None]] * 20)
    return {**dict.fromkeys(names, value), "failed": 0, "errors": "", "refused": "none", "timeline": timeline}


OVERHEAD = ("_direct_p50_ms", "_direct_per_s", "_direct_p99_ms", "_p50_ms", "_p99_ms", "_per_s", "_cpu_ms", "_bad")
# These two say something about real programs, and have tests of their own.
OWN = {"real_engine", "provisioning"}


@pytest.fixture(params=[False, True], ids=["short", "full"])
def known(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    run = Run(tmp_path / "run.jsonl")
    run.begin(HEAD)
    names = [name for name in scenarios.names() if name not in OWN] if request.param else list(SHORT)
    for point in plan(request.param, ALL, names):
        if point.system == "litellm":
            run.add(Record(point, {}, missing="there is no snake here"))
        else:
            run.add(Record(point, invented(point)))
    Published(tmp_path / "results.json").take(run)
    return Published(tmp_path / "results.json").read()


def test_the_page_has_all_that_was_measured(known: dict[str, Any], tmp_path: Path) -> None:
    page.write(known, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    for name in known:
        assert f"\n## {scenarios.load(name).TITLE}\n" in text
    assert "there is no snake here" in text
    assert "it is not installed" in text
    for line in text.splitlines():
        if line.startswith("!["):
            plot = tmp_path / line.rpartition("(")[2].rstrip(")")
            assert plot.read_text().startswith("<?xml"), line


def test_the_same_results_make_the_same_plots(known: dict[str, Any], tmp_path: Path) -> None:
    results = {name: rows(known, name) for name in ("overhead", "failover")}
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append({file.name: file.read_bytes() for file in plots.write(results, tmp_path / name)})
    assert made[0] == made[1]


def test_targets_that_are_missed_are_said_to_be(known: dict[str, Any]) -> None:
    results = {name: rows(known, name) for name in known}
    verdicts = {target.wanted: target.verdict for target in targets.targets(results)}
    has_rounds = len(rounds(results["multi_turn"])) < len(results["multi_turn"])
    assert verdicts["the same: shorter than HAProxy's"] == ("met" if has_rounds else targets.ONCE)
    assert verdicts["a node dies: no request fails that had not begun"] == "**not met**"
    assert verdicts["throughput: at least 50 times LiteLLM's, at every size"] == "not measured"


def test_a_point_that_fails_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> Figures:
        raise RuntimeError("the engine caught fire")

    monkeypatch.setattr(scenarios.load("client"), "run", breaks)
    monkeypatch.setattr(command, "WORK", tmp_path)
    run = Run(tmp_path / "run.jsonl")
    run.begin(HEAD)
    assert command.perform([Point.of("client", "direct", seconds=1)], run) == 1
    assert "the engine caught fire" in Run(run.file).records["client/direct/seconds=1"].error


def test_the_committed_page_is_that_of_the_committed_results() -> None:
    known = command.PUBLISHED.read()
    assert known, "docs/benchmarks/results.json is missing"
    committed = (command.ROOT / "docs" / "benchmarks.md").read_text()
    assert page.page(known, page.written(command.ROOT / "docs")) == committed, "python -m bench page"
