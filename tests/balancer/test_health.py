# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a peer is out, for how long, how it comes back, and how much it gets meanwhile."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from balancer import harness
from balancer.engines import Engine, Seen
from balancer.harness import Answer, Balancer, MakeEngine, check_log, wait_for

DEFAULTS = {"probe_interval": 2, "probe_timeout": 1}
STOPPABLE = """
import json, sys, time
from balancer.engines import Engine
engines = [Engine(f"p{i}") for i in range(int(sys.argv[1]))]
print(json.dumps([engine.port for engine in engines]), flush=True)
time.sleep(3600)
"""

Start = Callable[[Any], Any]


@contextlib.contextmanager
def mortal_balancer(workers: int) -> Iterator[Balancer]:
    """One whose workers may be killed."""
    balancer = Balancer(workers=workers)
    try:
        yield balancer
    finally:
        text = re.sub(r".*\[alert\].* exited on signal 9\n", "", balancer.errors())
        balancer.destroy()
    check_log(text)


@pytest.fixture
def start() -> Iterator[Start]:
    """Takes care of engines of a test's own kind."""
    made: list[Engine] = []

    def keep(engine: Any) -> Any:
        made.append(engine)
        return engine

    yield keep
    for each in made:
        each.stop()


class Flaky(Engine):
    """Answers 500 to each so many-th request."""

    every: int = 0

    def _post(self, sock: socket.socket, seen: Seen) -> bool:
        if self.every and len(self.seen) % self.every == 0:
            self._json(sock, {"error": {"message": "boom"}}, seen, status=500)
            return True
        return super()._post(sock, seen)


class Ollama(Engine):
    """With other models on disk and in memory than the table says."""

    has: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()

    def _get(self, sock: socket.socket, path: str, headers: dict[str, str]) -> bool:
        names = {"/api/tags": self.has, "/api/ps": self.loaded}.get(path)
        if names is None or self.health != "ok":
            return super()._get(sock, "/health", headers)
        self._json(sock, {"models": [{"name": name, "model": name} for name in names]})
        return False


class Dripping(Engine):
    """Its answer to a probe never ends: a byte now and then."""

    def _get(self, sock: socket.socket, path: str, headers: dict[str, str]) -> bool:
        if self.health == "ok":
            return super()._get(sock, path, headers)
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                sock.sendall(bytes([byte]))
                time.sleep(0.05)
        return False


def table(*engines: Engine, **fields: Any) -> dict[str, Any]:
    """The tests' requests are all alike: affinity would send them all to one peer."""
    return harness.table(*engines, policy="least_busy", **fields)


def many(balancer: Balancer, count: int, parallel: int = 4, **kwargs: Any) -> list[Answer]:
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(lambda _: balancer.chat(**kwargs), range(count)))


def is_down(balancer: Balancer, name: str) -> Callable[[], bool]:
    return lambda: balancer.peer(name)["health"] == "down"


def is_up(balancer: Balancer, name: str) -> Callable[[], bool]:
    return lambda: balancer.peer(name)["health"] == "up"


def took(condition: Callable[[], Any], seconds: float, what: str) -> float:
    began = time.monotonic()
    wait_for(condition, seconds, what)
    return time.monotonic() - began


def ask_until(balancer: Balancer, condition: Callable[[], Any], seconds: float, **kwargs: Any) -> list[Answer]:
    end = time.monotonic() + seconds
    answers: list[Answer] = []
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s, {len(answers)} answers"
        answers.append(balancer.chat(**kwargs))
    return answers


# From the moment it stops until it is out


@contextlib.contextmanager
def stoppable(count: int) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A process of its own with so many simulated engines."""
    tests = str(pathlib.Path(__file__).resolve().parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPABLE, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": tests},
    )
    try:
        assert process.stdout
        yield process, json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def stopped_table(ports: list[int], good: Engine) -> dict[str, Any]:
    made = table(good, limits=DEFAULTS)
    entry = made["peers"][0]
    made["peers"] += [{**entry, "name": f"p{i}", "node": f"p{i}", "port": port} for i, port in enumerate(ports)]
    return made


def seconds_to_out(balancer: Balancer, names: list[str], most: float) -> list[float]:
    """When each went down by the balancer's own clock, from now on."""
    began = time.time()
    found: dict[str, float] = {}
    end = began + most
    while len(found) < len(names) and time.time() < end:
        for peer in balancer.state()["peers"]:
            if peer["name"] in names and peer["health"] == "down":
                found.setdefault(peer["name"], peer["since"] - began)
        time.sleep(0.05)
    assert len(found) == len(names), f"still in: {set(names) - set(found)}"
    return sorted(found.values())


@pytest.mark.parametrize("kill_prober", [False, True])
def test_a_stopped_process_is_out_within_4_seconds(engine: MakeEngine, kill_prober: bool) -> None:
    """With the default times. The peers' probes are spread, so each is stopped in another moment of its interval."""
    with mortal_balancer(2) as balancer, stoppable(10) as (process, ports):
        balancer.put(stopped_table(ports, engine("good")))
        time.sleep(4)
        process.send_signal(signal.SIGSTOP)
        if kill_prober:
            os.kill(balancer.state()["prober"], signal.SIGKILL)
        times = seconds_to_out(balancer, [f"p{i}" for i in range(10)], 6)
        print("stopped to out:", [f"{seconds:.2f}" for seconds in times])
        assert times[-1] < 4
        assert is_up(balancer, "good")()


def test_a_dead_prober_is_replaced_at_once(engine: MakeEngine) -> None:
    one = engine()
    with mortal_balancer(3) as balancer:
        balancer.put(table(one))
        for _ in range(3):
            old = balancer.state()["prober"]
            os.kill(old, signal.SIGKILL)
            began = time.monotonic()
            while balancer.state()["prober"] in {old, None}:
                time.sleep(0.02)
                assert time.monotonic() - began < 0.6
            probes = one.probes
            time.sleep(0.7)
            assert one.probes > probes + 1, "probes go on"


def test_a_dripping_answer_is_no_answer(balancer: Balancer, start: Start) -> None:
    one = start(Dripping("drip"))
    balancer.put(table(one))
    one.health = "drips"
    assert took(is_down(balancer, "drip"), 3, "out") < 1.2
    assert "within" in balancer.peer("drip")["reason"]
    one.health = "ok"
    wait_for(is_up(balancer, "drip"), 3, "back")


def test_a_peer_that_leaves_the_table_is_forgotten(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = engine("a"), engine("b")
    balancer.put(table(a, b))
    b.stop()
    wait_for(is_down(balancer, "b"), 2, "out")
    balancer.put(table(a))
    time.sleep(0.5)
    b.start()
    balancer.put(table(a, b), ready=False)
    assert took(is_up(balancer, "b"), 2, "known anew") < 0.3
    assert balancer.peer("b")["usable"] == 4, "it is new, it didn't come back"


def counted(balancer: Balancer) -> list[int]:
    """Ejections and returns of peer a."""
    text = balancer.ask("GET", "/metrics", key=None).body.decode()
    lines = [rf'^llm_cluster_{name}_total{{peer="a"}} (\d+)' for name in ("ejections", "returns")]
    found = [re.search(line, text, re.MULTILINE) for line in lines]
    return [int(match[1]) if match else 0 for match in found]


def test_each_change_is_said_once(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, service_time=0.02) for name in "ab"]
    balancer.put(table(*engines))
    before = counted(balancer)
    stop = threading.Event()
    threads = [threading.Thread(target=lambda: [balancer.chat() for _ in iter(stop.is_set, True)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    engines[0].stop()
    wait_for(is_down(balancer, "a"), 2, "out")
    time.sleep(0.3)
    engines[0].start()
    wait_for(is_up(balancer, "a"), 5, "back")
    stop.set()
    for thread in threads:
        thread.join()
    lines = [line for line in balancer.errors().splitlines() if f"peer a@127.0.0.1:{engines[0].port} is " in line]
    assert [line.split(" is ")[1].split(":")[0] for line in lines] == ["up", "down", "up"]
    time.sleep(0.6)  # workers hand over what they counted now and then
    assert [after - then for after, then in zip(counted(balancer), before, strict=True)] == [1, 1]


# Failures of requests


def test_out_after_three_failures_that_succeed_elsewhere(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name) for name in "abc"]
    balancer.put(table(*engines, limits={"hold_down": 1.5}))
    many(balancer, 12)
    engines[0].mode = "error500"
    answers = ask_until(balancer, is_down(balancer, "a"), 3)
    assert {answer.status for answer in answers} == {200}
    failed = len([seen for seen in engines[0].inference() if seen.started]) - 12
    assert failed <= 3
    peer = balancer.peer("a")
    assert peer["reason"].startswith("3 requests failed, the last one: ")
    assert peer["held_down_until"] > time.time()
    engines[0].mode = "ok"
    assert took(is_up(balancer, "a"), 4, "back") > 1


def test_an_engine_that_dies_with_requests_is_not_held_down(balancer: Balancer, engine: MakeEngine) -> None:
    """What it broke off makes it probed at once; the probe is refused, and that is a death like any other."""
    engines = [engine(name, service_time=0.5) for name in "ab"]
    balancer.put(table(*engines, limits={"probe_interval": 60}))
    time.sleep(0.5)  # the worker that probes has seen the table and probed them
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        running = [pool.submit(balancer.chat) for _ in range(6)]
        wait_for(lambda: [each.running for each in engines] == [3, 3], 1)
        engines[0].stop()
        assert took(is_down(balancer, "a"), 1, "out") < 0.2
        assert {each.result().status for each in running} == {200}
    peer = balancer.peer("a")
    assert (peer["reason"], "held_down_until" in peer) == ("connection refused", False)


def test_a_peer_that_fails_fast_draws_no_crowd(balancer: Balancer, engine: MakeEngine) -> None:
    """Its fault shows only when the request succeeded elsewhere, here after half a second."""
    engines = [engine(name, service_time=0.5, peer={"slots": 16}) for name in "abc"]
    balancer.put(table(*engines))
    engines[0].mode, engines[0].service_time = "error500", 0
    assert {answer.status for answer in many(balancer, 30, 30)} == {200}
    assert is_down(balancer, "a")()
    assert len(engines[0].inference()) <= 8


def test_a_stream_that_works_elsewhere_tells_at_its_first_event(balancer: Balancer, engine: MakeEngine) -> None:
    bad = engine("bad", mode="error500", peer={"slots": 16})
    good = engine("good", tokens=8, gap=0.4, peer={"slots": 16})
    balancer.put(table(bad, good))
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        running = [pool.submit(balancer.chat, stream=True) for _ in range(12)]
        wait_for(is_down(balancer, "bad"), 1.5, "out while the streams go on")
        assert {each.result().status for each in running} == {200}


def test_poison_does_not_make_peers_rest(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, mode="error500") for name in "ab"]
    balancer.put(table(*engines, limits={"retry_budget": 1}))
    for _ in range(10):
        assert balancer.chat().status == 500
        assert [balancer.peer(name)["resting"] for name in "ab"] == [False, False]
    assert [balancer.peer(name)["health"] for name in "ab"] == ["up", "up"]


def test_half_of_a_models_peers_stay_whatever_they_answer(balancer: Balancer, engine: MakeEngine) -> None:
    """A shared cause (a model that fails, a poison request) must not empty the cluster."""
    engines = [engine(name) for name in "abcd"]
    balancer.put(table(*engines, limits={"retry_budget": 1, "hold_down": 30}))
    for each in engines[:2]:
        each.mode = "error500"
        answers = ask_until(balancer, is_down(balancer, each.name), 4)
        assert {answer.status for answer in answers} == {200}
    engines[2].mode = "error500"
    before = len(engines[2].inference())
    assert {answer.status for answer in many(balancer, 20, 1)} == {200}
    assert len(engines[2].inference()) - before >= 6
    assert [balancer.peer(name)["health"] for name in "abcd"] == ["down", "down", "up", "up"]


def test_the_last_one_stays(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(mode="garbage")
    balancer.put(table(one, limits={"queue_timeout": 0.5}))
    many(balancer, 5, 1)
    assert is_up(balancer, "n1")()


def test_every_second_request_fails(balancer: Balancer, start: Start, engine: MakeEngine) -> None:
    """Success in between doesn't save it."""
    bad, good = start(Flaky("bad")), engine("good")
    bad.every = 2
    balancer.put(table(bad, good))
    ask_until(balancer, is_down(balancer, "bad"), 4)
    assert len(bad.inference()) < 12


def test_one_failure_in_forty_is_no_reason(balancer: Balancer, start: Start, engine: MakeEngine) -> None:
    bad, good = start(Flaky("bad")), engine("good")
    bad.every = 40
    balancer.put(table(bad, good))
    assert {answer.status for answer in many(balancer, 400)} == {200}
    assert len(bad.inference()) >= 150
    assert is_up(balancer, "bad")()


def test_garbage_counts_without_success_elsewhere(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, mode="garbage") for name in "ab"]
    balancer.put(table(*engines))
    ask_until(balancer, lambda: "down" in [balancer.peer(name)["health"] for name in "ab"], 3)
    time.sleep(0.2)
    many(balancer, 4)
    assert sorted(balancer.peer(name)["health"] for name in "ab") == ["down", "up"]


def test_busy_is_never_out(balancer: Balancer, engine: MakeEngine) -> None:
    busy, good = engine("busy", mode="busy503"), engine("good")
    balancer.put(table(busy, good, limits={"busy_rest": 0.3}))
    many(balancer, 20)
    peer = balancer.peer("busy")
    assert (peer["health"], peer["resting"]) == ("up", True)
    asked = len(busy.inference())
    assert asked <= 4
    busy.mode = "ok"
    time.sleep(0.5)
    many(balancer, 8)
    assert len(busy.inference()) > asked


# Coming back


def test_hold_down_doubles_to_its_maximum(balancer: Balancer, engine: MakeEngine) -> None:
    one, other = engine("one"), engine("other")
    balancer.put(table(one, other, limits={"hold_down": 0.5, "hold_down_max": 1.5, "probe_interval": 0.1}))
    times = []
    for _ in range(4):
        one.stop()
        wait_for(is_down(balancer, "one"), 2, "out")
        one.start()
        times.append(took(is_up(balancer, "one"), 5, "back"))
    print("out for:", [f"{seconds:.2f}" for seconds in times])
    assert times[0] < 0.5 < times[1] < 1 < times[2] < 1.5 < times[3] < 2


def test_a_flapping_peer_changes_once_per_hold_down(balancer: Balancer, engine: MakeEngine) -> None:
    one, other = engine("one"), engine("other")
    balancer.put(table(one, other, limits={"hold_down": 1, "probe_interval": 0.1, "probe_timeout": 0.1}))
    states, held, end = ["up"], 0, time.monotonic() + 8
    while time.monotonic() < end:
        one.health = "ok" if int(time.monotonic() / 0.4) % 2 else "loading"
        peer = balancer.peer("one")
        if peer["health"] != states[-1]:
            states.append(peer["health"])
            held += "held_down_until" in peer
        time.sleep(0.02)
    # Out at once and back; then 1, 2 and 4 s out.
    assert 2 <= held <= 4
    assert states.count("up") <= held + 2


def test_slots_open_one_after_the_other(balancer: Balancer, engine: MakeEngine) -> None:
    one, other = engine("one", service_time=0.3), engine("other", service_time=0.3)
    balancer.put(table(one, other, limits={"return_time": 2}))
    assert balancer.peer("one")["usable"] == 4
    one.stop()
    wait_for(is_down(balancer, "one"), 2, "out")
    one.start()
    wait_for(is_up(balancer, "one"), 4, "back")
    one.most = 0
    many(balancer, 8, 8)
    assert one.most <= 2
    usable = []
    for _ in range(20):
        time.sleep(0.1)
        usable.append(balancer.peer("one")["usable"])
    assert usable == sorted(usable)
    assert usable[-1] == 4
    many(balancer, 12, 12)
    assert one.most == 4


def test_after_an_outage_of_all_nobody_waits_for_slots(balancer: Balancer, engine: MakeEngine) -> None:
    """Held back slots protect requests that others could take; here are no others."""
    engines = [engine(name) for name in "ab"]
    balancer.put(table(*engines))
    for each in engines:
        each.stop()
    wait_for(lambda: is_down(balancer, "a")() and is_down(balancer, "b")(), 2, "out")
    for each in engines:
        each.start()
    balancer.wait_up(["a", "b"])
    assert [balancer.peer(name)["usable"] for name in "ab"] == [4, 4]


def test_a_planned_restart_comes_back_whole(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine("one")
    balancer.put(table(one, engine("other")))
    balancer.admin("POST", "/peers/one/drain", {"owner": "t"})
    one.stop()
    wait_for(is_down(balancer, "one"), 2, "out")
    one.start()
    wait_for(is_up(balancer, "one"), 3, "back")
    balancer.admin("POST", "/peers/one/resume", {"owner": "t"})
    assert balancer.peer("one")["usable"] == 4


# Which models it has


def test_a_model_that_a_node_lacks_is_not_asked_there(balancer: Balancer, start: Start) -> None:
    full, half = start(Ollama("full", "ollama")), start(Ollama("half", "ollama"))
    full.has = full.loaded = ("m:latest", "n:latest")
    half.has = half.loaded = ("n:latest",)
    for each in (full, half):
        each.peer = {"models": ["m", "n"]}
    balancer.put(table(full, half))
    wait_for(lambda: balancer.peer("half").get("lacks") == ["m"], 2, "known")
    assert {answer.json["from"] for answer in many(balancer, 8)} == {"full"}
    assert {answer.json["from"] for answer in many(balancer, 8, model="n")} == {"full", "half"}
    half.has = half.loaded = ("m:latest", "n:latest")
    wait_for(lambda: not balancer.peer("half").get("lacks"), 2, "it has it now")
    assert {answer.json["from"] for answer in many(balancer, 8)} == {"full", "half"}


def test_a_loaded_model_goes_first(balancer: Balancer, start: Start) -> None:
    warm, cold = start(Ollama("warm", "ollama")), start(Ollama("cold", "ollama"))
    warm.has = warm.loaded = cold.has = ("m:latest",)
    balancer.put(table(warm, cold))
    time.sleep(0.5)
    assert {answer.json["from"] for answer in many(balancer, 8, 2)} == {"warm"}
    warm.stop()
    assert {answer.json["from"] for answer in many(balancer, 4, 2)} == {"cold"}


def test_an_ollama_that_answers_nonsense_is_out(balancer: Balancer, start: Start) -> None:
    one = start(Ollama("one", "ollama"))
    one.has = one.loaded = ("m",)
    balancer.put(table(one))
    one.health = "other"  # its lists are answered with another object
    wait_for(is_down(balancer, "one"), 2, "out")


# The canary


def test_canary_finds_an_engine_that_lives_but_generates_nothing(balancer: Balancer, engine: MakeEngine) -> None:
    one, other = engine("one"), engine("other")
    limits = {"canary_interval": 0.3, "canary_timeout": 0.5}
    balancer.put(table(one, other, limits=limits))
    wait_for(lambda: len(one.inference()) >= 2, 3, "canaries come")
    asked = json.loads(one.inference()[0].body)
    assert (asked["model"], asked["max_tokens"]) == ("m", 1)
    one.mode = "error500"
    wait_for(is_down(balancer, "one"), 3, "out")
    assert balancer.peer("one")["reason"] == "canary: m answered 500"
    time.sleep(1)
    assert is_down(balancer, "one")(), "answered probes alone don't bring it back"
    one.mode = "ok"
    wait_for(is_up(balancer, "one"), 4, "back")
    other.mode = "silent"
    wait_for(is_down(balancer, "other"), 4, "out")
    assert "no token within" in balancer.peer("other")["reason"]
    other.mode = "ok"
    balancer.put(table(one, other))


def test_canary_takes_a_slot_or_waits(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine("one", service_time=1.5, peer={"slots": 1})
    balancer.put(table(one))
    busy = threading.Thread(target=balancer.chat)
    busy.start()
    wait_for(lambda: one.running == 1, 2)
    balancer.put(table(one, limits={"canary_interval": 0.2}))
    busy.join()
    assert one.most == 1
    balancer.put(table(one))
    assert is_up(balancer, "one")()


def test_no_canary_on_a_drained_node(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine("one", mode="error500")
    balancer.put(table(one, engine("other"), limits={"canary_interval": 0.2}))
    wait_for(is_down(balancer, "one"), 3, "out")
    balancer.admin("POST", "/peers/one/drain", {"owner": "t"})
    time.sleep(0.3)
    asked = len(one.inference())
    wait_for(is_up(balancer, "one"), 3, "whoever drained it tries it out")
    time.sleep(0.7)
    assert len(one.inference()) == asked
    balancer.put(table(one))
    balancer.admin("POST", "/peers/one/resume", {"owner": "t"})


def test_canary_of_a_model_that_cannot_chat_is_fine(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine("one", mode="not501")
    balancer.put(table(one, limits={"canary_interval": 0.2}))
    wait_for(lambda: len(one.inference()) >= 3, 3, "canaries come")
    assert is_up(balancer, "one")()
    balancer.put(table(one))


# Speed


def test_a_slow_peer_gets_less_and_stays_in(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, service_time=0.1) for name in "abcd"]
    engines[0].service_time = 0.6
    balancer.put(table(*engines))
    end = time.monotonic() + 10
    while balancer.peer("a")["slow"] == 0 and time.monotonic() < end:
        many(balancer, 16, 16, stream=True)
    peer = balancer.peer("a")
    assert 0.3 < peer["slow"] < 0.7
    assert (peer["health"], peer["usable"]) == ("up", 4)
    assert all(balancer.peer(name)["slow"] == 0 for name in "bcd")
    time.sleep(1)  # what /cluster/state shows may be that old
    nodes = {node["name"]: node["peers"][0] for node in balancer.ask("GET", "/cluster/state", key=None).json["nodes"]}
    assert [nodes[name]["state"] for name in "abcd"] == ["slow", "up", "up", "up"]
    assert "asked only once a request has waited as long as it would lose there, 0." in nodes["a"]["reason"]
    metrics = balancer.ask("GET", "/metrics", key=None).body.decode()
    assert re.findall(r'^llm_cluster_peer_slow\{peer="(.)"\} (\d)$', metrics, re.MULTILINE) == [
        *zip("abcd", "1000", strict=True)
    ]
    before = len(engines[0].inference())
    answers = many(balancer, 60, 6, stream=True)
    assert {answer.status for answer in answers} == {200}
    assert len(engines[0].inference()) - before <= 1, "the others have free slots"


def test_whole_answers_tell_the_speed_too(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, service_time=0.1) for name in "abc"]
    engines[0].service_time = 0.6
    balancer.put(table(*engines))
    end = time.monotonic() + 10
    while balancer.peer("a")["slow"] == 0 and time.monotonic() < end:
        many(balancer, 12, 12)
    assert balancer.peer("a")["slow"] > 0.3


def may_open(worker: int, files: int) -> None:
    """Bound the files of a process, as its own user may."""
    owner = pathlib.Path(f"/proc/{worker}").stat()
    who = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups"]
    subprocess.run([*who, "prlimit", f"--pid={worker}", f"--nofile={files}:"], check=True)


def test_a_worker_that_has_no_files_left_blames_no_peer(engine: MakeEngine) -> None:
    one, other = engine("n1"), engine("n2")
    with contextlib.ExitStack() as stack:
        balancer = Balancer(workers=1)
        stack.callback(balancer.destroy)
        balancer.put(harness.table(one, other, limits={"queue_timeout": 5}))
        (worker,) = balancer.worker_pids()
        client = balancer.connection()
        stack.callback(client.close)
        client.connect()
        wait_for(balancer.answers)
        may_open(worker, 3)  # it has more already: no new one
        began = time.monotonic()
        again = threading.Timer(1, may_open, (worker, 512))
        again.start()
        body = json.dumps({"model": "m"})
        client.request("POST", "/v1/chat/completions", body, {"Authorization": "Bearer " + harness.KEY})
        assert client.getresponse().status == 200
        again.join()
        assert time.monotonic() - began >= 0.9, "there were files left"
        assert {peer["health"] for peer in balancer.state()["peers"]} == {"up"}
