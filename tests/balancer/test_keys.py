# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a key may do, and that slow clients stop nobody."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import re
import signal
import socket
import threading
import time
from typing import Any

import pytest
from balancer.harness import KEY, Balancer, MakeBalancer, MakeEngine, hashed, table, wait_for

LIMIT_HEADERS = ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests")


def key(name: str = "tester", text: str = KEY, **limits: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashed(text), **limits}


def usage(balancer: Balancer, name: str) -> dict[str, Any]:
    return next(each for each in balancer.state()["keys"] if each["name"] == name)


# Requests per minute


def test_requests_per_minute_hold_over_all_workers(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=4)
    balancer.put(table(engine(peer={"slots": 50}), keys=[key(requests_per_minute=30), key("other", "other")]))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: balancer.chat(), range(100)))
    assert sorted(answer.status for answer in answers) == [200] * 30 + [429] * 70
    good = [answer for answer in answers if answer.status == 200]
    assert {answer.headers[LIMIT_HEADERS[0]] for answer in answers} == {"30"}
    assert min(int(answer.headers[LIMIT_HEADERS[1]]) for answer in good) == 0
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.code == "rate_limit_exceeded"
    assert refused.json["error"]["type"] == "rate_limit_error"
    assert "key 'tester' is 30 requests per minute" in refused.json["error"]["message"]
    assert refused.headers[LIMIT_HEADERS[1]] == "0"
    assert 50 <= int(refused.headers["retry-after"]) <= 61
    assert re.fullmatch(r"1m\d+s|5\ds", refused.headers[LIMIT_HEADERS[2]])
    assert usage(balancer, "tester")["requests"] == 30
    other = balancer.chat(key="other")
    assert other.status == 200, "the other key's requests are its own"
    assert not set(LIMIT_HEADERS) & set(other.headers)


def test_a_limited_keys_errors_carry_the_headers_too(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine(), keys=[key("r1", requests_per_minute=100)]))
    for answer in (
        balancer.chat(model="unknown"),
        balancer.ask(body=b"{"),
        balancer.ask(path="/v1/messages", body={"model": "m"}),
        balancer.chat(stream=True),
    ):
        assert answer.headers[LIMIT_HEADERS[0]] == "100", answer


def test_limits_change_without_reload(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one, keys=[key("r2", requests_per_minute=1)]))
    assert [balancer.chat().status for _ in range(3)] == [200, 429, 429]
    balancer.put(table(one, keys=[key("r2", requests_per_minute=3)]))
    assert [balancer.chat().status for _ in range(3)] == [200, 200, 429]
    balancer.put(table(one, keys=[key("r2")]))
    assert balancer.chat().status == 200


def test_counts_survive_a_reload(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=2)
    balancer.put(table(engine(), keys=[key(requests_per_minute=2)]))
    assert [balancer.chat().status for _ in range(3)] == [200, 200, 429]
    balancer.reload()
    assert balancer.chat().status == 429


# Requests at a time


def test_requests_at_a_time(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(service_time=0.6)
    balancer.put(table(one, keys=[key("c1", concurrent=2), key("c2", "other")]))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        held = [pool.submit(balancer.chat) for _ in range(2)]
        wait_for(lambda: one.running == 2)
        refused = balancer.chat()
        assert refused.status == 429
        assert refused.code == "rate_limit_exceeded"
        assert "2 requests at a time" in refused.json["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-ratelimit-limit-concurrent"] == "2"
        assert refused.headers["x-ratelimit-remaining-concurrent"] == "0"
        assert usage(balancer, "c1")["at_work"] == 2
        assert pool.submit(balancer.chat, key="other").result().status == 200
        assert [answer.result().status for answer in held] == [200, 200]
    wait_for(lambda: usage(balancer, "c1")["at_work"] == 0, 1, "places are free")
    assert balancer.chat().status == 200


def test_waiting_requests_count(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(service_time=0.5, peer={"slots": 1})
    balancer.put(table(one, keys=[key("c3", concurrent=2)]))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        held = [pool.submit(balancer.chat) for _ in range(2)]
        wait_for(lambda: usage(balancer, "c3")["at_work"] == 2)
        assert balancer.chat().status == 429
        assert [answer.result().status for answer in held] == [200, 200]


ENDINGS = {
    "answered": b'{"model":"m"}',
    "refused": b'{"model":"none"}',
    "malformed": b"{",
}


@pytest.mark.parametrize("body", ENDINGS.values(), ids=ENDINGS)
def test_every_end_gives_the_place_back(balancer: Balancer, engine: MakeEngine, body: bytes) -> None:
    balancer.put(table(engine(), keys=[key("c4", concurrent=1)]))
    for _ in range(3):
        balancer.ask(body=body)
        wait_for(lambda: usage(balancer, "c4")["at_work"] == 0, 1, "the place is free")


@pytest.mark.parametrize(
    "rest",
    [
        b"zz\r\n",  # no chunk
        b"5\r\n{\r\n\r\n",  # breaks off
        b"500000\r\n" + b"a" * 0x500000 + b"\r\n0\r\n\r\n",  # too large: nginx answers itself
    ],
    ids=["bad chunk", "left", "too large"],
)
def test_a_body_that_fails_gives_the_place_back(balancer: Balancer, engine: MakeEngine, rest: bytes) -> None:
    balancer.put(table(engine(), keys=[key("c5", concurrent=1)]))
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", balancer.port), 5) as client, contextlib.suppress(OSError):
            client.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + rest
            )
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
        wait_for(lambda: usage(balancer, "c5")["at_work"] == 0, 1, "the place is free")
        assert balancer.chat().status == 200


def test_a_client_that_leaves_gives_the_place_back(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(service_time=5)
    balancer.put(table(one, keys=[key("c6", concurrent=1)], limits={"ending_timeout": 0}))
    body = b'{"model":"m"}'
    with socket.create_connection(("127.0.0.1", balancer.port), 5) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        wait_for(lambda: one.running == 1)
    wait_for(lambda: usage(balancer, "c6")["at_work"] == 0, 1.5, "the place is free")


def test_a_killed_worker_gives_its_places_back(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=2)
    one = engine(service_time=5)
    balancer.put(table(one, keys=[key(concurrent=3)]))
    threads = [threading.Thread(target=ignore, args=(balancer,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: usage(balancer, "tester")["at_work"] == 3)
    for pid in balancer.worker_pids():
        os.kill(pid, signal.SIGKILL)
    one.service_time = 0
    wait_for(lambda: balancer.answers() and usage(balancer, "tester")["at_work"] == 0, 3, "the places are free")
    for thread in threads:
        thread.join()
    wait_for(lambda: balancer.chat().status == 200, 5, "requests are let in")
    text = balancer.errors().replace("[alert]", "[seen]")
    (balancer.dir / "error.log").write_text(text)


def ignore(balancer: Balancer) -> None:
    with contextlib.suppress(Exception):
        balancer.chat()


def test_never_too_many_at_a_time_and_no_place_stays_empty(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    """Four workers give the same two places away."""
    balancer = own_balancer(workers=4)
    one = engine(service_time=0.02, peer={"slots": 50})
    balancer.put(table(one, keys=[key(concurrent=2)]))

    def get_ten(_: int) -> int:
        refused = 0
        for _ in range(10):
            while balancer.chat().status == 429:
                refused += 1
        return refused

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        refused = sum(pool.map(get_ten, range(8)))
    assert one.most == 2
    assert refused > 0
    assert time.monotonic() - began < 5 * (8 * 10 * 0.02 / 2), refused
    wait_for(lambda: usage(balancer, "tester")["at_work"] == 0, 1, "places are free")


# Models


def test_models_of_a_key(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(models=["llama3:8b", "llama3:70b", "mistral", "m"])
    balancer.put(table(one, keys=[key(models=["llama3*", "mistral:latest"]), key("all", "all")]))
    assert balancer.chat(model="llama3:8b").status == 200
    assert balancer.chat(model="mistral").status == 200
    before = len(one.inference())
    refused = balancer.chat(model="m")
    assert (refused.status, refused.code) == (403, "model_not_allowed")
    assert "It may use: llama3*, mistral:latest." in refused.json["error"]["message"]
    assert balancer.ask(body={"messages": []}).code == "model_not_allowed", "the default model is one too"
    assert len(one.inference()) == before
    assert balancer.chat(model="m", key="all").status == 200

    def names(**kwargs: Any) -> list[str]:
        return [model["id"] for model in balancer.ask("GET", "/v1/models", **kwargs).json["data"]]

    assert names() == ["llama3:8b", "llama3:70b", "mistral"]
    assert names(key="all") == ["llama3:8b", "llama3:70b", "mistral", "m"]
    assert balancer.ask("GET", "/v1/models/mistral").status == 200
    hidden = balancer.ask("GET", "/v1/models/m")
    assert hidden.status == 404
    assert "llama3:70b" in hidden.json["error"]["message"]
    assert not re.search(r"\bm\b[,.]", hidden.json["error"]["message"].split("Known")[1])


def test_lists_of_ollama_show_only_what_the_key_may_use(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(kind="ollama", models=["a1", "a2", "b"])
    balancer.put(table(one, default_model="b", keys=[key(models=["a*"]), key("all", "all")]))
    for path in ("/api/tags", "/api/ps"):
        assert [model["name"] for model in balancer.ask("GET", path).json["models"]] == ["a1", "a2"]
        assert [model["name"] for model in balancer.ask("GET", path, key="all").json["models"]] == ["a1", "a2", "b"]
    assert balancer.ask(path="/api/show", body={"model": "b"}).json["error"].startswith("Key 'tester' may not use")
    assert balancer.ask(path="/api/chat", body={"model": "b"}).status == 403
    balancer.put(table(one, default_model="b", keys=[key(models=["none"])]))
    assert balancer.ask("GET", "/api/tags").json == {"models": []}
    assert balancer.ask("GET", "/v1/models").json == {"object": "list", "data": []}


def test_a_key_may_use_an_alias_and_not_what_is_behind_it(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    routes = [{"name": "alias", "when": {"model": "gpt-4o"}, "model": "m"}]
    balancer.put(table(one, keys=[key(models=["gpt-*"]), key("all", "all")], routes=routes))
    assert balancer.chat(model="gpt-4o").status == 200
    assert json.loads(one.inference()[-1].body)["model"] == "m"
    assert balancer.chat(model="m").code == "model_not_allowed"
    assert [model["id"] for model in balancer.ask("GET", "/v1/models").json["data"]] == ["gpt-4o"]
    assert [model["id"] for model in balancer.ask("GET", "/v1/models", key="all").json["data"]] == ["m", "gpt-4o"]


# Many keys


def test_a_thousand_keys(balancer: Balancer, engine: MakeEngine) -> None:
    keys = [key(f"k{i}", f"secret-{i}") for i in range(1000)]
    balancer.put(table(engine(), keys=keys))
    for i in (0, 500, 999):
        answer = balancer.chat(key=f"secret-{i}")
        assert answer.status == 200
        assert balancer.logged(answer.headers["x-request-id"])["key"] == f"k{i}"
    assert balancer.chat(key="secret-1000").status == 401


# Slow clients


def test_slow_clients_stop_nobody_and_are_cut_off(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=1)
    balancer.render(balancer_header_timeout=1, balancer_body_timeout=1)
    balancer.restart()
    one = engine()
    balancer.put(table(one))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n"
    slow: list[socket.socket] = []
    for i in range(600):
        client = socket.create_connection(("127.0.0.1", balancer.port), 5)
        client.sendall(head[:40] if i % 2 else head + b"Content-Length: 1000\r\n\r\n{")
        slow.append(client)
    began = time.monotonic()
    # A byte now and then, as slowloris does, changes nothing for headers: their time is for all of them.
    for client in slow[1::20]:
        with contextlib.suppress(OSError):
            client.sendall(b"a")
    latencies = []
    for _ in range(20):
        start = time.monotonic()
        assert balancer.chat().status == 200
        latencies.append(time.monotonic() - start)
    assert max(latencies) < 0.5, latencies
    assert balancer.busy() == 0, "none of them holds a slot"
    for client in slow:
        client.settimeout(max(0.1, began + 4 - time.monotonic()))
        with contextlib.suppress(ConnectionError):
            assert client.recv(1000)[:12] in {b"", b"HTTP/1.1 408"}
        client.close()
    assert time.monotonic() - began < 4, "all were cut off"
    assert len(one.inference()) == 20
    assert balancer.chat().status == 200
