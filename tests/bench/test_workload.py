# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The loads are what the page says they are."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from bench.workload.arrivals import CODE_CV, bursty, poisson
from bench.workload.closed import users
from bench.workload.conversations import conversations, reusable
from bench.workload.lengths import ANSWER, PROMPT, Lengths
from bench.workload.questions import question, questions, work
from simulated.fleet import prompt_of


@pytest.mark.parametrize("cv", [1.0, CODE_CV])
def test_arrivals_have_their_rate_and_burstiness(cv: float) -> None:
    moments = list(itertools.islice(bursty(10, cv, 1), 40_000))
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    assert statistics.mean(gaps) == pytest.approx(0.1, rel=0.05)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("lengths", [PROMPT, ANSWER], ids=["prompt", "answer"])
def test_lengths_have_the_published_quantiles(lengths: Lengths) -> None:
    source = random.Random(2)
    drawn = sorted(lengths.draw(source) for _ in range(20_000))
    assert drawn[10_000] == pytest.approx(lengths.p50, rel=0.05)
    assert drawn[18_000] == pytest.approx(lengths.p90, rel=0.08)
    assert drawn[-1] <= lengths.most


def test_questions_make_the_load_that_was_asked_for() -> None:
    asks = questions(0.8, 12, 60, seed=3)
    busy = sum(map(work, asks)) / asks[-1].due
    assert busy / 12 == pytest.approx(0.8, rel=0.12)
    assert asks[-1].due == pytest.approx(60, rel=0.12)
    assert [ask.due for ask in asks] == sorted(ask.due for ask in asks)
    assert len({prompt_of(ask.body) for ask in asks}) == len(asks)


def test_same_seed_same_load() -> None:
    first, second = (questions(0.5, 4, 10, seed=4) for _ in range(2))
    assert [(ask.due, ask.body) for ask in first] == [(ask.due, ask.body) for ask in second]


def test_models_get_their_shares() -> None:
    asks = questions(0.9, 12, 60, seed=5, models=[("a", 0.5), ("b", 0.5)])
    part = sum(ask.body["model"] == "a" for ask in asks) / len(asks)
    assert part == pytest.approx(0.5, abs=0.06)


def test_each_turn_sends_all_that_was_said() -> None:
    asks = conversations(0.6, 8, 10, turns=4, seed=6, prefill=2)
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
