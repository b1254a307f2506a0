# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer's own life under load: reloads, workers that die; and everything at once."""

from __future__ import annotations

import collections
import os
import random
import signal
import threading
import time
from collections.abc import Callable

from balancer.harness import wait_for
from chaos.bed import Bed, Row, Watch, brief, held, peers, scaled, steady, unfair
from load.client import Ask, chat
from simulated.fleet import Process

MakeBed = Callable[..., Bed]
MakeRow = Callable[[str], Row]
INTERVAL = 2.0
SLACK = 0.3


def streams(count: int, seconds: float, first: float = 0.0) -> list[Ask]:
    """Live streams, a token each quarter of a second."""
    body = chat(seconds, stream=True, max_tokens=int(seconds * 4))
    return [Ask(first + 0.01 * i, body, tag="live") for i in range(count)]


def test_reloads(bed: MakeBed, row: MakeRow) -> None:
    line, here = row("20 reloads with 50 live streams"), bed()
    here.balancer.render(balancer_shutdown_timeout=60)  # the streams outlive what is enough elsewhere
    here.balancer.restart()
    here.fleet(*peers(4, 31, slots=20))
    here.route()
    pause = 1.0 if scaled(1, 0) else 0.25
    last = 20 * (pause + 0.35) + 2  # a reload takes a moment, too
    live = streams(50, last)
    others = steady(60, int(60 * last), 0.1, 31, streams=0.3)
    for ask in live + others:
        # HTTP/1.1 lets a server close an idle connection just when it is used again; at a reload nginx does, and after
        # a stream that outlived one. Clients ask again then; here every request has a connection of its own, so that
        # none may fail.
        ask.headers["Connection"] = "close"
    generations = set(here.balancer.worker_pids())
    with here.load(sorted(live + others, key=lambda ask: ask.due)) as load:
        time.sleep(1)
        for _ in range(20):
            here.balancer.reload()
            generations |= set(here.balancer.worker_pids())
            time.sleep(pause)
        reloaded = time.monotonic()
    bad = [r for r in load.results if not r.ok]
    line.count(load.results, bad)
    line.p99 = 0.0
    still = sum(r.due + r.total > reloaded for r in load.results if r.tag == "live")
    line.say(f"{still} streams lasted over all reloads, {len(generations)} workers served")
    assert bad == [], brief(bad)
    assert still == 50
    assert len(generations) >= 42
    here.settled(8)


def test_killed_worker(bed: MakeBed, row: MakeRow) -> None:
    """Its clients lose their connection, nothing else: its slots are free again, and probes go on."""
    line, here = row("worker kill -9"), bed()
    fleet = peers(3, 32)
    (victim,) = here.alone(fleet[0])
    here.fleet(*fleet[1:])
    here.route(limits={"return_time": 0})  # so that at the end all slots can be counted at once
    with here.load(streams(12, 20), timeout=25) as load, Watch(here.balancer) as watch:
        wait_for(lambda: held(here.balancer.state()) == 12, 3, "all slots are taken")
        state = here.balancer.state()
        busiest = max(state["workers"], key=lambda worker: worker["held"])
        living = 12 - busiest["held"]
        killed = time.monotonic()
        os.kill(busiest["pid"], signal.SIGKILL)
        wait_for(lambda: held(here.balancer.state()) == living, 2 * INTERVAL, f"{busiest['held']} slots are free again")
        line.say(f"{busiest['held']} slots free after {time.monotonic() - killed:.2f} s")
        # Now the one that probes, and at the same moment a peer hangs.
        prober = wait_for(
            lambda: (pid := here.balancer.state().get("prober")) in here.balancer.worker_pids() and pid, 4, "one probes"
        )
        os.kill(prober, signal.SIGKILL)
        stopped = time.monotonic()
        victim.pause()
        out = watch.out("n1", 8, stopped)
        victim.proceed()
        line.say(f"with the prober killed, a hung peer was out after {out:.2f} s")
        assert out <= 4 + SLACK
        load.stopped = True
        wait_for(lambda: watch.now["n1"] == "up", 12, "n1 is back")
        for pid in {worker["pid"] for worker in here.balancer.state()["workers"] if worker["held"]}:
            os.kill(pid, signal.SIGKILL)  # the rest of the long streams: nobody needs their end
    wait_for(lambda: held(here.balancer.state()) == 0, 2 * INTERVAL, "all slots are free again")
    with here.load([Ask(0, chat(1.0)) for _ in range(12)]) as after:
        pass
    bad = [r for r in after.results if not r.ok]
    line.count(load.results + after.results, bad)
    line.p99 = 0.0
    assert bad == [], brief(bad)
    assert max(r.total for r in after.results) < 1.8, "12 slots serve 12 requests at once"
    here.settled(killed=here.errors().count("exited on signal 9"))


MODES = [
    "error500",
    "busy503",
    "busy429",
    "die",
    "break_stream",
    "end_stream",
    "stall_stream",
    "wrong_length",
    "bad_status",
]


def torment(
    engines: list[Process], source: random.Random, ended: threading.Event, done: collections.Counter[str]
) -> None:
    """One random fault after the other, each healed after a moment; about half of the fleet is well at any time."""
    while not ended.is_set():
        process = source.choice(engines)
        fault = source.choice(["kill", "kill", "kill", "pause", "pause", "slow", *MODES])
        done[fault] += 1
        seconds = source.uniform(0.1, 1.0)
        if fault == "kill":
            process.kill()
            ended.wait(seconds)
            process.start()
        elif fault == "pause":
            process.pause()
            ended.wait(2 * seconds)
            process.proceed()
        else:
            changes = {"speed": 0.2} if fault == "slow" else {"mode": fault, "share": source.choice([0.1, 0.5, 1.0])}
            process.tell(**changes)
            ended.wait(seconds)
            process.tell(mode="ok", share=1.0, speed=1.0)


def test_mixed(bed: MakeBed, row: MakeRow) -> None:
    """Everything at once: whatever happens to requests, no slot is lost and no ticket stuck."""
    line, here = row("mixed requests, random faults"), bed(workers=4)
    first = peers(3, 33, slots=8, models=["m", "k"])
    second = peers(3, 34, "o", slots=8, models=["m"], keep_working=True)
    engines = here.alone(*first, *second)
    limits = {
        "stream_idle_timeout": 2,
        "first_byte_timeout": 10,
        "queue_timeout": 8,
        "ending_timeout": 4,
        "hold_down_max": 8,
        "return_time": 1,
    }
    here.route(limits=limits)
    count, rate, source = scaled(100_000, 3000), 0.5 * 48 / 0.1, random.Random(33)
    asks = steady(rate, count, 0.1, 33, streams=0.5)
    for ask in asks:
        if source.random() < 0.2:
            ask.body["model"] = "k"
        if source.random() < 0.03:
            ask.leave_after = source.uniform(0.01, 0.3)
    ended, done = threading.Event(), collections.Counter[str]()
    tormentor = threading.Thread(target=torment, args=(engines, source, ended, done))
    with Watch(here.balancer) as watch, here.load(asks, timeout=40) as load:
        tormentor.start()
        stays = load
    ended.set()
    tormentor.join()
    stayed = [r for r in stays.results if r.error != "left"]
    kinds = collections.Counter(f"{r.status} {r.ending} {r.code}".strip() for r in stayed)
    bad = unfair(stayed)
    line.count(stays.results, bad)
    line.say(f"{sum(done.values())} faults ({done['kill']} kills), {len(watch.changes)} changes")
    line.say(str(dict(kinds.most_common(6))))
    assert [r for r in stayed if r.ending in {"silent", "nothing"}] == []
    wait_for(lambda: all(p["health"] == "up" for p in here.balancer.state()["peers"]), 20, "all peers are up again")
    here.settled(10)
    assert {name: (each["running"], each["waiting"]) for name, each in here.report().items()} == {
        spec.name: (0, 0) for spec in first + second
    }
    with here.load([Ask(0, chat(1.5)) for _ in range(48)]) as after:
        pass
    assert {(r.ok, r.total < 2.8) for r in after.results} == {(True, True)}, "48 slots serve 48 requests at once"
    here.settled()
    # Errors that say so are right where a model's last node was out, or two nodes failed; most must not meet that.
    assert len(bad) <= 0.05 * len(stays.results), brief(bad)
