# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loads are what the page says they are."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence

import pytest
from bench.measure import offered
from bench.rig import nodes
from bench.scenarios import multi_turn, no_reuse, sweep
from bench.workload import layouts
from bench.workload.arrivals import CODE_CV, bursty, poisson, within
from bench.workload.closed import users
from bench.workload.conversations import conversations, reusable
from bench.workload.lengths import ANSWER, PROMPT, Lengths
from bench.workload.questions import question, questions, work
from load.client import share
from simulated.fleet import prompt_of


@pytest.mark.parametrize("cv", [1.0, CODE_CV])
def test_arrivals_have_their_rate_and_burstiness(cv: float) -> None:
    moments = list(itertools.islice(bursty(10, cv, 1), 40_000))
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.05)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_arrivals_take_the_time_they_are_given() -> None:
    for seed, cv in itertools.product(range(20), (1.0, CODE_CV)):
        moments = within(60, 500, seed, cv)
        assert moments[-1] == pytest.approx(60 * 500 / 501)
        assert moments == sorted(moments)


def quantiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p90."""
    return share(list(values), 0.5), share(list(values), 0.9)


@pytest.mark.parametrize("lengths", [PROMPT, ANSWER], ids=["prompt", "answer"])
def test_lengths_have_the_published_quantiles_although_the_longest_are_cut(lengths: Lengths) -> None:
    source = random.Random(2)
    drawn = [lengths.draw(source) for _ in range(50_000)]
    assert quantiles(drawn) == pytest.approx((lengths.p50, lengths.p90), rel=0.02)
    assert max(drawn) <= lengths.most


def test_so_have_the_questions_that_are_sent() -> None:
    asks = [ask for seed in range(10) for ask in questions(0.9, 12, 60, seed)]
    found = offered.lengths(asks)
    assert found["prompt_p50_tokens"] == pytest.approx(PROMPT.p50, rel=0.03)
    assert found["prompt_p90_tokens"] == pytest.approx(PROMPT.p90, rel=0.03)
    # A simulated token stands for eight, so these come in steps of that size.
    assert found["answer_p50_tokens"] == pytest.approx(ANSWER.p50, abs=8)
    assert found["answer_p90_tokens"] == pytest.approx(ANSWER.p90, rel=0.03)


SWEEP = {
    (point.get("layout"), point.get("load"), point.get("seconds"), point.get("cv"), point.get("round"))
    for full in (False, True)
    for point in sweep.points(full, ["affinity"])
}


@pytest.mark.parametrize(("layout", "load", "seconds", "cv", "turn"), sorted(SWEEP))
def test_questions_make_the_load_that_was_asked_for(
    layout: str, load: float, seconds: float, cv: float, turn: int
) -> None:
    specs = layouts.engines(layout, 72)
    models = layouts.MODELS.get(layout, [("m", 1.0)])
    asks = questions(load, layouts.capacity(specs), seconds, sweep.SEED + turn, cv, models)
    assert offered.load(asks, specs, seconds) == pytest.approx(load, rel=0.01)
    assert asks[-1].due == pytest.approx(seconds * len(asks) / (len(asks) + 1))
    assert [ask.due for ask in asks] == sorted(ask.due for ask in asks)
    assert len({prompt_of(ask.body) for ask in asks}) == len(asks)
    assert len({ask.tag for ask in asks}) == len(asks)


@pytest.mark.parametrize("seed", range(20))
def test_load_is_exact_whatever_the_seed(seed: int) -> None:
    for capacity, load, seconds in ((12, 0.7, 15), (12, 0.5, 60), (16, 0.9, 15), (16, 0.95, 60)):
        asks = questions(load, capacity, seconds, seed)
        assert sum(map(work, asks)) / (capacity * seconds) == pytest.approx(load, rel=0.01)


@pytest.mark.parametrize(("load", "seconds"), [(0.65, 15), (0.5, 60), (0.65, 60), (0.8, 60)])
@pytest.mark.parametrize("turn", range(multi_turn.ROUNDS))
def test_chats_make_the_load_that_was_asked_for(load: float, seconds: float, turn: int) -> None:
    specs = nodes(4, 73, **multi_turn.FLEET)
    asks = conversations(load, specs, seconds, multi_turn.TURNS, multi_turn.SEED + turn)
    assert offered.load(asks, specs, seconds) == pytest.approx(load, rel=0.01)
    chats = len(asks) // multi_turn.TURNS
    assert asks[-1].due == pytest.approx(seconds * chats / (chats + 1))


def test_chats_of_a_full_run_do_not_fit_into_the_caches() -> None:
    specs = nodes(4, 73, **multi_turn.FLEET)
    asks = conversations(0.5, specs, 60, multi_turn.TURNS, multi_turn.SEED)
    whole = [len(prompt_of(ask.body)) / 256 for ask in asks[multi_turn.TURNS - 1 :: multi_turn.TURNS]]
    assert sum(whole) / len(whole) == pytest.approx(multi_turn.WHOLE, rel=0.03)
    assert sum(whole) > 1.5 * sum(spec.cache_blocks for spec in specs)


@pytest.mark.parametrize("seed", range(3))
def test_questions_of_one_size_make_the_load_that_was_asked_for(seed: int) -> None:
    specs = nodes(4, 74, **multi_turn.FLEET)
    asks = no_reuse.questions(0.65 * layouts.capacity(specs), 15, no_reuse.SEED + seed)
    assert offered.load(asks, specs, 15) == pytest.approx(0.65, rel=0.01)


def test_same_seed_same_load() -> None:
    first, second = (questions(0.5, 4, 10, seed=4) for _ in range(2))
    assert [(ask.due, ask.body) for ask in first] == [(ask.due, ask.body) for ask in second]


def test_models_get_their_shares() -> None:
    asks = questions(0.9, 12, 60, seed=5, models=[("a", 0.5), ("b", 0.5)])
    part = sum(ask.body["model"] == "a" for ask in asks) / len(asks)
    assert part == pytest.approx(0.5, abs=0.06)


def test_each_turn_sends_all_that_was_said() -> None:
    asks = conversations(0.6, nodes(4, 73, **multi_turn.FLEET), 10, turns=4, seed=6)
    could = reusable(asks)
    for ask in asks:
        if ask.after is not None:
            before, now = prompt_of(ask.after.body), prompt_of(ask.body)
            assert now.startswith(before)
            assert could[ask.tag] == len(before)
    assert {ask.tag.split(".")[1] for ask in asks} == {"0", "1", "2", "3"}


def test_users_ask_one_after_the_other() -> None:
    source = random.Random(7)
    asks = users(2, 3, lambda name: question(name, source))
    assert [ask.tag for ask in asks] == ["u0.0", "u0.1", "u0.2", "u1.0", "u1.1", "u1.2"]
    assert [ask.after.tag if ask.after else None for ask in asks] == [None, "u0.0", "u0.1", None, "u1.0", "u1.1"]
    assert list(itertools.islice(poisson(1, 7), 2)) == list(itertools.islice(poisson(1, 7), 2))
