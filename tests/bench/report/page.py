# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/benchmarks.md, from the last results of each scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import scenarios
from bench.measure import lateness
from bench.point import Row
from bench.report import origin, targets, wins
from bench.report.tables import label
from bench.scenarios import overhead
from bench.store import Record, rows
from bench.workload import scale

HEAD = """\
# Benchmarks

The balancer beside what one would take instead: on the same simulated engines, with the same arrivals, each part
in one run, in turns. Written by `make bench` (short, about ten minutes) or `make bench FULL=1` (everything, hours; it
goes on where it was interrupted) from `docs/benchmarks/results.json` and the notes beside it. Do not change it by hand.
"""
READS = f"{1000 / scale.CHARACTERS / scale.PREFILL:,.0f}"
READ_FIRST = f"""\
## Read this first

- **Everything shares one machine's cores**: client, balancer and simulated engines. A system that needs much processor
  time takes it from the others, as it would not with hosts of its own: differences in throughput are larger here.
- **The engines are simulated** (`tests/simulated/fleet.py`): exact slots, exact times, a prefix cache. They say nothing
  about real engines' speed, and their streams do not slow each other down, as a real engine's do on shared cores. How
  near they come to llama.cpp is measured in the section on a real engine.
- **Times are scaled** so that a run fits into minutes: {READS} tokens of a prompt are read per second, a simulated
  token takes {scale.GAP * 1000:.0f} ms and stands for {scale.ANSWER} tokens of a real answer, unless a part says
  otherwise (the chats do). A real fleet is about ten times slower, so all waits are about ten times longer there, and
  what a balancer adds matters less.
- **Settings**: each system as its documentation says for this job; what is set and why is in its file below
  `tests/bench/systems/`. The thresholds of sglang-router and of HAProxy's hash were chosen by what was best in short
  runs of the chats below. Ours has the role's defaults but for the queue's length (10,000 requests, not 1,000: the
  others' have no bound), and no keys; nobody speaks TLS. Ours and nginx write an access log, HAProxy does not.
- **Warm**: before anything is measured each system must have answered 20 requests, or a second of wrk where wrk asks,
  as some load parts of themselves with the first ones only.
- **Open loop**, unless a part says otherwise: a request is sent when it is due, however those before it fare, and its
  times count from then. *Closed loop* (wrk, and users who ask again once they have their answer) asks a slow system
  less often, which flatters its p99. Nothing is ever sent twice by the client.
- **Rounds**: what was measured several times, with other arrivals, is one line: the median of the rounds, and their
  failures added up. Two systems are compared round by round, for in each both had the same arrivals.
- Short runs have few requests: their p99 is the time of a handful. They find what is broken, not who leads by 5 %.
"""

FULL = "\nWhat isn't measured here is measured by `make bench FULL=1`.\n"


def left_out(part: dict[str, Any]) -> str:
    """Points that could not be measured, and why."""
    reasons: dict[str, str] = {}
    for record in map(Record.read, part["points"]):
        if record.missing or record.error:
            why = record.missing or "failed: " + record.error.strip().splitlines()[-1]
            reasons[f"{label(record.point.system)}: {why}"] = ""
    return "".join(f"\n- Not measured: {reason}" for reason in reasons) + "\n" if reasons else ""


def results_of(known: dict[str, Any]) -> dict[str, list[Row]]:
    """Rows by scenario, in the page's order."""
    found = {name: rows(known, name) for name in scenarios.names() if name in known}
    return found | {name: overhead.pooled(each) for name, each in found.items() if name == "overhead"}


def page(known: dict[str, Any], notes: str = "") -> str:
    """notes: what people found and changed, with figures before and after; Markdown with headings of its own."""
    results = results_of(known)
    out = [HEAD, READ_FIRST, "## Targets\n\n" + targets.section(results) + FULL]
    out.append("## Where another is better\n\n" + wins.section(results))
    if notes:
        out.append(notes)
    for name, found in results.items():
        module = scenarios.load(name)
        text = module.section(found) if found else "Nothing could be measured.\n"
        late = "".join(f"\n- {line}" for line in lateness.flagged(found))
        out.append(f"## {module.TITLE}\n\n{text}{late + chr(10) if late else ''}{left_out(known[name])}")
    out.append("## The systems\n\n" + origin.systems(known))
    out.append("## Where and when\n\n" + origin.machine(known) + "\n" + origin.runs(known))
    return "\n".join(out)


def write(known: dict[str, Any], folder: Path) -> None:
    """The page and its plots, below docs/."""
    from bench.report import plots

    (folder / "benchmarks").mkdir(parents=True, exist_ok=True)
    plots.write(results_of(known), folder / "benchmarks")
    (folder / "benchmarks.md").write_text(page(known, written(folder)))


def written(folder: Path) -> str:
    """docs/benchmarks/notes.md, the one part of the page that people write."""
    file = folder / "benchmarks" / "notes.md"
    return file.read_text() if file.exists() else ""
