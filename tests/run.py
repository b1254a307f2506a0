# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run test suites and sum up: python tests/run.py SUITE… | all

Each suite is a list of commands; a command that pytest runs counts its tests, any other counts as one test. All suites
run, also after one has failed. First, one by one, those that measure or keep the machine busy; then, two at a time,
those that wait for hosts now and then. What the latter print comes when a command has ended. The last line is
``N passed, N failed``, and how many tries more there were: with RERUNS=1 in the environment, for machines that are
shared with others, a test that failed gets a second one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / ".build" / "results"
RERUNS = int(os.environ.get("RERUNS", "0"))


@dataclass
class Command:
    """One command.

    ``report`` names the JUnit report with its counts, below .build/results; ``always`` says that it cleans up, so it
    runs whatever failed before.
    """

    name: str
    argv: list[str]
    report: str | None = None
    always: bool = False


@dataclass
class Suite:
    """Commands that belong together.

    ``stop_at_failure``: after a failed one only those that clean up still run; ``waits``: may run beside another that
    does, because it waits for hosts now and then, and measures nothing.
    """

    name: str
    commands: list[Command]
    stop_at_failure: bool = False
    waits: bool = False


@dataclass
class Tally:
    """What has happened so far."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    rerun: int = 0
    lines: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def pytest(name: str, *arguments: str) -> Command:
    """Return a pytest run whose counts are collected."""
    report = name.replace(" ", "-").replace("/", "-") + ".xml"
    options = ["--quiet", "--durations=8", "--durations-min=10", f"--junitxml={RESULTS / report}", f"--reruns={RERUNS}"]
    argv = [sys.executable, "-m", "pytest", *options, *arguments]
    return Command(name, argv, report)


def molecule(action: str, scenario: str, *, always: bool = False) -> Command:
    """Return one action of a Molecule scenario."""
    # Verification is pytest with testinfra; each scenario's molecule.yml names this report.
    report = f"molecule-verify-{scenario}.xml" if action in ("verify", "test") else None
    return Command(f"molecule {action} {scenario}", ["molecule", action, "-s", scenario], report, always)


# These wait more than they work, or use one core: four at a time. What measures times runs alone.
SIDE_BY_SIDE = ("--numprocesses=4", "--dist=worksteal")
IN_TWO = ("--numprocesses=2", "--dist=worksteal")

SUITES = [
    Suite(
        "lint",
        [
            Command("yamllint", ["yamllint", "--strict", "."]),
            Command("ansible-lint", ["ansible-lint", "--offline", "--strict"]),
            Command("ruff check", ["ruff", "check", "."]),
            Command("ruff format", ["ruff", "format", "--check", "."]),
            Command("mypy", ["mypy"]),
            Command("luacheck", ["luacheck", "--quiet", "roles/balancer/files/lua", "tests/lua"]),
            Command("changelog", ["antsibull-changelog", "lint"]),
        ],
    ),
    Suite("unit", [pytest("pytest tests/unit", *SIDE_BY_SIDE, "tests/unit")]),
    Suite("lua", [Command("busted", ["busted", "tests/lua"])]),
    Suite("balancer", [pytest("pytest tests/balancer", *SIDE_BY_SIDE, "tests/balancer")]),
    # In network namespaces whose links are capped; needs root.
    Suite("distribution", [pytest("pytest tests/distribution", "-rP", "tests/distribution")]),
    # In its short form; with CHAOS=full (make chaos) whole.
    Suite("chaos", [pytest("pytest tests/chaos", "tests/chaos")]),
    Suite("bench", [pytest("pytest tests/bench", "tests/bench")]),
    # The demo's inventory on the demo's hosts: converged once, then everything that needs a cluster looks at it. That a
    # second run changes nothing is seen in tests/e2e/cluster/test_second_run.py.
    Suite(
        "cluster",
        [
            molecule("create", "cluster"),
            pytest("check mode on bare hosts", "tests/e2e/bare"),
            molecule("converge", "cluster"),
            molecule("verify", "cluster"),
            pytest("pytest tests/e2e", "-rP", "tests/e2e/cluster"),
            molecule("destroy", "cluster", always=True),
        ],
        stop_at_failure=True,
    ),
    # Four nodes on both engines: converged once, then versions are locked, moved, damaged and brought back there.
    Suite(
        "sync",
        [
            molecule("create", "sync"),
            molecule("converge", "sync"),
            pytest("pytest tests/e2e/sync", "-rP", "tests/e2e/sync"),
            molecule("destroy", "sync", always=True),
        ],
        stop_at_failure=True,
        waits=True,
    ),
    # A cluster's life from the command line, on hosts of its own, over SSH.
    Suite("fleet", [pytest("pytest tests/cli/fleet", "tests/cli/fleet")], waits=True),
    Suite("ollama", [molecule("test", "ollama")], waits=True),
    Suite("cli", [pytest("pytest tests/cli", *IN_TWO, "--ignore=tests/cli/fleet", "tests/cli")], waits=True),
    Suite("package", [pytest("pytest tests/package", "tests/package")], waits=True),
]


def counts(report: Path) -> tuple[int, int, int, int]:
    """Return (passed, failed, skipped, rerun) from a JUnit report; a missing one or one without tests is a failure."""
    if not report.exists():
        return 0, 1, 0, 0
    passed = failed = skipped = rerun = 0
    for suite in ET.parse(report).getroot().iter("testsuite"):
        tests, bad = int(suite.get("tests", 0)), int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        left_out = int(suite.get("skipped", 0))
        passed += tests - bad - left_out
        failed += bad
        skipped += left_out
        # Each try is a case of its own there, but counts as one test.
        rerun += max(0, len(suite.findall("testcase")) - tests)
    return (passed, failed, skipped, rerun) if passed + failed else (0, 1, skipped, rerun)


def execute(command: Command, *, later: bool, lock: threading.Lock) -> bool:
    """Run one command and return whether it ended well; ``later``: print what it said when it has ended."""
    if not later:
        print(f"\n=== {command.name}", flush=True)
        return subprocess.run(command.argv, cwd=ROOT, check=False, stdin=subprocess.DEVNULL).returncode == 0
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        ended = subprocess.run(
            command.argv, cwd=ROOT, check=False, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
        said.seek(0)
        with lock:
            print(f"\n=== {command.name}\n{said.read()}", flush=True)
    return ended.returncode == 0


def run(command: Command, tally: Tally, *, later: bool) -> bool:
    """Run one command, add what it counted, and return whether all was well."""
    report = RESULTS / command.report if command.report else None
    if report:
        report.unlink(missing_ok=True)
    began = time.monotonic()
    ok = execute(command, later=later, lock=tally.lock)
    passed, failed, skipped, rerun = counts(report) if report else (int(ok), int(not ok), 0, 0)
    failed = max(failed, int(not ok))
    ok = not failed
    verdict = "ok" if ok else "FAILED"
    with tally.lock:
        tally.passed += passed
        tally.failed += failed
        tally.skipped += skipped
        tally.rerun += rerun
        tally.lines.append(
            f"{verdict:7}{time.monotonic() - began:7.1f} s  {passed:4} passed {failed:3} failed  {command.name}"
        )
    return ok


def run_suite(suite: Suite, tally: Tally, *, later: bool = False) -> None:
    """Run a suite's commands in order."""
    broken = False
    for command in suite.commands:
        if broken and suite.stop_at_failure and not command.always:
            with tally.lock:
                tally.lines.append(f"not run            {command.name} (it needs what failed before)")
            continue
        broken = not run(command, tally, later=later) or broken


def main(names: list[str]) -> int:
    """Run the named suites and print the sum."""
    known = {suite.name: suite for suite in SUITES}
    wanted = list(known) if names == ["all"] else names
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        print(f"usage: python tests/run.py all | {' | '.join(known)}", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    tally = Tally()
    began = time.monotonic()
    suites = [known[name] for name in wanted]
    side_by_side = [suite for suite in suites if suite.waits] if len(suites) > 1 else []
    for suite in suites:
        if suite not in side_by_side:
            run_suite(suite, tally)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for done in [pool.submit(run_suite, suite, tally, later=True) for suite in side_by_side]:
            done.result()
    print("\n" + "\n".join(tally.lines))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes in all")
    skipped = f", {tally.skipped} skipped" if tally.skipped else ""
    rerun = f", {tally.rerun} rerun" if tally.rerun else ""
    print(f"{tally.passed} passed, {tally.failed} failed{skipped}{rerun}")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
