# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same chats to one real engine and to simulated ones: what their caches held, and when the first token came.

The simulated one's times are fitted to lone requests to the real one, just before.
"""

from __future__ import annotations

import random
import statistics
from pathlib import Path

from balancer.harness import free_port
from bench.point import Figures
from bench.real import chats
from bench.real.calibration import ask_all, pace, straight
from bench.real.engine import MODEL, chat, engines, words
from load.client import Ask, Load, Result
from simulated.fleet import Process, Spec, prompt_of

SLOTS, THREADS = 2, 2
CHATS, TURNS = 6, 4  # more chats than slots, so that it matters who keeps what
RATE = 0.5  # chats that begin in a second
CACHES = ("shared", "slot")
BLOCKS = 4000  # of the simulated cache: it holds all chats, as the real one does
FIT = (64, 768)  # words


def measure(folder: Path) -> Figures:
    """By engine (real, shared, slot): the part held of what the turn before had sent; seconds to the first token.

    :raises RuntimeError: when an answer is missing
    """
    with engines(1, SLOTS, THREADS, folder) as (peer,):
        spec = fitted(peer.port)
        figures = named("real", ask(peer.port))
    for cache in CACHES:
        spec.cache, spec.port = cache, free_port()
        process = Process(spec)
        try:
            figures |= named(cache, ask(spec.port))
        finally:
            process.destroy()
    return figures


def fitted(port: int) -> Spec:
    """A simulated engine that is as fast as this real one with lone requests."""
    source = random.Random(3)
    ask_all(port, [chat([{"role": "user", "content": "Warm up."}], 2)])
    bodies = [
        [chat([{"role": "user", "content": words(source, count)}], chats.TOKENS) for _ in range(3)] for count in FIT
    ]
    results = [ask_all(port, each) for each in bodies]
    length = [statistics.median(len(prompt_of(body)) for body in each) for each in bodies]
    first, each = straight(*zip(length, (statistics.median(r.token for r in some) for some in results), strict=True))
    gap = 1 / statistics.median(pace(result) for some in results for result in some)
    spec = Spec("sim", "127.0.0.1", free_port(), SLOTS, [MODEL], cache_blocks=BLOCKS)
    spec.first, spec.prefill, spec.gap = first, each * 1000, gap
    return spec


def ask(port: int) -> tuple[list[Ask], list[Result]]:
    asks = chats.conversations(3, CHATS, TURNS, RATE)
    with Load(port, asks, timeout=chats.SECONDS) as load:
        pass
    if failed := [r for r in load.results if not r.ok or not r.usage]:
        raise RuntimeError(f"{len(failed)} of {len(asks)} failed, the first: {failed[0]}")
    return asks, load.results


def named(engine: str, asked: tuple[list[Ask], list[Result]]) -> Figures:
    found = chats.summary(*asked)
    return {f"{engine}_{name}": found[name] for name in ("held_part", "ttft_mean_s", "later_ttft_mean_s")}
