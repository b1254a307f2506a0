# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is the client the bottleneck? What it can do when there is nothing between it and what answers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from balancer.harness import free_port
from bench.measure.lateness import BOUND
from bench.point import Figures, Point, Row
from bench.report.tables import plain, say, table
from bench.rig import nodes, rig
from bench.scenarios import many_peers, overhead, scale_out, streams
from bench.systems import System
from bench.workload import layouts
from bench.workload.closed import users
from bench.workload.questions import question, questions
from load import wrk
from load.client import Ask, Load, chat
from load.stub import Stub

TITLE = "The clients themselves"
CLIENTS = 32


def points(full: bool, systems: list[str]) -> list[Point]:
    return [Point.of("client", "direct", seconds=10 if full else 3)]


def run(point: Point, system: System, folder: Path) -> Figures:
    seconds = point.get("seconds")
    figures: Figures = {}
    with Stub(folder, [("127.0.0.1", free_port())]) as stub:
        figures["plain_per_s"] = answered_per_s(stub.place, seconds, lambda name: Ask(0, chat(text=name), tag=name))
        if not wrk.missing():
            figures["wrk_per_s"] = wrk.wrk(stub.place, folder, 1024, CLIENTS, seconds).rate
    # Streams without any time of their own, from an engine with room for all: 60 tokens each.
    with rig(system, nodes(1, 70, slots=CLIENTS), folder) as here:
        source = random.Random(70)

        def make(name: str) -> Ask:
            ask = question(name, source)
            ask.body["max_tokens"] = 60
            return ask

        load = here.load(users(CLIENTS, 100, make))
        with load:
            time.sleep(seconds)
            load.stop()
        tokens = sum(r.tokens for r in load.results if r.ok)
        figures["tokens_per_s"] = tokens / (max(r.due + r.total for r in load.results) - load.began)
    return figures


def answered_per_s(place: tuple[str, int], seconds: float, make: Callable[[str], Ask]) -> float:
    """Of the client in Python, with as many users who ask again at once."""
    asks = users(CLIENTS, int(200 * seconds), make)
    load = Load(place[1], asks, address=place[0])
    with load:
        time.sleep(seconds)
        load.stop()
    return sum(r.ok for r in load.results) / (max(r.due + r.total for r in load.results) - load.began)


HOW = f"""\
With nothing between them and what answers, 32 at a time. The client in Python (asyncio, one process) makes the
loads of questions and streams below; it must stay far from its limit there. In each measurement it also notes how late
it sent what was due, and more than {BOUND:g} ms (p99) is said on this page. It cannot get a balancer to its limit: what
a request costs (*{overhead.TITLE}*, *{many_peers.TITLE}*) is measured with wrk.
"""


def demands() -> list[list[str]]:
    """What the heaviest loads ask of it: the scenario, requests/s, tokens/s."""
    seconds, load = 60, 0.95
    fleets = {layout: layouts.capacity(layouts.engines(layout, 70)) for layout in layouts.NODES}
    layout = max(fleets, key=lambda each: fleets[each])
    asks = questions(load, fleets[layout], seconds, seed=70)
    tokens = sum(ask.body["max_tokens"] for ask in asks)
    most = max(streams.COUNTS)
    most_answers = max(scale_out.NODES) * scale_out.SLOTS / scale_out.HELD
    most_tokens = most_answers * scale_out.TOKENS
    return [
        [f"{streams.TITLE}: {most} of them, one token each {streams.GAP:g} s", "-", say(most / streams.GAP)],
        [f"Load: {load} of {layout} nodes", say(len(asks) / seconds), say(tokens / seconds)],
        [
            f"{scale_out.TITLE}: {max(scale_out.NODES)} that hold all they are asked",
            say(most_answers),
            say(most_tokens),
        ],
    ]


def section(rows: list[Row]) -> str:
    return (
        HOW
        + "\n"
        + table(
            rows,
            ("plain answers/s, client in Python", "plain_per_s"),
            ("tokens of streams/s, client in Python (with the simulated engine's own work)", "tokens_per_s"),
            ("plain answers/s, wrk", "wrk_per_s"),
        )
        + "\nBeside it, what the heaviest of the loads below ask of it:\n\n"
        + plain(["load", "answers/s", "tokens/s"], demands())
    )
