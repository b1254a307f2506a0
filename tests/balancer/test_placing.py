# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which peer takes a request, and what happens when it fails."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import threading
import time
from typing import Any

import pytest
from balancer.engines import Engine
from balancer.harness import KEY, Answer, Balancer, MakeBalancer, MakeEngine, table, wait_for


def many(balancer, count: int, parallel: int, **kwargs) -> list[Answer]:
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda _: balancer.chat(**kwargs), range(count)))


def by_peer(answers: list[Answer]) -> collections.Counter:
    assert {answer.status for answer in answers} == {200}, [answer.body for answer in answers if answer.status != 200][
        :3
    ]
    return collections.Counter(answer.json["from"] for answer in answers)


def sessions(balancer: Balancer, *names: str) -> list[dict[str, str]]:
    """For each of these peers headers that lead to it."""
    found: dict[str, dict[str, str]] = {}
    for i in range(40):
        headers = {"X-LLM-Session": f"{time.monotonic()} {i}"}
        found[balancer.chat(headers=headers).json["from"]] = headers
        if set(names) <= set(found):
            return [found[name] for name in names]
    raise AssertionError(f"requests went only to {set(found)}")


# Slots and weights


def test_slots_are_never_overcommitted_and_all_used(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, service_time=0.1, peer={"slots": slots}) for name, slots in (("a", 4), ("b", 2), ("c", 1))]
    balancer.put(table(*engines))
    counts = by_peer(many(balancer, 70, 20))
    assert [each.most for each in engines] == [4, 2, 1]
    assert counts["a"] > counts["b"] > counts["c"]
    assert abs(counts["a"] - 40) <= 8


def test_idle_peers_take_turns_by_weight(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = engine("a", peer={"weight": 3.0}), engine("b")
    balancer.put(table(a, b))
    counts = by_peer([balancer.chat() for _ in range(40)])
    assert 26 <= counts["a"] <= 34


def test_backup_serves_only_when_all_others_are_out(balancer: Balancer, engine: MakeEngine) -> None:
    main, spare = engine("main", service_time=0.1, peer={"slots": 1}), engine("spare", peer={"backup": True})
    balancer.put(table(main, spare))
    assert by_peer(many(balancer, 10, 5)) == {"main": 10}, "busy is not out"
    main.stop()
    assert by_peer(many(balancer, 5, 5)) == {"spare": 5}
    main.start()
    balancer.wait_up(["main"])
    balancer.admin("POST", "/peers/main/drain", {"owner": "t"})
    assert by_peer(many(balancer, 5, 5)) == {"spare": 5}
    balancer.admin("POST", "/peers/main/resume", {"owner": "t"})
    assert by_peer(many(balancer, 5, 5)) == {"main": 5}


def test_waits_for_a_slot_then_503(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(service_time=2, peer={"slots": 1})
    balancer.put(table(one, limits={"queue_timeout": 0.5}))
    first = threading.Thread(target=balancer.chat)
    first.start()
    wait_for(lambda: one.running == 1)
    started = time.monotonic()
    answer = balancer.chat()
    waited = time.monotonic() - started
    assert (answer.status, answer.code) == (503, "queue_timeout")
    assert int(answer.headers["retry-after"]) >= 1
    assert 0.4 < waited < 0.8
    first.join()
    assert balancer.chat().status == 200


def test_busy_model_does_not_block_another(balancer: Balancer, engine: MakeEngine) -> None:
    slow, other = engine("slow", models=["m"], service_time=0.4, peer={"slots": 1}), engine("other", models=["n"])
    balancer.put(table(slow, other))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(balancer.chat) for _ in range(3)]
        wait_for(lambda: slow.running == 1)
        started = time.monotonic()
        assert balancer.chat(model="n").status == 200
        assert time.monotonic() - started < 0.3
        assert [each.result().status for each in waiting] == [200, 200, 200]


def test_slotless_routes_answer_while_all_slots_are_taken(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(kind="ollama", service_time=1, peer={"slots": 1})
    balancer.put(table(one))
    first = threading.Thread(target=balancer.chat)
    first.start()
    wait_for(lambda: one.running == 1)
    one.service_time = 0
    started = time.monotonic()
    assert balancer.ask(path="/api/show", body={"name": "m"}).status == 200
    assert time.monotonic() - started < 0.5
    first.join()


def test_slotless_requests_that_had_to_wait_leave_no_slot_in_use(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(kind="ollama", peer={"slots": 2})
    balancer.put(table(one))
    one.stop()
    balancer.chat()
    wait_for(lambda: balancer.peer("n1")["health"] == "down")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        shown = [pool.submit(balancer.ask, path="/api/show", body={"name": "m"}) for _ in range(3)]
        wait_for(lambda: balancer.state()["queue"]["waiting"] == 3)
        one.start()
        assert [each.result().status for each in shown] == [200, 200, 200]
    assert balancer.busy() == 0
    assert [answer.status for answer in many(balancer, 4, 2)] == [200] * 4


# Failing over


@pytest.mark.parametrize(
    "mode", ["die", "die_in_head", "die_in_body", "garbage", "two_lengths", "endless_head", "endless_comments"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_failure_before_anything_was_sent_goes_elsewhere(
    balancer: Balancer, engine: MakeEngine, mode: str, stream: Any
) -> None:
    bad, good = engine("bad", mode=mode), engine("good")
    balancer.put(table(bad, good))
    started = time.monotonic()
    answers = many(balancer, 12, 4, stream=stream)
    assert time.monotonic() - started < 3
    assert {answer.status for answer in answers} == {200}
    assert {answer.headers["x-llm-peer"] for answer in answers} == {"good"}
    assert len(bad.inference()) >= 1
    assert len(bad.inference()) + len(good.inference()) <= 24 + 2


@pytest.mark.parametrize("mode", ["die", "garbage", "die_in_body"])
def test_at_most_two_peers_hold_a_failing_request(balancer: Balancer, engine: MakeEngine, mode: str) -> None:
    engines = [engine(name, mode=mode) for name in "abcd"]
    balancer.put(table(*engines))
    answer = balancer.chat(headers={"X-Request-Id": f"poison-{mode}"})
    assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (502, "all_tries_failed", "false")
    assert sorted(len(each.inference()) for each in engines) == [0, 0, 1, 1]
    assert balancer.logged(f"poison-{mode}")["attempts"] == 2
    assert all(peer["health"] == "up" for peer in balancer.state()["peers"])


def test_poison_500_passes_through_and_ejects_nobody(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, mode="error500") for name in "abc"]
    balancer.put(table(*engines))
    for _ in range(10):
        answer = balancer.chat()
        assert answer.status == 500
        assert b"boom" in answer.body
        assert answer.headers["x-should-retry"] == "false"
    assert sum(len(each.inference()) for each in engines) == 20
    assert all(peer["health"] == "up" for peer in balancer.state()["peers"])


def test_500_of_one_peer_is_answered_by_another(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine("bad", mode="error500"), engine("good")))
    assert by_peer(many(balancer, 20, 4)) == {"good": 20}


def test_500_of_the_only_peer_passes_through_at_once(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(mode="error500")
    balancer.put(table(one))
    started = time.monotonic()
    assert balancer.chat().status == 500
    assert time.monotonic() - started < 0.3
    assert len(one.inference()) == 1


@pytest.mark.parametrize("mode", ["busy503", "busy429"])
def test_busy_is_not_broken(balancer: Balancer, engine: MakeEngine, mode: str) -> None:
    busy, good = engine("busy", mode=mode), engine("good")
    balancer.put(table(busy, good))
    assert by_peer(many(balancer, 20, 4)) == {"good": 20}
    assert len(busy.inference()) <= 8, "it rests meanwhile"
    assert balancer.peer("busy")["health"] == "up"
    busy.mode = "ok"
    time.sleep(0.6)
    assert by_peer(many(balancer, 20, 4))["busy"] >= 5


def test_only_peer_is_busy_for_a_moment(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(mode="busy503")
    balancer.put(table(one))
    threading.Timer(0.6, lambda: setattr(one, "mode", "ok")).start()
    assert balancer.chat().status == 200


def test_reused_connection_that_fails_is_no_failure(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    many(balancer, 8, 4)
    for sock in list(one.sockets):
        one._reset(sock)
    assert {answer.status for answer in many(balancer, 16, 4)} == {200}
    assert {line["attempts"] for line in balancer.log()[-16:]} == {1}


def test_engine_that_closes_instead_of_answering_again(balancer: Balancer, engine: MakeEngine) -> None:
    """The race that keep-alive has: the request is on its way when the peer closes."""
    one = engine(drop_reused=True)
    balancer.put(table(one))
    answers = [balancer.chat(headers={"X-Request-Id": f"again-{i}"}) for i in range(10)]
    assert {answer.status for answer in answers} == {200}
    assert {balancer.logged(f"again-{i}")["attempts"] for i in range(10)} == {1}


def test_out_at_the_first_refused_connection(balancer: Balancer, engine: MakeEngine) -> None:
    gone, good = engine("gone"), engine("good")
    balancer.put(table(gone, good, limits={"probe_interval": 60}))
    gone.stop()
    assert by_peer([balancer.chat() for _ in range(4)]) == {"good": 4}
    assert balancer.peer("gone")["state"] == "down"
    assert balancer.peer("gone")["reason"] == "connection refused"


def test_stopped_peer_does_not_hold_a_large_body(balancer: Balancer, engine: MakeEngine) -> None:
    """It accepts connections and reads nothing: sending blocks."""
    hung, good = engine("hung"), engine("good")
    balancer.put(table(hung, good, limits={"max_body_bytes": 64 << 20}))
    hung.deaf = True
    body = b'{"model":"m","a":"' + b"x" * 4000000 + b'"}'
    started = time.monotonic()
    assert {balancer.ask(body=body).json["from"] for _ in range(4)} == {"good"}
    assert time.monotonic() - started < 3
    assert balancer.peer("hung")["state"] == "down"


def test_ejection_while_drained_is_no_flapping(balancer: Balancer, engine: MakeEngine) -> None:
    """Planned restarts happen under a drain mark."""
    one = engine()
    balancer.put(table(one))
    balancer.admin("POST", "/peers/n1/drain", {"owner": "sync 1"})
    for _ in range(3):
        one.stop()
        wait_for(lambda: balancer.peer("n1")["health"] == "down", 2, "out")
        one.start()
        balancer.wait_up(["n1"])
        assert "held_down_until" not in balancer.peer("n1")
    balancer.admin("POST", "/peers/n1/resume", {"owner": "sync 1"})


def test_engine_that_closes_after_each_answer(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(keep_alive=False)
    balancer.put(table(one))
    assert {answer.status for answer in many(balancer, 40, 4)} == {200}


def test_killed_engine_under_load_costs_no_request(balancer: Balancer, engine: MakeEngine) -> None:
    """Also those in its hands: nothing was sent to their clients yet."""
    engines = [engine(name, service_time=0.02) for name in "abc"]
    balancer.put(table(*engines))
    stop, answers, lock = threading.Event(), [], threading.Lock()

    def client() -> None:
        while not stop.is_set():
            answer = balancer.chat()
            with lock:
                answers.append(answer)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        time.sleep(0.4)
        engines[0].stop()
        wait_for(lambda: balancer.peer("a")["state"] == "down", 1, "out at the first refused connection")
        time.sleep(0.4)
        engines[0].start()
        time.sleep(0.4)
    stop.set()
    for thread in threads:
        thread.join()
    assert len(answers) > 300
    assert {answer.status for answer in answers} == {200}


def test_silent_peer_is_504(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(mode="silent")
    balancer.put(table(one, limits={"first_byte_timeout": 0.5}))
    answer = balancer.chat()
    assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (504, "first_byte_timeout", "false")
    assert one.running == 0 or wait_for(lambda: one.running == 0, 1)


def test_hung_peer_is_ejected_and_its_waiting_requests_move(balancer: Balancer, engine: MakeEngine) -> None:
    hung, good = engine("hung"), engine("good")
    balancer.put(table(hung, good, limits={"first_byte_timeout": 30}))
    hung.mode, hung.health = "silent", "silent"
    started = time.monotonic()
    assert by_peer(many(balancer, 8, 8)) == {"good": 8}
    assert time.monotonic() - started < 2.5  # interval 0.3 + two probes of 0.3 + a look
    assert len(hung.inference()) >= 1
    assert balancer.peer("hung")["state"] == "down"


def test_a_request_dies_with_two_peers_at_most_whoever_sees_it_first(balancer: Balancer, engine: MakeEngine) -> None:
    """A dead peer's connections break, but here a probe sees first that it is dead."""
    engines = [engine(name, mode="silent") for name in ("one", "two", "three")]
    balancer.put(table(*engines, limits={"first_byte_timeout": 30}))

    def has_it() -> list[Engine]:
        return [each for each in engines if each.listener and each.inference()]

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        poison = pool.submit(balancer.chat)
        for _ in range(2):
            wait_for(has_it, 3, "it was sent")[0].stop_listening()
        answer = poison.result(10)
    assert (answer.status, answer.code) == (502, "all_tries_failed")
    assert sorted(len(each.inference()) for each in engines) == [0, 1, 1]


def test_a_peer_that_was_dead_already_is_not_the_second_that_a_request_fails_at(
    own_balancer: MakeBalancer, engine: MakeEngine
) -> None:
    """The pool's connection to it still looks well: the request would go out on it and break off."""
    balancer = own_balancer(workers=1)
    first, dead, spare = engine("first"), engine("dead", drop_reused=True), engine("spare", peer={"backup": True})
    limits = {"probe_interval": 60}
    balancer.put(table(first, spare, limits=limits))
    (to_first,) = sessions(balancer, "first")
    balancer.put(table(first, dead, spare, limits=limits))
    sessions(balancer, "dead")  # one request: its connection is in the pool
    first.mode = "die"
    dead.stop_listening()
    assert balancer.chat(headers=to_first).json["from"] == "spare"


def test_who_was_at_a_peer_that_died_does_not_go_to_another_that_may_be_dying(
    balancer: Balancer, engine: MakeEngine
) -> None:
    """That one has just broken off with another request, and nobody knows yet whether it lives."""
    one, two = engine("one"), engine("two")
    balancer.put(table(one, two))
    to_one, to_two = sessions(balancer, "one", "two")
    two.mode = "die"
    assert balancer.chat(headers=to_two).json["from"] == "one"
    one.mode, two.mode = "die", "ok"
    started = time.monotonic()
    assert balancer.chat(headers=to_one).json["from"] == "two"
    assert 0.5 < time.monotonic() - started < 1.5


# Probes


def test_new_peers_serve_at_once(balancer: Balancer, engine: MakeEngine) -> None:
    for i in range(5):
        started = time.monotonic()
        balancer.put(table(engine(f"new{i}")))
        assert balancer.chat().status == 200
        assert time.monotonic() - started < 0.12


def test_ipv6_peer(balancer: Balancer, engine: MakeEngine) -> None:
    try:
        six = engine("six", address="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    balancer.put(table(six))
    assert balancer.chat().json["from"] == "six"


def test_probes_eject_and_bring_back(balancer: Balancer, engine: MakeEngine) -> None:
    one, two = engine("one"), engine("two")
    balancer.put(table(one, two))
    one.health = "loading"
    wait_for(lambda: balancer.peer("one")["state"] == "down", 2, "ejected")
    assert balancer.peer("one")["reason"] == "probe answered 503"
    assert by_peer(many(balancer, 6, 3)) == {"two": 6}
    one.health = "ok"
    wait_for(lambda: balancer.peer("one")["state"] == "up", 2, "back")


def test_flapping_is_held_down_longer(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    times = []
    for _ in range(2):
        one.stop()
        wait_for(lambda: balancer.peer("n1")["state"] == "down", 2, "out")
        one.start()
        started = time.monotonic()
        wait_for(lambda: balancer.peer("n1")["state"] == "up", 8, "back")
        times.append(time.monotonic() - started)
    assert times[0] < 1.5
    assert times[1] > 2.5


def test_one_worker_probes(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    time.sleep(0.2)
    before = one.probes
    time.sleep(1.5)
    assert 4 <= one.probes - before <= 6


def test_all_out_waits_then_503_and_recovers(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one, limits={"queue_timeout": 0.6}))
    one.stop()
    answer = balancer.chat()
    assert (answer.status, answer.code) == (503, "no_node_available")
    assert "retry-after" in answer.headers
    balancer.put(table(one, limits={"queue_timeout": 5}), ready=False)
    threading.Timer(0.5, one.start).start()
    assert balancer.chat().status == 200


def test_access_log_counts_attempts(balancer: Balancer, engine: MakeEngine) -> None:
    bad, good = engine("bad", mode="die"), engine("good")
    balancer.put(table(bad, good))
    for i in range(4):
        balancer.chat(headers={"X-Request-Id": f"attempt-{i}"})
    lines = [balancer.logged(f"attempt-{i}") for i in range(4)]
    assert 2 in {line["attempts"] for line in lines}
    assert {line["peer"] for line in lines} == {"good"}


def test_openai_stream_with_key_in_flight(balancer: Balancer, engine: MakeEngine) -> None:
    """Parallel streams do not mix."""
    engines = [engine(name, gap=0.01, tokens=20) for name in "ab"]
    balancer.put(table(*engines))

    def stream(_):
        connection = balancer.connection()
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps({"model": "m", "stream": True}),
            {"Authorization": "Bearer " + KEY},
        )
        response = connection.getresponse()
        name, body = response.headers["X-LLM-Peer"], response.read()
        connection.close()
        return name, body

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for name, body in pool.map(stream, range(24)):
            assert body == b"".join(engines["ab".index(name)].events("/v1/chat/completions"))
