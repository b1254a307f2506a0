# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated engine beside the real one: the same requests to both, one curve each.

The simulated engine's model of time is a straight line (a constant, and a time for each character that no cache holds)
and a gap between tokens that is always the same. It is fitted to the ends of the real curve; how far it is off between
them, and with several streams at once, is what this measures.
"""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

from balancer.harness import free_port
from bench.point import Figures
from bench.real.engine import MODEL, chat, engines, words
from load.client import Ask, Load, Result
from simulated.fleet import Process, Spec, prompt_of

SLOTS, THREADS = 4, 2
LENGTHS = (32, 64, 128, 256, 512, 1024, 1792)  # words
STREAMS = (1, 2, 3, 4)
ROUNDS = 3
TOKENS = 40
SECONDS = 120


def prefill(folder: Path) -> Figures:
    """Time to first token against the prompt's length, one request at a time; the middle of ROUNDS."""
    source = random.Random(1)
    bodies = {
        count: [chat([{"role": "user", "content": words(source, count)}], 2) for _ in range(ROUNDS)]
        for count in LENGTHS
    }
    with engines(1, SLOTS, THREADS, folder) as (peer,):
        ask_all(peer.port, [chat([{"role": "user", "content": "Warm up."}], 2)])
        real = {count: ask_all(peer.port, each) for count, each in bodies.items()}
    tokens = {count: int((real[count][0].usage or {})["prompt_tokens"]) for count in LENGTHS}
    seconds = {count: statistics.median(r.token for r in real[count]) for count in LENGTHS}
    length = {count: statistics.median(len(prompt_of(body)) for body in bodies[count]) for count in LENGTHS}
    first, each = straight(*((length[count], seconds[count]) for count in (min(LENGTHS), max(LENGTHS))))
    spec = Spec("sim", "127.0.0.1", free_port(), SLOTS, [MODEL], first=first, prefill=each * 1000)
    with_simulated = simulate(spec, bodies)
    simulated = {count: statistics.median(r.token for r in with_simulated[count]) for count in LENGTHS}
    curve = [{"tokens": tokens[n], "real_ms": seconds[n] * 1000, "simulated_ms": simulated[n] * 1000} for n in LENGTHS]
    return {"curve": rounded(curve), **apart(curve)}


def decode(folder: Path) -> Figures:
    """Tokens per second of each stream against streams at once; the middle of ROUNDS."""
    source = random.Random(2)
    bodies = {
        count: [chat([{"role": "user", "content": words(source, 20)}], TOKENS) for _ in range(count * ROUNDS)]
        for count in STREAMS
    }
    with engines(1, SLOTS, THREADS, folder) as (peer,):
        ask_all(peer.port, [chat([{"role": "user", "content": "Warm up."}], 2)])
        real = {count: [pace(r) for r in ask_all(peer.port, each, count)] for count, each in bodies.items()}
    gap = 1 / statistics.median(real[1])
    found = simulate(Spec("sim", "127.0.0.1", free_port(), SLOTS, [MODEL], gap=gap), bodies, at_once=True)
    curve = [
        {
            "streams": count,
            "real_tokens_per_s": statistics.median(real[count]),
            "simulated_tokens_per_s": statistics.median(pace(r) for r in found[count]),
        }
        for count in STREAMS
    ]
    return {"curve": rounded(curve), **apart(curve)}


def straight(short: tuple[float, float], long: tuple[float, float]) -> tuple[float, float]:
    """The line through two points (characters, seconds to the first token): seconds at none, and of a character."""
    each = (long[1] - short[1]) / (long[0] - short[0])
    return max(0.0, short[1] - each * short[0]), each


def ask_all(port: int, bodies: list[dict[str, Any]], streams: int = 1) -> list[Result]:
    """Ask one after the other, or so many at a time.

    :raises RuntimeError: when an answer is missing
    """
    results: list[Result] = []
    for start in range(0, len(bodies), streams):
        with Load(port, [Ask(0, body) for body in bodies[start : start + streams]], timeout=SECONDS) as load:
            pass
        results += load.results
    if failed := [r for r in results if not r.ok]:
        raise RuntimeError(f"{len(failed)} of {len(results)} failed, the first: {failed[0]}")
    return results


def simulate(spec: Spec, bodies: dict[int, list[dict[str, Any]]], at_once: bool = False) -> dict[int, list[Result]]:
    process = Process(spec)
    try:
        return {count: ask_all(spec.port, each, count if at_once else 1) for count, each in bodies.items()}
    finally:
        process.destroy()


def pace(result: Result) -> float:
    """Tokens per second, once the first one was there."""
    return len(result.gaps) / sum(result.gaps)


def apart(curve: list[dict[str, float]]) -> Figures:
    """How far the simulated engine is off where it is off most."""
    worst = 0.0
    for point in curve:
        real, simulated = (next(v for name, v in point.items() if name.startswith(k)) for k in ("real", "simulated"))
        worst = max(worst, abs(simulated / real - 1))
    return {"most_apart_percent": worst * 100}


def rounded(curve: list[dict[str, float]]) -> str:
    return json.dumps([{name: round(value, 1) for name, value in point.items()} for point in curve])
