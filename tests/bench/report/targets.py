# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was to be reached, and whether it was; and where another system is the better one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from bench.point import Row
from bench.report.tables import label, plain, say
from bench.scenarios.overhead import SIZES, added

Results = Mapping[str, list[Row]]
OURS = "affinity"
EVEN = 1.02  # times as long is the same: two runs of one system differ by as much


@dataclasses.dataclass(frozen=True)
class Target:
    wanted: str
    seen: str = ""  # empty: not measured
    met: bool = False

    @property
    def verdict(self) -> str:
        return "not measured" if not self.seen else "met" if self.met else "**not met**"


def rows(results: Results, scenario: str, system: str, **settings: object) -> list[Row]:
    return [
        row
        for row in results.get(scenario, [])
        if row.system == system and all(row.get(name) == value for name, value in settings.items())
    ]


def worst(found: list[Row], name: str) -> float | None:
    return max((row.get(name) for row in found if row.get(name) is not None), default=None)


def mean(found: list[Row], name: str) -> float | None:
    values = [row.get(name) for row in found if row.get(name) is not None]
    return sum(values) / len(values) if values else None


def at_most(wanted: str, value: float | None, bound: float, unit: str) -> Target:
    return Target(wanted) if value is None else Target(wanted, f"{say(value)} {unit}".strip(), value <= bound)


def targets(results: Results) -> list[Target]:
    return [*costs(results), *queue(results), *caches(results), *scale(results), *faults(results)]


def costs(results: Results) -> Iterator[Target]:
    ours = rows(results, "overhead", OURS)
    for part, bound in (("p50", 0.3), ("p99", 2.0)):
        more = max((value for row in ours if (value := added(row, "16kB_1", part)) is not None), default=None)
        yield at_most(f"added latency {part}, 16 kB, one connection: at most {bound} ms", more, bound, "ms")
    litellm = rows(results, "overhead", "litellm")
    wanted = "throughput: at least 50 times LiteLLM's, at every size"
    # A round that was too short for a single answer of LiteLLM's says nothing.
    if ours and litellm and all(litellm[0].get(f"{size}kB_32_per_s") for size in SIZES):
        times = [ours[0].get(f"{size}kB_32_per_s") / litellm[0].get(f"{size}kB_32_per_s") for size in SIZES]
        seen = ", ".join(f"{each:.0f} x at {size} kB" for each, size in zip(times, SIZES, strict=True))
        yield Target(wanted, seen, min(times) >= 50)
    else:
        yield Target(wanted)
    nginx = rows(results, "overhead", "nginx_plain")
    for size, least in ((1, 0.5), (16, 0.25)):
        wanted = f"throughput at {size} kB: at least {least} of plain nginx's"
        if ours and nginx:
            ratio = ours[0].get(f"{size}kB_32_per_s") / nginx[0].get(f"{size}kB_32_per_s")
            yield Target(wanted, f"{ratio:.2f}", ratio >= least)
        else:
            yield Target(wanted)
    streams = rows(results, "streams", OURS)
    for count in sorted({row.get("streams") for row in streams}) or [200]:
        found = [row for row in streams if row.get("streams") == count]
        more = max((row.get("gap_p99_ms") - row.get("direct_gap_p99_ms") for row in found), default=None)
        yield at_most(f"{count} streams, gap between tokens p99: at most 2 ms over direct", more, 2, "ms")
    waiting = worst(rows(results, "waiting", OURS), "core_percent")
    yield at_most("1,000 waiting requests: at most a tenth of a core", waiting, 10, "% of a core")


def queue(results: Results) -> Iterator[Target]:
    for layout in ("equal", "unequal"):
        found = rows(results, "sweep", OURS, layout=layout, load=0.9, cv=1.0)
        wanted = f"wait p99 at load 0.9, {layout} nodes: at most 1.1 times the ideal queue's"
        yield at_most(wanted, worst(found, "wait_p99_ratio"), 1.1, "x")
    for layout, wanted in (
        ("equal", "wait p99 at load 0.9, equal nodes: not longer than HAProxy's"),
        ("unequal", "wait p99 at load 0.9, unequal nodes: shorter than HAProxy's"),
        ("models", "wait p99 at load 0.9, several models: shorter than HAProxy's"),
    ):
        ours, theirs = (
            worst(rows(results, "sweep", name, layout=layout, load=0.9, cv=1.0), "wait_p99_s")
            for name in (OURS, "haproxy")
        )
        if ours is None or theirs is None:
            yield Target(wanted)
        else:
            met = ours <= theirs * EVEN if layout == "equal" else ours < theirs
            yield Target(wanted, f"{say(ours)} s, HAProxy {say(theirs)} s", met)


def caches(results: Results) -> Iterator[Target]:
    ours = mean(rows(results, "multi_turn", OURS, load=0.65), "ttft_mean_s")
    for name, gain, wanted in (
        ("least_busy", 0.5, "chats of many turns, load 0.65, mean time to first token: half of least_busy's or less"),
        ("haproxy", 0.0, "the same: shorter than HAProxy's"),
    ):
        theirs = mean(rows(results, "multi_turn", name, load=0.65), "ttft_mean_s")
        if ours is None or theirs is None:
            yield Target(wanted)
        else:
            less = 1 - ours / theirs
            yield Target(wanted, f"{say(ours)} s, {say(theirs)} s: {100 * less:.0f} % less", less >= max(gain, 1e-9))
    held = mean(rows(results, "multi_turn", OURS, load=0.65), "hit_rate")
    wanted = "the same: at least 0.85 of what could be held in caches is"
    yield Target(wanted) if held is None else Target(wanted, say(held), held >= 0.85)
    alone, other = (mean(rows(results, "no_reuse", name), "ttft_mean_s") for name in (OURS, "least_busy"))
    wanted = "questions without any reuse: first token at most 3 % later than with least_busy"
    if alone is None or other is None:
        yield Target(wanted)
    else:
        yield Target(wanted, f"{100 * (alone / other - 1):+.1f} %", alone / other <= 1.03)


def scale(results: Results) -> Iterator[Target]:
    for work, least, wanted in (
        ("questions", 2.95, "three nodes: at least 2.95 times the throughput of one"),
        ("documents", 3.0, "three nodes where caches add up: more than 3 times the throughput of one"),
    ):
        one, three = (
            mean(rows(results, "scale_out", OURS, work=work, nodes=count), "answered_per_s") for count in (1, 3)
        )
        if one and three:
            yield Target(wanted, f"{three / one:.2f} x", three / one >= least)
        else:
            yield Target(wanted)


def faults(results: Results) -> Iterator[Target]:
    found = rows(results, "failover", OURS)
    wanted = "a node dies: no request fails that had not begun"
    if found:
        failed = sum(row.get("not_begun_failed") for row in found)
        yield Target(wanted, f"{failed} of {sum(row.get('requests') for row in found):,}", failed == 0)
    else:
        yield Target(wanted)


def section(results: Results) -> str:
    found = targets(results)
    lines = [[target.wanted, target.seen or "-", target.verdict] for target in found]
    return plain(["target", "measured", ""], lines)


# Where another wins

LOWER, HIGHER = -1, 1
COMPARED: list[tuple[str, str, str, int]] = [
    *(("overhead", f"{size}kB_1_p50_ms", f"latency p50, {size} kB, one connection, ms", LOWER) for size in SIZES),
    *(("overhead", f"{size}kB_32_per_s", f"requests/s, {size} kB, 32 connections", HIGHER) for size in SIZES),
    ("streams", "gap_p99_ms", "gap between tokens p99, ms", LOWER),
    ("sweep", "wait_p99_s", "wait p99, s", LOWER),
    ("sweep", "ttft_mean_s", "mean time to first token, s", LOWER),
    ("sweep", "e2e_mean_s", "mean time to the whole answer, s", LOWER),
    ("sweep", "goodput_percent", "goodput, %", HIGHER),
    ("multi_turn", "ttft_mean_s", "mean time to first token, s", LOWER),
    ("multi_turn", "ttft_p99_s", "p99 of the time to first token, s", LOWER),
    ("no_reuse", "ttft_mean_s", "mean time to first token, s", LOWER),
    ("scale_out", "answered_per_s", "answers/s", HIGHER),
    ("waiting", "core_percent", "% of a core", LOWER),
    ("many_peers", "p50_ms", "latency p50, ms", LOWER),
    ("many_peers", "per_s", "requests/s", HIGHER),
    ("failover", "not_begun_failed", "failed that had not begun", LOWER),
    ("failover", "last_failure_s", "seconds to the last failure", LOWER),
]
CLEAR = 0.05  # by which another must be better to be named here
SMALL = {"s": 0.005, "ms": 0.05}  # and by more than this, in the figure's unit


def wins(results: Results) -> list[str]:
    """Who is better than our default policy by more than 5 %, a line each. Those that failed requests don't compete."""
    found = []
    for scenario, name, said, sense in COMPARED:
        for ours in rows(results, scenario, OURS):
            mine = ours.get(name)
            rivals = [
                (row.get(name), row)
                for row in results[scenario]
                if row.point.settings == ours.point.settings
                and row.system != OURS
                and row.get(name) is not None
                and (scenario == "failover" or not (row.get("failed") or 0))
            ]
            better = [(value, row) for value, row in rivals if mine is not None and clear(value, mine, name, sense)]
            if better:
                value, row = max(better, key=lambda each: sense * each[0])
                where = ", ".join(f"{key} {setting}" for key, setting in ours.point.settings if telling(key, setting))
                at = f"{scenario.replace('_', ' ')}{f' ({where})' if where else ''}"
                found.append(f"{at}: {said}: {label(row.system)} {say(value)}, ours {say(mine)}")
    return found


def clear(value: float, mine: float, name: str, sense: int) -> bool:
    more = sense * (value - mine)
    return more > max(CLEAR * abs(mine), SMALL.get(name.rpartition("_")[2], 0.0))


def telling(key: str, value: object) -> bool:
    """Does this setting tell one row of a table from another?"""
    return key in {"load", "layout", "streams", "peers", "nodes", "work", "round"} or (key == "cv" and value != 1.0)
