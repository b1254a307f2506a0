# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes and prefixes through a real nginx: which peers a request may go to, and which of them holds its beginning."""

from __future__ import annotations

import collections
import concurrent.futures
import json
import threading
import time
from typing import Any

import pytest
from balancer.harness import KEY, Answer, Balancer, MakeBalancer, MakeEngine, hashed, table, wait_for


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def ask(balancer: Balancer, *messages: dict[str, str], model: str = "m", **kwargs: Any) -> Answer:
    return balancer.ask(body={"model": model, "messages": list(messages) or [user("hi")]}, **kwargs)


def where(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.headers["x-llm-peer"]


def spread(answers: list[Answer]) -> collections.Counter:
    return collections.Counter(where(answer) for answer in answers)


# Routes


def test_long_prompts_prefer_large_gpus_and_long_chats_much_memory(balancer: Balancer, engine: MakeEngine) -> None:
    gpu = engine("gpu", peer={"slots": 1, "labels": {"gpu_memory_gb": 48, "memory_gb": 64}})
    ram = engine("ram", peer={"slots": 1, "labels": {"gpu_memory_gb": 0, "memory_gb": 128}})
    plain = engine("plain", peer={"slots": 8, "labels": {"gpu_memory_gb": 24, "memory_gb": 32}})
    routes = [
        {"name": "long-prompts", "when": {"prompt_chars_over": 1000}, "prefer": {"gpu_memory_gb": ">24"}},
        {"name": "long-chats", "when": {"messages_over": 5}, "prefer": {"memory_gb": ">64"}},
    ]
    assert balancer.put(table(gpu, ram, plain, routes=routes)).status == 200
    for i in range(4):
        # Characters count, not bytes, nor how they are written.
        assert where(ask(balancer, user(f"{i}" + "ä" * 1000))) == "gpu"
        assert where(ask(balancer, *[user(f"{i} {n}") for n in range(6)])) == "ram"
    short = [ask(balancer, user(f"{i:03}" + "ä" * 997), user("")) for i in range(6)]
    few = [ask(balancer, *[user(f"few {i} {n}") for n in range(5)]) for i in range(6)]
    assert spread(short + few)["plain"] >= 8
    # It prefers, it doesn't require: while the GPU's slot is taken, others answer.
    gpu.service_time = 1
    first = threading.Thread(target=ask, args=(balancer, user("first" + "x" * 1000)))
    first.start()
    wait_for(lambda: gpu.running == 1)
    assert where(ask(balancer, user("second" + "x" * 1000))) != "gpu"
    first.join()


def test_each_family_on_its_group_and_the_rest_on_general_nodes(balancer: Balancer, engine: MakeEngine) -> None:
    models = ["llama3:8b", "mistral:7b", "m"]
    nodes = [
        engine(name, models=models, peer={"labels": {"groups": [name, "all_nodes"]}}) for name in ("ll", "mi", "ge")
    ]
    routes = [
        {"name": "llama", "when": {"model": "llama*"}, "require": {"groups": "ll"}},
        {"name": "mistral", "when": {"model": "mistral*"}, "require": {"groups": "mi"}},
        {"name": "rest", "require": {"groups": "ge"}},
    ]
    balancer.put(table(*nodes, routes=routes))
    for model, name in (("llama3:8b", "ll"), ("mistral:7b", "mi"), ("m", "ge")):
        assert spread([ask(balancer, user(f"{i}"), model=model) for i in range(5)]) == {name: 5}
    # A route may require what a busy peer has: then the request waits for it.
    nodes[0].service_time = 0.3
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: ask(balancer, user(f"w{i}"), model="llama3:8b"), range(6)))
    assert spread(answers) == {"ll": 6}


def test_an_alias_is_a_model_by_another_name(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(models=["m", "n"])
    routes = [{"name": "gpt", "when": {"model": ["gpt-4o", "gpt-4-*"]}, "model": "n"}]
    balancer.put(table(one, routes=routes))
    for asked in ("gpt-4o", "gpt-4-turbo"):
        answer = balancer.ask(body={"model": asked, "seed": 12345678901234567890, "messages": []})
        assert answer.status == 200
        sent = one.inference()[-1].body
        assert sent == b'{"model": "n", "seed": 12345678901234567890, "messages": []}', "no other byte is changed"
    answer = ask(balancer, model="gpt-5")
    assert (answer.status, answer.code) == (404, "model_not_found")
    listed = [entry["id"] for entry in balancer.ask("GET", "/v1/models").json["data"]]
    assert "gpt-4o" in listed
    assert not [name for name in listed if "*" in name]


def test_path_stream_and_key_are_conditions(balancer: Balancer, engine: MakeEngine) -> None:
    a, b, c, d = (engine(name) for name in "abcd")
    routes = [
        {"name": "batch", "when": {"key": "batch-*"}, "peers": ["a"]},
        {"name": "raw", "when": {"path": "/v1/completions"}, "peers": ["b"]},
        {"name": "live", "when": {"stream": True}, "peers": ["c"]},
        {"name": "rest", "peers": ["d"]},
    ]
    keys = [{"name": "tester", "sha256": hashed(KEY)}, {"name": "batch-1", "sha256": hashed("sk-batch")}]
    balancer.put(table(a, b, c, d, routes=routes, keys=keys))
    assert where(ask(balancer, key="sk-batch")) == "a"
    assert where(balancer.ask(path="/v1/completions", body={"model": "m", "prompt": "x"}, key="sk-batch")) == "a"
    assert where(balancer.ask(path="/v1/completions", body={"model": "m", "prompt": "x"})) == "b"
    assert where(balancer.chat(stream=True)) == "c"
    assert where(balancer.chat(stream=False)) == "d"
    assert where(balancer.chat()) == "d"


def test_fallback_only_when_all_are_out_or_drained(balancer: Balancer, engine: MakeEngine) -> None:
    big, small = engine("big", models=["large"], peer={"slots": 1}), engine("small", models=["m"])
    routes = [{"name": "large", "when": {"model": "large"}, "peers": ["big"], "fallback": "m"}]
    balancer.put(table(big, small, routes=routes))
    assert where(ask(balancer, model="large")) == "big"
    big.service_time = 0.3
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda i: ask(balancer, user(f"{i}"), model="large"), range(3)))
    assert spread(answers) == {"big": 3}, "busy is not out"
    balancer.admin("POST", "/peers/big/drain", {"owner": "t"})
    assert where(ask(balancer, model="large")) == "small"
    assert json.loads(small.inference()[-1].body)["model"] == "m"
    balancer.admin("POST", "/peers/big/resume", {"owner": "t"})
    assert where(ask(balancer, user("again"), model="large")) == "big"
    big.stop()
    assert where(ask(balancer, user("and again"), model="large")) == "small"


def test_a_route_that_can_match_no_peer_is_refused_by_name(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(peer={"labels": {"gpu_memory_gb": 24}})
    good = table(one)
    balancer.put(good)
    answer = balancer.put({**good, "routes": [{"name": "huge", "require": {"gpu_memory_gb": ">24"}}]})
    assert answer.status == 400
    assert b"routes[huge]: can match no peer: none of n1 has gpu_memory_gb >24" in answer.body
    assert balancer.chat().status == 200, "the table in force stays"


def test_routes_change_without_a_reload(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = engine("a"), engine("b")
    for name in ("a", "b", "a"):
        balancer.put(table(a, b, routes=[{"name": "r", "peers": [name]}]))
        assert spread([ask(balancer, user(f"{name} {i}")) for i in range(4)]) == {name: 4}


# Prefixes


def conversation(seed: str, turns: int, system: str = "") -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append(user(f"{seed} {'q' * 300}"))
    for turn in range(1, turns):
        messages += [{"role": "assistant", "content": "hello"}, user(f"{seed} turn {turn}")]
    return messages


def test_a_conversation_stays_where_it_is_cached(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name, peer={"slots": 2}) for name in ("a", "b", "c", "d")]
    balancer.put(table(*engines))
    homes: dict[str, set[str]] = collections.defaultdict(set)
    for turns in range(1, 6):
        for seed in range(12):
            homes[f"talk {seed}"].add(where(ask(balancer, *conversation(f"talk {seed}", turns, "S" * 3000))))
    assert {len(home) for home in homes.values()} == {1}
    taken = collections.Counter(next(iter(home)) for home in homes.values())
    assert len(taken) == 4, f"the system prompt that all share doesn't pull them to one peer: {taken}"
    assert max(taken.values()) <= 5


def test_a_full_peer_is_not_waited_for(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = (engine(name, peer={"slots": 1}) for name in ("a", "b"))
    balancer.put(table(a, b))
    home = where(ask(balancer, *conversation("busy talk", 1)))
    holder, other = (a, b) if home == "a" else (b, a)
    holder.service_time = 1
    first = threading.Thread(target=ask, args=(balancer, *conversation("busy talk", 2)))
    first.start()
    wait_for(lambda: holder.running == 1)
    assert where(ask(balancer, *conversation("busy talk", 2))) == other.name
    first.join()


def test_a_full_peer_is_waited_for_if_reading_anew_takes_longer(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer()
    a, b = (engine(name, peer={"slots": 1}) for name in ("a", "b"))
    balancer.put(table(a, b))
    # What is learned: 8,000 characters are read in 0.6 s; a slot is free after 0.3 s on average.
    for i in range(6):
        for text, seconds in (("short", 0.02), ("long " * 1600, 0.6)):
            a.service_time = b.service_time = seconds
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                spread(list(pool.map(lambda n, i=i, text=text: ask(balancer, user(f"{n} {i} {text}")), range(2))))
    time.sleep(1.2)  # it is looked at twice a second
    a.service_time = b.service_time = 0
    talk = user("talk " * 1600)
    home = where(ask(balancer, talk))
    holder = a if home == "a" else b
    holder.service_time = 0.3
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        pool.submit(ask, balancer, talk)
        wait_for(lambda: holder.running == 1)
        more = [talk, {"role": "assistant", "content": "hello"}, user("and?")]
        assert where(pool.submit(ask, balancer, *more).result()) == home
        pool.submit(ask, balancer, talk)
        wait_for(lambda: holder.running == 1)
        assert where(pool.submit(ask, balancer, user("something else")).result()) != home, "it has nothing to wait for"


def test_a_template_that_many_share_does_not_decide(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name) for name in ("a", "b", "c", "d")]
    balancer.put(table(*engines))
    template = "Translate into French, keep names as they are. " * 60
    answers = [
        balancer.ask(path="/v1/completions", body={"model": "m", "prompt": template + f"{i} " * 400}) for i in range(60)
    ]
    assert max(spread(answers).values()) <= 30


@pytest.mark.parametrize("pin", ["header", "prompt_cache_key", "user"])
def test_a_session_is_pinned(balancer: Balancer, engine: MakeEngine, pin: str) -> None:
    engines = [engine(name) for name in ("a", "b", "c", "d")]
    balancer.put(table(*engines))
    homes = collections.defaultdict(set)
    for i in range(4):
        for session in range(6):
            name = f"session-{session}-{pin}"
            headers = {"X-LLM-Session": name} if pin == "header" else {}
            body = {"model": "m", "messages": [user(f"unlike {i} {session}")]}
            if pin != "header":
                body[pin] = name
            homes[name].add(where(balancer.ask(body=body, headers=headers)))
    assert {len(home) for home in homes.values()} == {1}


def test_least_busy_and_round_robin_do_not_look_at_prefixes(balancer: Balancer, engine: MakeEngine) -> None:
    engines = [engine(name) for name in ("a", "b")]
    for policy in ("least_busy", "weighted_round_robin"):
        balancer.put(table(*engines, policy=policy))
        answers = [ask(balancer, *conversation("one talk", turns)) for turns in range(1, 11)]
        assert min(spread(answers)[name] for name in "ab") >= 3, "each worker takes turns by itself"


# Hostile bodies


def test_hostile_bodies_are_refused_or_served_and_no_worker_dies(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    one.models = ["m"]
    routes = [{"name": "long", "when": {"prompt_chars_over": 5, "messages_over": 1}, "peers": ["n1"]}]
    balancer.put(table(one, routes=routes, limits={"max_body_bytes": 4 << 20}))
    pids = balancer.worker_pids()
    size = 3 << 20
    refused = [
        b"[" * size,
        b'{"a":' + b"[" * size,
        b'{"messages":' + b"[" * size + b"]" * 10 + b"}",
        b'{"model":"m","messages":[' + b'{"a":' * (size // 6),
        b'{"model":"m","model":"n"}',
        b'{"model":"m","MODEL":"n"}',
        b'{"model":"m","messages":[}',
        b'{"model":"m","messages":["',
        b'{"model":"\xff"}',
        b'{"model":"m","messages":[{"content":"\xff\xc0\x80"}]}',
        b'{"model":"m","messages":[{"content":"' + b"\xed\xa0\x80" * 100000 + b'"}]}',
        b'{"\xff":1}',
        b"\x00" * 1000,
    ]
    for body in refused:
        answer = balancer.ask(body=body)
        assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error"), body[:40]
    # What is no JSON inside a value reaches the engine as it is: it is the engine's to refuse.
    one.mode = "bad400"
    for inside in (
        b"{}," * (size // 3) + b"{}",
        b'{"content":"a","content":"b"}',
        b",,,",
        b'{"a" 1}',
    ):
        answer = balancer.ask(body=b'{"model":"m","messages":[' + inside + b"]}")
        assert answer.status == 400
        assert b"context too long" in answer.body
    assert balancer.ask(body=b'{"model":"m","messages":[],"user":"' + b"u" * 100000 + b'"}').status == 400
    assert balancer.ask(body=b'{"model":"m"}', headers={"X-LLM-Session": "s" * 3000}).status == 400
    one.mode = "ok"
    assert balancer.chat().status == 200
    assert balancer.worker_pids() == pids


def test_route_that_leaves_a_model_no_node_says_so_at_once(balancer: Balancer, engine: MakeEngine) -> None:
    """Such a route is accepted, as it leaves other models some."""
    small = engine("small", models=["m"], peer={"labels": {"memory_gb": 8}})
    large = engine("large", models=["n"], peer={"labels": {"memory_gb": 64}})
    routes = [{"name": "large-ones", "require": {"memory_gb": ">32"}}]
    answer = balancer.put(table(small, large, routes=routes))
    assert answer.status == 200, answer.body
    assert where(ask(balancer, model="n")) == "large"
    answer = ask(balancer, model="m", timeout=2)
    assert (answer.status, answer.code) == (503, "no_node_available")
    assert "large-ones" in answer.json["error"]["message"]
