# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated engines' caches and queues: what is theirs by the real ones' documentation and code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from balancer.harness import free_port
from load.client import Ask, Load, Result
from simulated.caches import BLOCK, SIMILAR, SharedCache, SlotCache
from simulated.fleet import Process, Spec

ALICE, BOB, CAROL = ("a" * 8 * BLOCK, "b" * 8 * BLOCK, "c" * 8 * BLOCK)

Make = Callable[..., Process]


def took(cache: SharedCache | SlotCache, text: str) -> tuple[int, int]:
    """The place, and the blocks held, of a request that ends at once."""
    place, held = cache.begin(text)
    cache.end(place)
    return place, held // BLOCK


def test_shared_blocks_are_forgotten_from_the_end_of_the_oldest() -> None:
    cache = SharedCache(12)
    assert took(cache, ALICE) == (0, 0)
    assert took(cache, ALICE + "more") == (0, 8)
    assert took(cache, BOB) == (0, 0)
    assert took(cache, ALICE) == (0, 4)
    assert took(SharedCache(0), ALICE) == (0, 0)


def test_of_slots_the_longest_beginning_wins_then_the_least_recently_used() -> None:
    cache = SlotCache(64, 2, SIMILAR)
    assert took(cache, ALICE) == (0, 0)
    assert took(cache, BOB) == (1, 0)
    assert took(cache, ALICE + "a" * BLOCK) == (0, 8)
    assert took(cache, CAROL) == (1, 0), "the slot that was taken longest ago is not Alice's"
    assert took(cache, BOB) == (0, 0), "what Carol wrote over is gone"


def test_a_slot_holds_one_prompt_and_only_its_share() -> None:
    cache = SlotCache(8, 2, SIMILAR)
    assert took(cache, ALICE) == (0, 0)
    assert took(cache, ALICE) == (0, 4)


def test_a_slot_at_work_helps_nobody_else() -> None:
    cache = SlotCache(64, 2, SIMILAR)
    place, _ = cache.begin(ALICE)
    assert took(cache, ALICE) == (1 - place, 0)
    cache.end(place)
    assert took(cache, ALICE)[1] == 8


def test_llama_cpp_leaves_a_slot_alone_that_holds_too_little_and_ollama_does_not() -> None:
    little = "a" * BLOCK + "d" * 19 * BLOCK  # shares a twentieth of it with Alice
    for similar, place in ((SIMILAR, 1), (-1.0, 0)):
        cache = SlotCache(64, 2, similar)
        took(cache, ALICE)
        assert took(cache, little)[0] == place
    ollama = SlotCache(64, 2, -1.0)
    assert [took(ollama, text)[0] for text in (ALICE, BOB)] == [0, 0], "the first of equals, though another is empty"


def test_an_engine_that_is_given_a_slot_more_has_a_place_for_it() -> None:
    cache = SlotCache(64, 1, SIMILAR)
    assert [cache.begin(text)[0] for text in (ALICE, BOB)] == [0, 1]


@pytest.fixture
def make() -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def started(**fields: object) -> Process:
            process = Process(Spec("n1", "127.0.76.1", free_port(), **fields))  # type: ignore[arg-type]
            stack.callback(process.destroy)
            return process

        yield started


def asked(engine: Process, *models: str, text: str = "hello") -> list[Result]:
    """One request for each, 50 ms apart."""
    (spec,) = engine.specs.values()
    bodies = [
        {"model": model, "messages": [{"role": "user", "content": f"{i} {text}"}]} for i, model in enumerate(models)
    ]
    asks = [Ask(0.05 * i, body, str(i)) for i, body in enumerate(bodies)]
    with Load(spec.port, asks, address=spec.address, timeout=20) as load:
        pass
    return sorted(load.results, key=lambda result: result.tag)


def test_without_anything_said_requests_wait_for_slots_only(make: Make) -> None:
    engine = make(slots=1, load=5, max_queue=1)
    assert all(result.ok for result in asked(engine, *"mmmm", text="sim_service=0.1"))
    assert engine.report()["n1"]["most"] == 1


def test_ollama_refuses_only_what_waits_for_a_model(make: Make) -> None:
    engine = make(slots=1, queueing="ollama", load=1.0, max_queue=2)
    results = asked(engine, *"mmmmm", text="sim_service=0.1")
    assert [result.status for result in results] == [200, 200, 200, 503, 503]
    assert [entry["outcome"] for entry in engine.report()["n1"]["log"]].count("busy") == 2
    assert all(result.ok for result in asked(engine, *"mmmmm", text="sim_service=0.2")), "it is in memory now"


def test_ollama_changes_the_model_once_its_requests_have_ended_and_lets_all_wait_behind(make: Make) -> None:
    engine = make(slots=4, queueing="ollama")
    asked(engine, "a")
    engine.report(forget=True)
    assert all(result.ok for result in asked(engine, *"aba", text="sim_service=0.4"))
    first, second, third = engine.report()["n1"]["log"]
    assert second["start"] >= first["end"]
    assert third["start"] >= second["end"]


@pytest.mark.parametrize(("cache", "held"), [("shared", [0, 0, 8]), ("slot", [0, 0, 0])])
def test_an_engine_has_the_cache_that_it_was_told(cache: str, held: list[int], make: Make) -> None:
    engine = make(slots=1, cache=cache, cache_blocks=64)
    (spec,) = engine.specs.values()
    for text in (ALICE, BOB, ALICE):
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        with Load(spec.port, [Ask(0.0, body)], address=spec.address, timeout=20) as load:
            pass
        assert load.results[0].ok
    assert [entry["cached"] // BLOCK for entry in engine.report()["n1"]["log"]] == held
