# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What was to be reached, and whether it was."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from bench.point import Row
from bench.report.duel import Duel, duel, spanned
from bench.report.tables import plain
from bench.scenarios.overhead import SIZES, added
from bench.scenarios.waiting import COUNT

Results = Mapping[str, list[Row]]
OURS = "affinity"
EVEN = 1.02  # times as long is as long: two runs of one system differ by as much
MET, MISSED, UNKNOWN = "met", "**not met**", "not measured"
NOISE, ONCE = "**not shown** (within noise)", "**not shown** (one round)"


@dataclasses.dataclass(frozen=True)
class Target:
    wanted: str
    seen: str = "-"
    verdict: str = UNKNOWN


def judged(wanted: str, seen: str, met: bool) -> Target:
    return Target(wanted, seen, MET if met else MISSED)


def rows(results: Results, scenario: str, system: str, **settings: object) -> list[Row]:
    """With these settings; one that an older row doesn't have is any."""
    return [
        row
        for row in results.get(scenario, [])
        if row.system == system and all(row.get(name) in {value, None} for name, value in settings.items())
    ]


def values(found: Sequence[Row], name: str) -> list[float]:
    return [value for row in found if isinstance(value := row.get(name), (int, float))]


def at_most(wanted: str, seen: Sequence[float], bound: float, unit: str) -> Target:
    """By the median."""
    return judged(wanted, spanned(seen, unit), statistics.median(seen) <= bound) if seen else Target(wanted)


def at_least(wanted: str, seen: Sequence[float], bound: float, unit: str) -> Target:
    return judged(wanted, spanned(seen, unit), statistics.median(seen) >= bound) if seen else Target(wanted)


def shorter(wanted: str, pair: Duel | None, unit: str, rival: str) -> Target:
    """Only what is shorter in every round is shown to be, and one round shows nothing; what fails requests isn't."""
    if pair is None:
        return Target(wanted)
    if len(pair.ours) == 1 and not pair.failed[0]:
        verdict = ONCE
    elif pair.ahead == len(pair.ours) and not pair.failed[0]:
        verdict = MET
    else:
        verdict = NOISE if pair.overlap and pair.behind < len(pair.ours) and not pair.failed[0] else MISSED
    return Target(wanted, pair.said(unit, rival), verdict)


def not_longer(wanted: str, pair: Duel | None, unit: str, rival: str) -> Target:
    """By the medians, with the tolerance that the wanted text tells."""
    if pair is None:
        return Target(wanted)
    mine, other = pair.medians
    noise = "; within noise" if len(pair.ours) > 1 and pair.overlap and 0 < pair.ahead < len(pair.ours) else ""
    return judged(wanted, pair.said(unit, rival) + noise, mine <= EVEN * other and not pair.failed[0])


def targets(results: Results) -> list[Target]:
    return [*costs(results), *queue(results), *caches(results), *scale(results), *faults(results)]


def costs(results: Results) -> Iterator[Target]:
    ours = rows(results, "overhead", OURS)
    for part, bound in (("p50", 0.3), ("p99", 2.0)):
        more = [value for row in ours if (value := added(row, "16kB_1", part)) is not None]
        yield at_most(f"added latency {part}, 16 kB, one connection: at most {bound} ms", more, bound, "ms")
    litellm = throughput(results, "litellm", SIZES)
    wanted = "throughput: at least 50 times LiteLLM's, at every size"
    if litellm:
        seen = ", ".join(f"{each:.0f} x at {size} kB" for each, size in zip(litellm, SIZES, strict=True))
        yield judged(wanted, seen, min(litellm) >= 50)
    else:
        yield Target(wanted)
    for size, least in ((1, 0.5), (16, 0.25)):
        nginx = throughput(results, "nginx_plain", [size])
        yield at_least(f"throughput at {size} kB: at least {least} of plain nginx's", nginx, least, "x")
    streams = rows(results, "streams", OURS)
    for count in sorted({row.get("streams") for row in streams}) or [200]:
        found = [row for row in streams if row.get("streams") == count]
        more = [row.get("gap_p99_ms") - row.get("direct_gap_p99_ms") for row in found]
        yield at_most(f"{count} streams, gap between tokens p99: at most 2 ms over direct", more, 2, "ms")
    wanted = f"{COUNT:,} waiting requests: at most a tenth of a core"
    waiting = rows(results, "waiting", OURS)
    if used := values(waiting, "core_percent"):
        still = min(values(waiting, "waiting"))
        seen = f"{spanned(used, '% of a core')}, {still:,.0f} waiting"
        yield judged(wanted, seen, max(used) <= 10 and still == COUNT)
    else:
        yield Target(wanted)


def throughput(results: Results, rival: str, sizes: Sequence[int]) -> list[float]:
    """Ours over the rival's, at each of these sizes in kB; empty where one of them got nothing answered.

    A round that was too short for a single answer of a slow one says nothing.
    """
    found = [rows(results, "overhead", name) for name in (OURS, rival)]
    rates = [[row.get(f"{size}kB_32_per_s") for size in sizes] for row in [each[0] for each in found if each]]
    if len(rates) < 2 or not all(rate for each in rates for rate in each):
        return []
    return [mine / other for mine, other in zip(*rates, strict=True)]


def queue(results: Results) -> Iterator[Target]:
    def at(system: str, layout: str) -> list[Row]:
        return rows(results, "sweep", system, layout=layout, load=0.9, cv=1.0)

    for layout in ("equal", "unequal"):
        wanted = f"wait p99 at load 0.9, {layout} nodes: at most 1.1 times the simulated central queue's"
        yield at_most(wanted, values(at(OURS, layout), "wait_p99_ratio"), 1.1, "x")
    longer = f"not longer than HAProxy's (by the medians at most {100 * (EVEN - 1):.0f} % longer)"
    for layout, nodes, judge, words in (
        ("equal", "equal nodes", not_longer, longer),
        ("unequal", "unequal nodes", shorter, "shorter than HAProxy's"),
        ("models", "several models", shorter, "shorter than HAProxy's"),
    ):
        pair = duel(at(OURS, layout), at("haproxy", layout), "wait_p99_s")
        yield judge(f"wait p99 at load 0.9, {nodes}: {words}", pair, "s", "HAProxy")


def caches(results: Results) -> Iterator[Target]:
    def chats(system: str) -> list[Row]:
        return rows(results, "multi_turn", system, load=0.65, cache="shared")

    wanted = "chats of many turns, load 0.65, mean time to first token: half of least_busy's or less"
    pair = duel(chats(OURS), chats("least_busy"), "ttft_mean_s")
    yield at_most_of(wanted, pair, 0.5, "least_busy")
    pair = duel(chats(OURS), chats("haproxy"), "ttft_mean_s")
    yield shorter("the same: shorter than HAProxy's", pair, "s", "HAProxy")
    held = values(chats(OURS), "hit_rate")
    yield at_least("the same: at least 0.85 of what could be held in caches is", held, 0.85, "")
    wanted = "questions without any reuse: first token at most 3 % later than with least_busy"
    pair = duel(rows(results, "no_reuse", OURS), rows(results, "no_reuse", "least_busy"), "ttft_mean_s")
    yield at_most_of(wanted, pair, 1.03, "least_busy")


def at_most_of(wanted: str, pair: Duel | None, bound: float, rival: str) -> Target:
    """By the median over the rounds of ours over theirs."""
    if pair is None or not pair.parts:
        return Target(wanted)
    mine, other = (spanned([value], "s") for value in pair.medians)
    seen = f"{mine}, {rival} {other}; by round {spanned([100 * (part - 1) for part in pair.parts], '%')}"
    return judged(wanted, seen, statistics.median(pair.parts) <= bound and not pair.failed[0])


def scale(results: Results) -> Iterator[Target]:
    for work, least, wanted in (
        ("questions", 2.95, "three nodes: at least 2.95 times the throughput of one"),
        ("documents", 3.0, "three nodes where caches add up: more than 3 times the throughput of one"),
    ):
        one, three = (
            values(rows(results, "scale_out", OURS, work=work, nodes=count), "answered_per_s") for count in (1, 3)
        )
        if one and three and statistics.median(one):
            more = statistics.median(three) / statistics.median(one)
            yield judged(wanted, f"{more:.2f} x", more >= least if work == "questions" else more > least)
        else:
            yield Target(wanted)


def faults(results: Results) -> Iterator[Target]:
    found = rows(results, "failover", OURS)
    wanted = "a node dies: no request fails that had not begun"
    if found:
        failed = sum(row.get("not_begun_failed") for row in found)
        yield judged(wanted, f"{failed} of {sum(row.get('requests') for row in found):,}", failed == 0)
    else:
        yield Target(wanted)


def section(results: Results) -> str:
    lines = [[target.wanted, target.seen, target.verdict] for target in targets(results)]
    return plain(["target", "measured: the median, and of several rounds their range", ""], lines)
