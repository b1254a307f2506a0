# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run the benchmark: PYTHONPATH=tests python -m bench short | full | SCENARIO… | page

A run that was ended goes on where it was, if code, machine and versions are the same; else, and once it is whole, it
begins anew, and the file of the old one is kept under another name. Its results replace those of the scenarios that it
measured, in docs/benchmarks/results.json, and the page is written anew.
"""

from __future__ import annotations

import argparse
import datetime
import inspect
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench import scenarios
from bench.measure.code import fingerprint
from bench.measure.lateness import flagged
from bench.measure.machine import ROOT, machine, revision
from bench.plan import SHORT, chosen, plan
from bench.point import Figures, Point, Row
from bench.store import Published, Record, Run
from bench.systems import REGISTRY, System

WORK = ROOT / ".build" / "bench"
PUBLISHED = Published(ROOT / "docs" / "benchmarks" / "results.json")


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["short"], help="short, full, page, or scenarios by name")
    parser.add_argument("--full", action="store_true", help="scenarios in their full form")
    parser.add_argument("--systems", default="", help="only these, by name, with commas")
    parser.add_argument("--fresh", action="store_true", help="begin anew, also where a run was interrupted")
    parser.add_argument("--dry", action="store_true", help="do not touch results.json and the page")
    parser.add_argument("--list", action="store_true", help="say what would be measured, and which systems can run")
    return parser.parse_args(given)


def left(records: list[Record], points: list[Point]) -> str:
    """About how long the rest takes, from what the same scenario took, or all of them."""
    by_scenario: dict[str, list[float]] = {}
    for record in records:
        by_scenario.setdefault(record.point.scenario, []).append(record.seconds)
    everything = [seconds for each in by_scenario.values() for seconds in each]
    if not everything:
        return ""

    def usual(point: Point) -> float:
        known = by_scenario.get(point.scenario, everything)
        return sum(known) / len(known)

    return f", about {sum(map(usual, points)) / 60:.0f} min left"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def measure(point: Point, folder: Path) -> Record:
    began, date = time.monotonic(), now()
    figures: Figures = {}
    missing = error = ""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        figures = scenarios.load(point.scenario).run(point, REGISTRY[point.system](), folder)
    except scenarios.MissingError as why:
        missing = str(why)
    except Exception:  # one that fails must not take hours of others with it; it is on the page, and tried again
        error = traceback.format_exc()
        print(error, file=sys.stderr, flush=True)
    return Record(point, figures, time.monotonic() - began, missing, error, date, revision())


def brief(record: Record) -> str:
    """A few figures, so that who looks on sees whether it makes sense."""
    if record.missing or record.error:
        return record.missing or "failed: " + record.error.strip().splitlines()[-1]
    numbers = [(name, value) for name, value in record.figures.items() if not isinstance(value, str)]
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers[:40])


def about(system: type[System]) -> str:
    """What it does when all is busy or a node dies, as its class says."""
    return " ".join((inspect.getdoc(system) or "").split())


def head(form: str, systems: list[str], missing: dict[str, str], names: list[str], command: str) -> dict[str, Any]:
    return {
        "form": form,
        "date": now(),
        "command": command,
        "revision": revision(),
        "code": fingerprint(names=names),
        "machine": machine(),
        "versions": {name: REGISTRY[name]().version() for name in systems if name != "direct"},
        "about": {name: about(REGISTRY[name]) for name in systems if name != "direct"},
        "missing": missing,
    }


def perform(points: list[Point], run: Run) -> int:
    """Measure what is left; return how many failed."""
    while todo := run.left(points):
        point = todo[0]
        rest = left(list(run.records.values()), todo)
        print(f"[{len(points) - len(todo) + 1}/{len(points)}{rest}] {point.key}", flush=True)
        record = measure(point, WORK / "files" / run.file.stem / point.key.replace("/", "-"))
        run.add(record)
        print(f"    {record.seconds:.0f} s  {brief(record)}", flush=True)
        for line in flagged([Row(point, record.figures)]):
            print(f"    {line}", flush=True)
    return sum(bool(record.error) for record in run.records.values())


def begin(run: Run, head: dict[str, Any], points: list[Point], fresh: bool) -> None:
    """Go on with a run that was ended, where its figures and new ones are of one kind; begin it anew otherwise."""
    if run.head and not fresh and not run.is_whole(points):
        why = run.differs(head)
        if not why:
            print(
                f"goes on with the run of {run.head.get('date', 'an unknown date')} (--fresh begins anew)", flush=True
            )
            run.go_on(head)
            return
        print(f"begins anew, because {why} since {run.head.get('date', 'an unknown date')}", flush=True)
    if kept := run.begin(head):
        print(f"the file of the run before is now {kept}", flush=True)


def end(number: int, _frame: object) -> None:
    """Ended from outside: as any exception it stops what was started. The run goes on next time.

    While that is done, another signal must not cut it short: what is started would stay.
    """
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(given: list[str]) -> int:
    options = arguments(given)
    for number in ENDINGS:
        signal.signal(number, end)
    if options.what == ["page"]:
        from bench.report import page

        page.write(PUBLISHED.read(), ROOT / "docs")
        return 0
    form = options.what[0] if options.what in (["short"], ["full"]) else "full" if options.full else "short"
    names = {"short": list(SHORT), "full": scenarios.names()}.get(options.what[0], options.what)
    if unknown := set(names).difference(scenarios.names()):
        print(
            f"no such scenario: {', '.join(sorted(unknown))}; there are: {', '.join(scenarios.names())}",
            file=sys.stderr,
        )
        return 2
    systems, missing = chosen(form == "full", [name for name in options.systems.split(",") if name])
    for name, why in missing.items():
        print(f"without {name}: {why}", flush=True)
    points = plan(form == "full", systems, names)
    if options.list:
        print("\n".join(point.key for point in points))
        return 0
    run = Run(WORK / f"{'-'.join(options.what)}{'-full' if options.full else ''}.jsonl")
    target = "make bench" + (" FULL=1" if form == "full" else "") if options.what[0] in {"short", "full"} else ""
    command = target or f"python -m bench {' '.join(given)}"
    begin(run, head(form, systems, missing, names, command), points, options.fresh)
    failed = perform(points, run)
    if not options.dry:
        from bench.report import page

        PUBLISHED.take(run)
        page.write(PUBLISHED.read(), ROOT / "docs")
        print("docs/benchmarks.md is written")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
