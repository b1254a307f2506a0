# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that die, hang, vanish, flap or slow down, under open-loop load at 80 %."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest
from balancer.harness import wait_for
from chaos.bed import Bed, Row, Watch, brief, can_cut, cut_off, peers, scaled, steady, unfair
from load.client import share

MakeBed = Callable[..., Bed]
MakeRow = Callable[[str], Row]
INTERVAL = 2.0  # seconds, probe_interval's default
SLACK = 0.3  # seconds that this machine may take to notice, in tests of times


def until(began: float, seconds: float) -> None:
    time.sleep(max(0.0, began + seconds - time.monotonic()))


def test_killed_engine(bed: MakeBed, row: MakeRow) -> None:
    """kill -9: nobody notices; out at the first refused connect, back after two good probes."""
    line, here = row("kill -9 engine"), bed()
    fleet = peers(6, 1)
    victims = here.alone(*fleet[:3])
    here.fleet(*fleet[3:])
    here.route()
    count = scaled(10000, 2200)
    rate = 0.8 * 24 / 0.1
    with Watch(here.balancer) as watch, here.load(steady(rate, count, 0.1, 1, streams=0.3)) as load:
        for i, victim in enumerate(victims):
            until(load.began, count / rate * (0.1 + 0.3 * i))
            name = fleet[i].name
            killed = time.monotonic()
            victim.kill()
            out = watch.out(name, 2, killed)
            until(killed, 1.0)
            started = time.monotonic()
            victim.start()
            back = watch.back(name, 2 * INTERVAL + 2, started)
            probes = victim.report(name)[name]["probes"]
            line.say(f"out {out:.2f} s, back {back:.1f} s and {probes} probes")
            assert out <= SLACK, "the first refused connect takes it out, and there is one every 30 ms"
            assert probes >= 2
            assert back <= 2 * INTERVAL + 1
    bad = unfair(load.results)
    line.count(load.results, bad)
    assert bad == [], brief(bad)
    here.settled()


def test_stopped_engine(bed: MakeBed, row: MakeRow) -> None:
    """SIGSTOP: its kernel still accepts connections. Out within 4 s, then its requests finish elsewhere."""
    line, here = row("SIGSTOP engine"), bed()
    fleet = peers(6, 2)
    (victim,) = here.alone(fleet[0])
    here.fleet(*fleet[1:])
    here.route(limits={"stream_idle_timeout": 3})
    rate = 0.8 * 24 / 0.2
    count = scaled(3000, 1000)
    with Watch(here.balancer) as watch, here.load(steady(rate, count, 0.2, 2, streams=0.2)) as load:
        until(load.began, 2)
        stopped = time.monotonic()
        victim.pause()
        out = watch.out("n1", 6, stopped)
        line.say(f"out after {out:.2f} s")
        until(load.began, count / rate * 0.8)
        going = time.monotonic()
        victim.proceed()
        back = watch.back("n1", 12, going)
        line.say(f"back after {back:.1f} s")
    bad = unfair(load.results)
    line.count(load.results, bad)
    assert bad == [], brief(bad)
    assert out <= 4 + SLACK
    moved = [r.total for r in load.results if r.ok and r.total > 2]
    assert max(moved, default=0) <= 4 + SLACK + 1.5, "what hung is asked elsewhere at the ejection"
    here.settled(8)


@pytest.mark.parametrize("pooled", [False, True], ids=["fresh", "pooled"])
def test_black_hole(bed: MakeBed, row: MakeRow, pooled: bool) -> None:
    """Packets vanish. A fresh connect is given up after 1 s; what is pooled or waits moves at the ejection."""
    if why := can_cut():
        pytest.skip(why)
    line, here = row(f"network black hole, {'pooled' if pooled else 'fresh'} connections"), bed()
    fleet = peers(10, 3, slots=2, keep_alive=pooled)
    here.fleet(*fleet)
    here.route()
    rate = 0.8 * 20 / 0.2
    count = scaled(4000, 700)
    with Watch(here.balancer) as watch, here.load(steady(rate, count, 0.2, 3)) as load:
        until(load.began, count / rate * 0.3)
        cut = time.monotonic()
        with cut_off(fleet[0].address):
            out = watch.out("n1", 6, cut)
            until(load.began, count / rate + 1)
        joined = time.monotonic()
        back = watch.back("n1", 12, joined)
    line.say(f"out after {out:.2f} s, back after {back:.1f} s")
    bad = unfair(load.results)
    line.count(load.results, bad)
    assert bad == [], brief(bad)
    assert out <= 4 + SLACK
    before = share([r.total for r in load.results if r.due < cut - 1], 0.99)
    after = share([r.total for r in load.results if r.due >= cut], 0.99)
    line.say(f"p99 {before:.2f} s before, {after:.2f} s after")
    if not pooled:
        assert after - before <= 1.5
    assert max(r.total for r in load.results) <= 4 + SLACK + 1.5
    here.settled()


def test_slow_peer(bed: MakeBed, row: MakeRow) -> None:
    """One of ten five times slower, against nine at the same rate: p99 to the first token ≤ 1.5 times."""
    line = row("one of 10 peers five times slower")
    rate = 0.8 * 18 / 0.1  # first 0.05 s, then five gaps of 0.01 s on average
    count = scaled(6000, 1400)
    firsts = []
    for slow in (False, True):
        here = bed()
        fleet = peers(10 if slow else 9, 4, slots=2, first=0.05, gap=0.01)
        fleet[-1].speed = 0.2 if slow else 1.0
        here.fleet(*fleet)
        here.route()
        asks = steady(rate, count, 0, 4, streams=1, make=lambda source: {"max_tokens": source.randint(2, 10)})
        for ask in asks:
            del ask.body["sim_service"]
        with here.load(asks) as load:
            pass
        bad = unfair(load.results)
        line.count(load.results, bad)
        assert bad == [], brief(bad)
        firsts.append(share([r.first for r in load.results], 0.99))
        if slow:
            line.say(f"{sum(r.peer == 'n10' for r in load.results)} requests went to it")
            assert here.balancer.peer("n10")["health"] == "up", "slow is not out"
        here.settled()
        here.destroy()
    line.say(
        f"p99 first token {firsts[0]:.3f} s without it, {firsts[1]:.3f} s with it: {firsts[1] / firsts[0]:.2f} times"
    )
    assert firsts[1] <= 1.5 * firsts[0]


def test_flapping_peer(bed: MakeBed, row: MakeRow) -> None:
    """An engine that dies and returns each second or so: at most one change per hold-down, each twice as long."""
    line, here = row("flapping peer"), bed()
    fleet = peers(3, 5)
    (victim,) = here.alone(fleet[0])
    here.fleet(*fleet[1:])
    hold, most = (4.0, 60.0) if scaled(1, 0) else (1.0, 60.0)
    here.route(limits={"hold_down": hold, "hold_down_max": most, **({} if hold > 1 else {"probe_interval": 0.4})})
    seconds = scaled(60, 12)
    rate = 0.8 * 8 / 0.1
    with Watch(here.balancer) as watch, here.load(steady(rate, int(rate * seconds), 0.1, 5)) as load:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            victim.kill()
            time.sleep(0.3)
            victim.start()
            time.sleep(0.9)
    bad = unfair(load.results)
    line.count(load.results, bad)
    assert bad == [], brief(bad)
    changes = watch.of("n1")
    outs = [(again - at) for (at, health), (again, _) in itertools.pairwise(changes) if health == "down"]
    line.say("out for " + ", ".join(f"{out:.1f}" for out in outs) + " s")
    # The first time out is a death like any other; from the second on it flaps.
    for i, out in enumerate(outs[1:]):
        assert out >= min(hold * 2**i, most) - SLACK, outs
    assert len(outs) >= 2
    here.settled()


def test_all_peers_out(bed: MakeBed, row: MakeRow) -> None:
    """Requests wait to their deadline, then 503; those that still wait when a peer returns are answered."""
    line, here = row("all peers out"), bed()
    process = here.fleet(*peers(3, 6))
    deadline = 4.0
    here.route(limits={"queue_timeout": deadline})
    rate, seconds = 10, 14  # few: peers that come back get their slots one after the other
    with Watch(here.balancer) as watch, here.load(steady(rate, rate * seconds, 0.2, 6)) as load:
        until(load.began, 1)
        killed = time.monotonic()
        process.kill()
        until(load.began, 7)
        started = time.monotonic()
        process.start()
        back = watch.back("n1", 8, started)
        line.say(f"back after {back:.1f} s")
    back_at = started + back
    late = [r for r in load.results if not r.ok and r.due > killed + 0.2]  # those before may have met two that died
    doomed = [r for r in load.results if killed + 0.2 < r.due < back_at - deadline - 0.5]
    # Those whose deadline lies after the return are served.
    saved = [r for r in load.results if back_at - deadline + 0.5 < r.due]
    line.count(load.results, [r for r in saved if not r.ok])
    line.say(f"{len(late)} times 503, {len([r for r in saved if r.due < back_at])} waited and were served")
    assert {r.status for r in late} == {503}, brief(late)
    assert {r.status for r in doomed} == {503}, brief([r for r in doomed if r.ok])
    assert len(doomed) >= 20
    for r in late:
        assert deadline - 0.1 <= r.total <= deadline + 0.1 + SLACK / 2, f"503 after {r.total:.2f} s"
    assert {r.code for r in doomed} <= {"queue_timeout", "no_node_available"}
    assert [r for r in saved if not r.ok] == []
    wait_for(lambda: set(watch.now.values()) == {"up"} or here.balancer.state(), 5)
    here.settled()
