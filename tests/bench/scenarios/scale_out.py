# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""More nodes: how much more gets done."""

from __future__ import annotations

import collections
import random
import time
from pathlib import Path

from bench.measure import engines
from bench.point import Figures, Point, Row
from bench.report.tables import label, order, plain, say
from bench.rig import nodes, rig
from bench.scenarios import balancers, keepers
from bench.systems import System
from bench.workload import scale
from bench.workload.closed import users
from bench.workload.questions import text
from load.client import Ask, Load, share

TITLE = "More nodes"
SLOTS = 4
SLOWER = 2  # reading a prompt, than in the sweep: a model with long prompts
TOKENS = 8  # of an answer
NODES = (1, 2, 3, 6, 12)
PROMPTS = 48  # long documents that are asked about again and again, in the part with caches
DOCUMENT = 8192  # characters: 32 blocks of a cache
CACHE = 24 * 32  # blocks: one node holds half of the documents, three hold them all
HELD = scale.GAP * (TOKENS - 1)  # seconds that an answer takes where all is held
ALONE = SLOWER * scale.PREFILL * DOCUMENT / 1000 + HELD  # and where nothing is
WARM = 0.2  # of the time, which is not looked at: users come all at once, and caches are empty
MOST_A_SECOND = 8  # questions of a user
READING = 1 - HELD / ALONE  # of a request's time


def points(full: bool, systems: list[str]) -> list[Point]:
    if not full:
        return []
    return [
        Point.of("scale_out", name, work=work, nodes=count, seconds=20)
        for work in ("questions", "documents")
        for count in NODES
        for name in (keepers if work == "documents" else balancers)(systems)
    ]


def run(point: Point, system: System, folder: Path) -> Figures:
    source, documents = random.Random(75), point.get("work") == "documents"
    texts = [text(DOCUMENT, source) for _ in range(PROMPTS)]

    def make(name: str) -> Ask:
        first = source.choice(texts) if documents else text(DOCUMENT, source)
        messages = [{"role": "user", "content": first}, {"role": "user", "content": f"{name} and why?"}]
        body = {"model": "m", "stream": True, "max_tokens": TOKENS, "messages": messages}
        return Ask(0.0, body, tag=name)

    specs = nodes(
        point.get("nodes"),
        75,
        slots=SLOTS,
        prefill=SLOWER * scale.PREFILL,
        gap=scale.GAP,
        cache_blocks=CACHE * documents,
    )
    seconds = point.get("seconds")
    with rig(system, specs, folder) as here:
        # Half as many again as there are slots, so that one is always waiting.
        count, each = SLOTS * len(specs) * 3 // 2, int(MOST_A_SECOND * seconds)
        load = here.load(users(count, each, make, ALONE))
        with load:
            time.sleep(seconds)
            load.stop()
        log = here.log()
    asked = collections.Counter(result.tag.partition(".")[0] for result in load.results)
    if max(asked.values(), default=0) >= each:
        raise RuntimeError(f"a user ran out of questions: {each} are too few for {seconds:g} s")
    return {
        "late_p99_ms": 1000 * share([r.late for r in load.results if r.due - load.began > WARM * seconds], 0.99),
        "answered_per_s": rate(load, WARM * seconds, seconds),
        "failed": sum(not r.ok for r in load.results),
        "shares": engines.shares(load.results, log),
    }


def rate(load: Load, begin: float, end: float) -> float:
    """Answers per second between these seconds of the load: caches are warm then, and nobody leaves yet."""
    ends = [r.due + r.total - load.began for r in load.results if r.ok]
    return sum(begin <= at < end for at in ends) / (end - begin)


HOW = f"""\
Nodes with {SLOTS} slots and half as many users again as there are slots, who ask again as soon as they have their
answer (a closed loop), or {ALONE:.2f} s after a failure; the first fifth of the time does not count. A prompt has
{DOCUMENT:,} characters, an answer
{TOKENS} simulated tokens, {scale.GAP * 1000:.0f} ms apart as in the sweep; a prompt is read at 1/{SLOWER} of the speed
there, {1000 / scale.CHARACTERS / scale.PREFILL / SLOWER:,.0f} tokens/s: {READING * 100:.0f} % of the time of a request
that no cache holds anything of.

*Questions* share nothing. *Documents*: each question is about one of {PROMPTS} long documents, of which a node's cache
holds half; with more nodes the caches add up, if a document is always asked about where it is.
"""


def section(rows: list[Row]) -> str:
    out = HOW
    for work in ("questions", "documents"):
        some = [row for row in rows if row.get("work") == work]
        counts = sorted({row.get("nodes") for row in some})
        lines = []
        for name in dict.fromkeys(row.system for row in order(some)):
            by_count = {row.get("nodes"): row for row in some if row.system == name}
            one = by_count[counts[0]].get("answered_per_s") if counts[0] in by_count else None
            cells = [
                f"{say(by_count[n].get('answered_per_s'))} ({by_count[n].get('answered_per_s') / one:.2f} x)"
                if n in by_count and one
                else "-"
                for n in counts
            ]
            failed = sum(row.get("failed") for row in by_count.values())
            lines.append([label(name), *cells, say(failed)])
        if lines:
            heads = ["system", *(f"{n} node{'s' * (n > 1)}" for n in counts), "failed"]
            out += f"\n**{work.capitalize()}**, answers/s (over those of one node)\n\n" + plain(heads, lines)
    return out + "\n![Throughput against nodes](benchmarks/scale-out.svg)\n"
