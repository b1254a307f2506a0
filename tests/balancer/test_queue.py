# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The central queue: order, bounds, deadlines, clients that leave, several workers."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import socket
import time
from typing import Any

import pytest
from balancer.engines import Engine
from balancer.harness import KEY, Answer, Balancer, MakeBalancer, MakeEngine, table, wait_for


def waiting(balancer: Balancer) -> int:
    return balancer.state()["queue"]["waiting"]


def message(text: str, model: str = "m", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


class Crowd:
    """Requests that are sent one after the other and wait, each in a thread of its own."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer
        self.pool = concurrent.futures.ThreadPoolExecutor(64)
        self.sent: list[concurrent.futures.Future[Answer]] = []

    def send(self, body: dict[str, Any], queued: bool = True, **kwargs: Any) -> None:
        before = waiting(self.balancer)
        self.sent.append(self.pool.submit(self.balancer.ask, body=body, **kwargs))
        if queued:
            wait_for(lambda: waiting(self.balancer) == before + 1, what="the request waits")

    def statuses(self) -> list[int]:
        return [each.result().status for each in self.sent]


@pytest.fixture
def crowd(balancer: Balancer) -> Crowd:
    return Crowd(balancer)


def occupied(balancer: Balancer, engine: MakeEngine, crowd: Crowd, seconds: float, **limits: Any) -> Engine:
    """One engine with one slot, which is taken for so long."""
    one = engine(service_time=seconds, peer={"slots": 1})
    balancer.put(table(one, limits=limits))
    crowd.send(message("first"), queued=False)
    wait_for(lambda: one.running == 1)
    one.service_time = 0.02
    return one


def order(one: Engine) -> list[str]:
    return [json.loads(seen.body)["messages"][0]["content"] for seen in one.inference()]


def arrived(text: str, *engines: Engine) -> None:
    wait_for(lambda: any(text in order(each) for each in engines), what=f"'{text}' is at an engine")


def test_first_come_first_served(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    one = occupied(balancer, engine, crowd, 1)
    for i in range(12):
        crowd.send(message(str(i)))
    assert crowd.statuses() == [200] * 13
    assert order(one) == ["first", *map(str, range(12))]


def test_full_queue_is_503_at_once_with_a_time_to_come_back(
    balancer: Balancer, engine: MakeEngine, crowd: Crowd
) -> None:
    occupied(balancer, engine, crowd, 1, queue_length=2)
    crowd.send(message("a"))
    crowd.send(message("b"))
    started = time.monotonic()
    answer = balancer.chat()
    assert (answer.status, answer.code) == (503, "queue_full")
    assert time.monotonic() - started < 0.2
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert crowd.statuses() == [200] * 3


def test_bytes_held_are_bounded(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    occupied(balancer, engine, crowd, 1, queue_bytes=100_000)
    crowd.send(message("x" * 60_000))
    assert balancer.state()["queue"]["bytes"] > 60_000
    assert balancer.ask(body=message("x" * 60_000)).code == "queue_full"
    crowd.send(message("small"))
    assert crowd.statuses() == [200] * 3
    assert balancer.state()["queue"]["bytes"] == 0


def test_retry_after_follows_the_drain_rate(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    one = occupied(balancer, engine, crowd, 0.2, queue_length=30, queue_timeout=30)
    one.service_time = 0.2
    for _ in range(40):
        crowd.send(message("fills the queue"), queued=False)
    time.sleep(2)
    for _ in range(20):  # about ten have been served since, so the last of these find it full again
        crowd.send(message("too many"), queued=False)
    wait_for(lambda: sum(each.done() and each.result().status == 503 for each in crowd.sent[41:]) >= 5, 2)
    rate = balancer.state()["queue"]["drain_rate"]
    told = [
        int(each.result().headers["retry-after"])
        for each in crowd.sent[41:]
        if each.done() and each.result().status == 503
    ]
    assert rate > 1
    assert all(30 / rate / 2 - 1 <= seconds <= 2 * 30 / rate + 2 for seconds in told), (told, rate)
    one.service_time = 0
    assert set(crowd.statuses()) == {200, 503}


@pytest.mark.parametrize("deadline", [0.3, 1.0])
def test_deadline_is_kept_to_a_tenth_of_a_second(
    balancer: Balancer, engine: MakeEngine, crowd: Crowd, deadline: float
) -> None:
    occupied(balancer, engine, crowd, deadline + 0.6, queue_timeout=deadline)
    started = time.monotonic()
    answer = balancer.chat()
    waited = time.monotonic() - started
    assert (answer.status, answer.code) == (503, "queue_timeout")
    assert abs(waited - deadline) <= 0.1, waited
    assert crowd.statuses() == [200]


def test_client_that_leaves_gives_up_its_place_at_once(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    one = occupied(balancer, engine, crowd, 1)
    body = json.dumps(message("left")).encode()
    with socket.create_connection(("127.0.0.1", balancer.port)) as sock:
        sock.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        wait_for(lambda: waiting(balancer) == 1)
    wait_for(lambda: waiting(balancer) == 0, 0.5, "the place is given up")
    crowd.send(message("stayed"))
    assert crowd.statuses() == [200, 200]
    assert order(one) == ["first", "stayed"]


def test_many_that_leave_leave_nothing_behind(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    occupied(balancer, engine, crowd, 1.5)
    body = json.dumps(message("left")).encode()
    for _ in range(4):
        with contextlib.ExitStack() as stack:
            for _ in range(60):
                sock = stack.enter_context(socket.create_connection(("127.0.0.1", balancer.port)))
                sock.sendall(
                    f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
                    f"Content-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )
            wait_for(lambda: waiting(balancer) == 60)
        wait_for(lambda: waiting(balancer) == 0, 2)
    assert balancer.state()["queue"]["sets"] == []
    assert crowd.statuses() == [200]


def test_request_that_lost_its_node_keeps_its_place(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    """The oldest request breaks on one node; it goes before those that came later, when the other has a slot."""
    bad, good = engine("bad", mode="die", service_time=0.8), engine("good", service_time=1.2)
    bad.peer = good.peer = {"slots": 1}
    balancer.put(table(bad, good))
    crowd.send(message("a"), queued=False)
    wait_for(lambda: bad.running + good.running == 1)
    crowd.send(message("b"), queued=False)
    wait_for(lambda: bad.running + good.running == 2)
    broken = order(bad)[0]
    bad.stop()  # the request on it fails, and nothing else is there but the busy good one
    wait_for(lambda: waiting(balancer) == 1)
    good.service_time = 0.02
    for i in range(3):
        crowd.send(message(f"later {i}"))
    assert crowd.statuses() == [200] * 5
    assert order(good)[1:] == [broken, "later 0", "later 1", "later 2"]


def test_slot_goes_to_the_oldest_of_all_sets(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    """One peer serves both models: whoever came first gets its slot, whatever the model."""
    both = engine(models=["m", "n"], service_time=1, peer={"slots": 1})
    balancer.put(table(both))
    crowd.send(message("first"), queued=False)
    wait_for(lambda: both.running == 1)
    both.service_time = 0.02
    for i in range(6):
        crowd.send(message(str(i), model="mn"[i % 2]))
    assert crowd.statuses() == [200] * 7
    assert order(both) == ["first", *map(str, range(6))]


def test_slot_goes_to_whom_it_fits_best_among_the_oldest(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    """Two sessions are pinned by what went before; the free slot's peer gets back the one it knows."""
    one, two = engine("one", service_time=0.6), engine("two", service_time=0.9)
    one.peer = two.peer = {"slots": 1}
    balancer.put(table(one, two))
    for name in ("s1", "s2"):
        crowd.send(message(name, prompt_cache_key=name), queued=False)
        arrived(name, one, two)
    home = {name: (one if name in order(one) else two) for name in ("s1", "s2")}
    away = "s1" if home["s1"] is two else "s2"
    here = "s2" if away == "s1" else "s1"
    crowd.send(message("older", prompt_cache_key=away))  # "one" is free first, and knows the other session
    crowd.send(message("younger", prompt_cache_key=here))
    assert crowd.statuses() == [200] * 4
    assert order(one)[1] == "younger"
    assert order(two)[1] == "older"


@pytest.mark.parametrize("limit", [{"affinity_max_wait": 0.3}, {"queue_window": 1}])
def test_oldest_is_not_passed_over_for_ever(
    balancer: Balancer, engine: MakeEngine, crowd: Crowd, limit: dict[str, float]
) -> None:
    one, two = engine("one", service_time=0.6), engine("two", service_time=30)
    one.peer = two.peer = {"slots": 1}
    balancer.put(table(one, two, limits={**limit, "queue_timeout": 10}))
    for name in ("s1", "s2"):
        crowd.send(message(name, prompt_cache_key=name), queued=False)
        arrived(name, one, two)
    known = order(one)[0]
    crowd.send(message("older"))
    crowd.send(message("younger", prompt_cache_key=known))
    one.service_time = 0.02
    assert crowd.sent[2].result().status == 200
    assert order(one)[1] == "older"
    two.stop()
    assert crowd.statuses() == [200] * 4


def test_changed_table_serves_those_who_wait(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    one = occupied(balancer, engine, crowd, 3, queue_timeout=10)
    crowd.send(message("waits"))
    two = engine("two", peer={"slots": 1})
    balancer.put(table(one, two, limits={"queue_timeout": 10}))
    started = time.monotonic()
    assert crowd.sent[1].result().status == 200
    assert time.monotonic() - started < 1
    assert order(two) == ["waits"]
    assert crowd.statuses() == [200, 200]


def test_model_that_goes_away_is_404_for_those_who_wait(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    one = occupied(balancer, engine, crowd, 2)
    crowd.send(message("waits"))
    one.models = ["other"]
    balancer.put(table(one, default_model="other"))
    assert crowd.sent[1].result().status == 404
    assert waiting(balancer) == 0
    assert crowd.statuses() == [200, 404]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_order_and_slots_over_workers(own_balancer: MakeBalancer, engine: MakeEngine, workers: int) -> None:
    balancer = own_balancer(workers=workers)
    crowd = Crowd(balancer)
    one = occupied(balancer, engine, crowd, 1.5, queue_timeout=20)
    for i in range(30):
        crowd.send(message(str(i)))
    assert crowd.statuses() == [200] * 31
    assert order(one) == ["first", *map(str, range(30))]
    assert one.most == 1
    wait_for(lambda: balancer.busy() == 0)


def test_waiting_requests_outlive_a_reload(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    """Those of the old workers keep their places before those of the new ones."""
    balancer = own_balancer(workers=2)
    crowd = Crowd(balancer)
    one = occupied(balancer, engine, crowd, 2.5, queue_timeout=20)
    for i in range(8):
        crowd.send(message(str(i)))
    balancer.reload()
    for i in range(8, 12):
        crowd.send(message(str(i)))
    assert crowd.statuses() == [200] * 13
    assert order(one) == ["first", *map(str, range(12))]


def test_killed_workers_tickets_block_nobody(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=2)
    crowd = Crowd(balancer)
    one = occupied(balancer, engine, crowd, 2, queue_timeout=20)
    for i in range(20):
        crowd.send(message(str(i)))
    holder = next(worker["pid"] for worker in balancer.state()["workers"] if worker["held"])
    other = next(pid for pid in balancer.worker_pids() if pid != holder)
    os.kill(other, signal.SIGKILL)
    answered = 0
    for each in crowd.sent:
        with contextlib.suppress(Exception):
            answered += each.result().status == 200
    assert answered == len(one.inference())
    wait_for(lambda: waiting(balancer) == 0 and balancer.busy() == 0, 3)
    assert balancer.chat().status == 200
    (balancer.dir / "error.log").write_text(balancer.errors().replace("[alert]", "[seen]"))  # nginx says who was killed


def test_waiting_requests_end_with_words_before_the_shutdown_timeout(
    own_balancer: MakeBalancer, engine: MakeEngine
) -> None:
    balancer = own_balancer(workers=1)
    balancer.render(balancer_shutdown_timeout=3)
    balancer.restart()
    one = engine(service_time=8, stubborn=True, peer={"slots": 1})
    balancer.put(table(one, limits={"queue_timeout": 30, "first_byte_timeout": 30}))
    crowd = Crowd(balancer)
    crowd.send(message("served"), queued=False)
    wait_for(lambda: one.running == 1)
    crowd.send(message("waits"))
    balancer.signal(signal.SIGQUIT)
    assert [(each.result().status, each.result().code) for each in crowd.sent] == [(503, "shutting_down")] * 2


def test_streams_end_with_words_before_the_shutdown_timeout(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=1)
    balancer.render(balancer_shutdown_timeout=3)
    balancer.restart()
    one = engine(tokens=400, gap=0.05)
    balancer.put(table(one))
    text = b""
    with balancer.stream(message("long", stream=True)) as response:
        text += response.read1()
        balancer.signal(signal.SIGQUIT)
        with contextlib.suppress(http.client.IncompleteRead):
            while piece := response.read1():
                text += piece
    assert b'"code":"shutting_down"' in text.split(b"\n\n")[-2]


def test_stuck_on_a_peer_that_failed_it(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    """It waits for the other one, which goes out; then the first, which is back, may have it after all."""
    first, second = engine("first", mode="die"), engine("second", service_time=30)
    first.peer = second.peer = {"slots": 1}
    balancer.put(table(first, second, limits={"queue_timeout": 10}))
    while not second.running:
        crowd.send(message("holds the second"), queued=False)
        time.sleep(0.3)
    crowd.send(message("waits"), queued=False)
    wait_for(lambda: waiting(balancer) >= 1)
    first.mode = "ok"
    second.stop()
    assert crowd.sent[-1].result().status == 200


def test_only_waiting_counts_towards_the_deadline(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    """A request was at work for longer than one may wait when its node dies: it still waits for the next slot."""
    lost, other = engine("lost", service_time=3), engine("other", service_time=1.9)
    lost.peer = other.peer = {"slots": 1}
    balancer.put(table(lost, other, limits={"queue_timeout": 1}))
    crowd.send(message("a"), queued=False)
    crowd.send(message("b"), queued=False)
    wait_for(lambda: lost.running == other.running == 1)
    time.sleep(1.4)
    lost.stop()
    assert crowd.statuses() == [200, 200]


def test_those_who_wait_follow_the_routes_of_a_new_table(balancer: Balancer, engine: MakeEngine, crowd: Crowd) -> None:
    one, two = engine("one", service_time=3, peer={"slots": 1}), engine("two")

    def route(name: str) -> list[dict[str, Any]]:
        return [{"name": "r", "when": {"model": "m"}, "peers": [name]}]

    balancer.put(table(one, two, routes=route("one"), limits={"queue_timeout": 10}))
    crowd.send(message("first"), queued=False)
    wait_for(lambda: one.running == 1)
    crowd.send(message("waits"))
    balancer.put(table(one, two, routes=route("two"), limits={"queue_timeout": 10}))
    started = time.monotonic()
    assert crowd.sent[1].result().status == 200
    assert time.monotonic() - started < 1
    assert order(two) == ["waits"]
    assert crowd.statuses() == [200, 200]


@pytest.mark.parametrize(("seconds", "retry_after"), [(0.3, None), (0, "0")])
def test_deadline_holds_when_all_peers_say_they_are_busy(
    balancer: Balancer, engine: MakeEngine, seconds: float, retry_after: str | None
) -> None:
    names = "abcd"
    engines = [engine(name, mode="busy503", service_time=seconds, retry_after=retry_after) for name in names]
    balancer.put(table(*engines, limits={"queue_timeout": 1.5}))
    started = time.monotonic()
    answer = balancer.chat()
    assert (answer.status, answer.code) == (503, "queue_timeout")
    assert 1.3 < time.monotonic() - started < 2
    assert sum(len(each.inference()) for each in engines) < 40


def test_waiters_for_a_model_that_a_peer_lacks_do_not_hide_others(
    balancer: Balancer, engine: MakeEngine, crowd: Crowd
) -> None:
    full = engine("full", kind="ollama", models=["m", "k"], service_time=4, peer={"slots": 1})
    part = engine("part", kind="ollama", models=["k"], service_time=0.02, peer={"slots": 1, "models": ["m", "k"]})
    balancer.put(table(full, part, limits={"queue_timeout": 8, "queue_length": 200}))
    wait_for(lambda: balancer.peer("part")["lacks"] == ["m"])
    many = Crowd(balancer)
    many.pool = concurrent.futures.ThreadPoolExecutor(80)
    many.send(message("first"), queued=False)
    wait_for(lambda: full.running == 1)
    for i in range(70):
        many.send(message(str(i)), queued=False)
    wait_for(lambda: waiting(balancer) == 70)
    started = time.monotonic()
    assert balancer.chat(model="k").status == 200
    assert time.monotonic() - started < 1
    full.service_time = 0
    assert set(many.statuses()) == {200}


def test_those_who_wait_elsewhere_now_are_not_granted_what_they_left(
    balancer: Balancer, engine: MakeEngine, crowd: Crowd
) -> None:
    """Two wait for two peers, then the route leaves them one of those: the other one's slot is not theirs any more."""
    one, two = engine("one", service_time=2.5), engine("two", service_time=1.2)
    one.peer = two.peer = {"slots": 1}

    def put(*names: str) -> None:
        routes = [{"name": "r", "when": {"model": "m"}, "peers": list(names)}]
        balancer.put(table(one, two, routes=routes, limits={"queue_timeout": 10}))

    put("one", "two")
    for name in ("a", "b"):
        crowd.send(message(name), queued=False)
    wait_for(lambda: one.running == two.running == 1)
    one.service_time = two.service_time = 0.02
    crowd.send(message("c"))
    crowd.send(message("d"))
    put("one")
    assert crowd.statuses() == [200] * 4
    assert len(order(two)) == 1
    assert balancer.busy() == 0
