# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where another system is the better one: every figure of the page's tables that one can be better in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from bench.point import Row
from bench.report.failures import failures
from bench.report.rounds import ROUND, merged, rounds
from bench.report.tables import label, order, plain, say
from bench.scenarios.overhead import SIZES

Results = Mapping[str, list[Row]]
OURS = "affinity"
LOWER, HIGHER = -1, 1
CLEAR = 0.05  # part of ours by which another must be better to be named
# And by more than this, in the figure's unit: below it, it is the measurement that differs.
SMALL = {"s": 0.001, "ms": 0.02, "%": 0.5, "% of a core": 0.5}


@dataclasses.dataclass(frozen=True)
class Compared:
    """A figure of a scenario. said: with its unit after the comma. over: it is what is added to this one; plus: with
    this one."""

    scenario: str
    figure: str
    said: str
    sense: int = LOWER
    over: str = ""
    plus: str = ""

    @property
    def unit(self) -> str:
        return self.said.rpartition(", ")[2]

    def value(self, row: Row) -> float | None:
        """A text where numbers are lower the better says that it never came to it."""
        terms = [(1, self.figure), (-1, self.over), (1, self.plus)]
        values = [(sign, row.get(name)) for sign, name in terms if name]
        if any(value is None for _, value in values):
            return None
        return sum(float("inf") if isinstance(value, str) else sign * value for sign, value in values)

    def better(self, value: float, mine: float) -> bool:
        # Twice "never" is no difference.
        if value == mine:
            return False
        more = self.sense * (value - mine)
        return more > max(CLEAR * abs(mine) if mine != float("inf") else 0.0, SMALL.get(self.unit, 0.0))


def spread(scenario: str, name: str, said: str, parts: Sequence[str] = ("mean", "p50", "p95", "p99")) -> list[Compared]:
    return [Compared(scenario, f"{name}_{part}_s", f"{said} {part}, s") for part in parts]


OF_CLIENTS = [
    Compared("", "gap_p99_ms", "gap between tokens p99, ms"),
    Compared("", "goodput_percent", "goodput, %", HIGHER),
    Compared("", "goodput_per_s", "good answers/s", HIGHER),
]


def of_clients(scenario: str) -> list[Compared]:
    """What summary() (bench/measure/answers.py) says of any load."""
    return [
        *spread(scenario, "ttft", "first token"),
        *spread(scenario, "e2e", "whole answer"),
        *(dataclasses.replace(each, scenario=scenario) for each in OF_CLIENTS),
    ]


def of_size(size: int) -> list[Compared]:
    one, many = f"{size}kB_1", f"{size}kB_32"
    return [
        *(
            Compared(
                "overhead",
                f"{one}_{part}_ms",
                f"added latency {part}, {size} kB, 1 connection, ms",
                over=f"{one}_direct_{part}_ms",
            )
            for part in ("p50", "p99")
        ),
        Compared("overhead", f"{many}_per_s", f"requests/s, {size} kB, 32 connections", HIGHER),
        *(
            Compared("overhead", f"{many}_{part}_ms", f"latency {part}, {size} kB, 32 connections, ms")
            for part in ("p50", "p99")
        ),
        Compared("overhead", f"{one}_cpu_ms", f"processor time of a request, {size} kB, 1 connection, ms"),
        Compared("overhead", f"{many}_cpu_ms", f"processor time of a request, {size} kB, 32 connections, ms"),
    ]


COMPARED = [
    *(each for size in SIZES for each in of_size(size)),
    Compared("streams", "gap_p99_ms", "added to the gap between tokens p99, ms", over="direct_gap_p99_ms"),
    Compared("streams", "delay_p99_ms", "added to a token's delay p99, ms", over="direct_delay_p99_ms"),
    Compared("streams", "ttft_p99_ms", "added to the first token p99, ms", over="direct_ttft_p99_ms"),
    Compared("streams", "cpu_ms_per_token", "processor time of a token, ms"),
    *spread("sweep", "wait", "wait"),
    *of_clients("sweep"),
    Compared("sweep", "answered_per_s", "answers/s", HIGHER),
    Compared("sweep", "cpu_ms_per_request", "processor time of a request, ms"),
    *of_clients("multi_turn"),
    Compared("multi_turn", "hit_rate", "held in caches", HIGHER),
    *of_clients("no_reuse"),
    Compared("scale_out", "answered_per_s", "answers/s", HIGHER),
    Compared("waiting", "core_percent", "1,000 waiting, % of a core"),
    Compared("waiting", "kilobytes_each", "memory of a waiting request, kB"),
    Compared("many_peers", "p50_ms", "latency p50, ms"),
    Compared("many_peers", "p99_ms", "latency p99, ms"),
    Compared("many_peers", "per_s", "requests/s, 32 connections", HIGHER),
    Compared("many_peers", "cpu_ms", "processor time of a request, ms"),
    Compared("many_peers", "idle_core_percent", "idle, % of a core"),
    Compared("failover", "not_begun_failed", "failed that had not begun"),
    Compared("failover", "truncated_told", "streams cut", plus="truncated_silent"),
    Compared("failover", "truncated_silent", "streams cut silently"),
    Compared("failover", "failed_after_back", "failed after the node's return"),
    Compared("failover", "last_failure_s", "last failure after, s"),
    Compared("failover", "recovered_s", "recovered after, s"),
    Compared("failover", "usual_ttft_s", "first token usual, s"),
    Compared("failover", "worst_ttft_s", "worst first token after, s"),
    *spread("real_engine", "ttft", "first token", ("mean", "p95")),
    Compared("real_engine", "later_ttft_mean_s", "first token of later turns mean, s"),
    Compared("real_engine", "held_part", "held in caches", HIGHER),
]
# There the failures are themselves what is compared.
FAILING = "failover"
# Settings that tell one line of a table from another; the others say how long it was measured.
TELLING = ("layout", "load", "cv", "cache", "streams", "peers", "work", "nodes", "seed")

HOW = f"""\
Than our default policy, in the same setting, in any figure of the tables below that one can be better in: by more than
{100 * CLEAR:.0f} %, and by more than {1000 * SMALL["s"]:g} ms (of what is in seconds), {SMALL["ms"]:g} ms (of what is
in milliseconds) or {SMALL["%"]:g} percentage points. Of several rounds it is the median that counts; a single round can
differ by chance. Whoever failed more requests there than ours is left out, except where a node dies.
"""


def section(results: Results) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for part, where, figure, mine, better in wins(results):
        found.setdefault((part, figure), []).append(f"{where}{': ' if where else ''}{mine}, {better}")
    lines = [[part, figure, "<br>".join(cells)] for (part, figure), cells in found.items()]
    heads = ["part", "figure", "setting: ours, and who is better"]
    return HOW + "\n" + (plain(heads, lines) if lines else "Nowhere.\n")


def wins(results: Results) -> list[list[str]]:
    """A line a setting and figure: cells of the table."""
    return [line for each in COMPARED for line in of_figure(each, results.get(each.scenario, []))]


def of_figure(compared: Compared, rows: Sequence[Row]) -> list[list[str]]:
    lines = []
    by_row = {one.point: group for one, group in zip(merged(rows), rounds(rows), strict=True)}
    all_rows = order(merged(rows))
    for ours in [row for row in all_rows if row.system == OURS]:
        mine = compared.value(ours)
        rivals = [
            row
            for row in all_rows
            if row.system not in {OURS, "direct"}
            and row.point.settings == ours.point.settings
            and (compared.scenario == FAILING or failures(row, compared.figure) <= failures(ours, compared.figure))
        ]
        better = [
            (value, row)
            for row in rivals
            if mine is not None and (value := compared.value(row)) is not None and compared.better(value, mine)
        ]
        if better:
            better.sort(key=lambda each: -compared.sense * each[0])
            named = [
                f"{label(row.system)} {say(value)}{apart(compared, by_row[ours.point], by_row[row.point])}"
                for value, row in better
            ]
            where = ", ".join(f"{key} {ours.get(key)}" for key in TELLING if told(key, ours.get(key)))
            shown = "never" if mine == float("inf") else say(mine)
            lines.append([compared.scenario.replace("_", " "), where, compared.said, shown, "; ".join(named)])
    return lines


def apart(compared: Compared, ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """In how many rounds they are better, if not in all of them."""
    others = {row.get(ROUND): compared.value(row) for row in theirs}
    pairs = [(compared.value(row), others.get(row.get(ROUND))) for row in ours]
    known = [(mine, other) for mine, other in pairs if mine is not None and other is not None]
    count = sum(mine != other and compared.sense * (other - mine) > 0 for mine, other in known)
    return f" (in {count} of {len(known)} rounds)" if count < len(known) else ""


def told(key: str, value: object) -> bool:
    """Does it tell one row from another? Nearly all loads come as a Poisson process (cv 1)."""
    return value is not None and not (key == "cv" and value == 1.0)
