# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots of engines that go on working for a client that left: in use until the engine has ended, come what may."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from balancer.engines import Engine
from balancer.harness import KEY, Answer, Balancer, MakeBalancer, MakeEngine, table, wait_for

LIMITS = {"queue_timeout": 15, "first_byte_timeout": 30, "ending_timeout": 20}
NOTICED = 1.0  # seconds until a client that left is missed
FREED = 0.7  # seconds until an engine that ended is believed


def client(balancer: Balancer, engine: Engine) -> socket.socket:
    """A client whose request the engine works on; not streamed, so that the engine does not notice when it leaves."""
    before = len(engine.inference())
    sock = socket.create_connection(("127.0.0.1", balancer.port))
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})
    head = f"Host: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}"
    sock.sendall(f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n\r\n{body}".encode())
    wait_for(lambda: len(engine.inference()) > before)
    return sock


def ending(balancer: Balancer, name: str = "n1") -> int:
    return balancer.peer(name)["ending"]


def left(balancer: Balancer, engine: Engine, number: int = 1) -> None:
    """Clients that left: their slots are ending."""
    clients = [client(balancer, engine) for _ in range(number)]
    for each in clients:
        each.close()
    wait_for(lambda: ending(balancer) == number, NOTICED + 0.5, "it is noticed who left")


def over_in(engine: Engine, number: int = 0) -> float:
    """Seconds since the request with this number ended there."""
    return time.monotonic() - engine.inference()[number].ended


def stubborn(engine: MakeEngine, slots: int = 1, service_time: float = 3) -> Engine:
    return engine(stubborn=True, service_time=service_time, peer={"slots": slots})


def later(balancer: Balancer) -> tuple[ThreadPoolExecutor, Future[Answer]]:
    pool = ThreadPoolExecutor(1)
    return pool, pool.submit(balancer.chat)


def no_errors(balancer: Balancer) -> None:
    assert [line for line in balancer.errors().splitlines() if "[error]" in line] == []


def test_slot_is_in_use_until_the_engine_ends(balancer: Balancer, engine: MakeEngine) -> None:
    one = stubborn(engine)
    balancer.put(table(one, limits=LIMITS))
    left(balancer, one)
    peer = balancer.peer("n1")
    assert (peer["busy"], peer["ending"]) == (1, 1)
    (request,) = peer["in_flight"]
    assert (request["model"], request["key"], request["ending"]) == ("m", "tester", True)
    assert 0 <= request["seconds"] < 3
    one.service_time = 0
    assert balancer.chat().status == 200
    first, second = one.inference()
    assert one.most == 1, "never two on its only slot"
    assert 0 < second.started - first.ended < FREED
    peer = balancer.peer("n1")
    assert (peer["busy"], peer["ending"], peer["in_flight"]) == (0, 0, [])


def test_each_is_freed_when_it_ends(balancer: Balancer, engine: MakeEngine) -> None:
    one = stubborn(engine, slots=3, service_time=2)
    balancer.put(table(one, limits=LIMITS))
    sockets = [client(balancer, one)]
    one.service_time = 4
    sockets += [client(balancer, one), client(balancer, one)]
    for sock in sockets:
        sock.close()
    wait_for(lambda: ending(balancer) == 3, NOTICED + 0.5)
    wait_for(lambda: ending(balancer) == 2, 3)
    assert one.running == 2
    assert over_in(one) < FREED
    wait_for(lambda: ending(balancer) == 0, 4)
    assert one.running == 0
    assert over_in(one, 2) < FREED


def test_others_that_come_and_go_free_nothing(balancer: Balancer, engine: MakeEngine) -> None:
    """A request on its way to the engine or back is not at work there either: it is not taken for the one that left."""
    one = stubborn(engine, slots=4, service_time=4)
    balancer.put(table(one, limits=LIMITS))
    left(balancer, one)
    one.service_time = 0.05
    end = time.monotonic() + 2

    def ask() -> int:
        number = 0
        while time.monotonic() < end:
            assert balancer.chat().status == 200
            number += 1
        return number

    with ThreadPoolExecutor(3) as pool:
        crowd = [pool.submit(ask) for _ in range(3)]
        while time.monotonic() < end:
            assert ending(balancer) == 1
            time.sleep(0.05)
        assert sum(each.result() for each in crowd) > 20
    assert one.most <= 4
    wait_for(lambda: ending(balancer) == 0, 4)
    assert 0 < over_in(one) < FREED


def test_reload_keeps_it(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=2)
    one = stubborn(engine, slots=2, service_time=4)
    balancer.put(table(one, limits=LIMITS))
    left(balancer, one, 2)
    before = set(balancer.worker_pids())
    balancer.reload()
    wait_for(lambda: not before & set(balancer.worker_pids()), 5, "the old workers are gone")
    peer = balancer.peer("n1")
    assert (peer["busy"], peer["ending"], one.running) == (2, 2, 2)
    one.service_time = 0.05
    assert balancer.chat().status == 200
    assert one.most == 2, "never three on two slots"
    assert 0 < one.inference()[2].started - one.inference()[0].ended < FREED
    wait_for(lambda: balancer.busy() == 0, 2)
    no_errors(balancer)


def test_client_of_an_old_worker_leaves(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    """A reload while the request is at work, then its client leaves, and its worker with it."""
    balancer = own_balancer(workers=1)
    one = stubborn(engine, service_time=4)
    balancer.put(table(one, limits=LIMITS))
    sock = client(balancer, one)
    (old,) = balancer.worker_pids()
    balancer.reload()
    sock.close()
    wait_for(lambda: old not in balancer.worker_pids(), 3, "the old worker is gone")
    assert (ending(balancer), balancer.busy(), one.running) == (1, 1, 1)
    one.service_time = 0
    assert balancer.chat().status == 200
    assert one.most == 1
    no_errors(balancer)


def test_killed_workers_take_none_along(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=2)
    one = stubborn(engine, service_time=4)
    balancer.put(table(one, limits=LIMITS))
    left(balancer, one)
    for pid in balancer.worker_pids():
        os.kill(pid, signal.SIGKILL)
    pool, waits = later(balancer)
    with pool:
        assert waits.result().status == 200
    first, second = one.inference()
    assert one.most == 1
    assert second.started > first.ended
    wait_for(lambda: balancer.busy() == 0, 2)
    (balancer.dir / "error.log").write_text(balancer.errors().replace("[alert]", "[seen]"))  # nginx says who was killed


@pytest.mark.parametrize("reload", [False, True])
def test_it_is_free_when_its_time_is_over(own_balancer: MakeBalancer, engine: MakeEngine, reload: bool) -> None:
    balancer = own_balancer(workers=1)
    one = stubborn(engine, service_time=8)
    balancer.put(table(one, limits={**LIMITS, "ending_timeout": 2}))
    left(balancer, one)
    noticed = time.monotonic()
    if reload:
        balancer.reload()
    one.service_time = 0
    assert balancer.chat().status == 200
    assert one.most == 2, "the engine is still at the first"
    assert 1.3 < one.inference()[1].started - noticed < 2.5
    assert (ending(balancer), balancer.busy()) == (0, 0)


def test_without_a_timeout_it_is_free_at_once(balancer: Balancer, engine: MakeEngine) -> None:
    one = stubborn(engine)
    balancer.put(table(one, limits={**LIMITS, "ending_timeout": 0}))
    client(balancer, one).close()
    wait_for(lambda: balancer.busy() == 0, NOTICED + 0.5)
    assert one.running == 1


def test_ollama_stops_by_itself(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(kind="ollama", service_time=5, peer={"slots": 1})
    balancer.put(table(one, limits=LIMITS))
    client(balancer, one).close()
    wait_for(lambda: balancer.busy() == 0, NOTICED + 0.5)
    wait_for(lambda: one.inference()[0].outcome == "left", 1, "the engine saw it, too")
    assert ending(balancer) == 0


def test_killed_engine_holds_nothing(balancer: Balancer, engine: MakeEngine) -> None:
    one = stubborn(engine, slots=2, service_time=6)
    balancer.put(table(one, limits=LIMITS))
    left(balancer, one, 2)
    one.stop()
    wait_for(lambda: (ending(balancer), balancer.busy()) == (0, 0), FREED, "nothing is at work where nothing runs")


def test_engine_that_does_not_say_keeps_it(balancer: Balancer, engine: MakeEngine, monkeypatch: Any) -> None:
    one = stubborn(engine, service_time=0.7)
    balancer.put(table(one, limits={**LIMITS, "ending_timeout": 3}))
    real = one._get  # its /slots answers 404, as with --no-slots
    monkeypatch.setattr(one, "_get", lambda sock, path, headers: real(sock, path.replace("/slots", "/none"), headers))
    left(balancer, one)
    noticed = time.monotonic()
    wait_for(lambda: balancer.busy() == 0, 5)
    assert 2.3 < time.monotonic() - noticed < 3.5
