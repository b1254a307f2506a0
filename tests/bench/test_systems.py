# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each system that can run here starts, answers, does with busy peers what its class says, and leaves nothing."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bench import scenarios
from bench.systems import REGISTRY, Peer, System, running
from bench.systems.base import Program, session, weights
from bench.systems.environment import Environment
from bench.systems.haproxy import groups
from load.client import Ask, Load, Result, chat
from simulated.fleet import Process, Spec

MakeFleet = Callable[..., Process]


@pytest.fixture
def fleet() -> Iterator[MakeFleet]:
    made: list[Process] = []

    def make(*specs: Spec) -> Process:
        made.append(Process(*specs))
        return made[-1]

    yield make
    for process in made:
        process.destroy()


def peers(process: Process) -> list[Peer]:
    return [Peer(s.name, s.address, s.port, s.slots, tuple(s.models), s.speed) for s in process.specs.values()]


def able(name: str) -> System:
    """The system; the test is skipped where it would have to be installed first."""
    system = REGISTRY[name]()
    if not system.installed():
        # Rivals from PyPI come with the benchmark's first run.
        pytest.skip(f"{name} is not installed here")
    return system


def ask(system: System, asks: list[Ask]) -> list[Result]:
    with Load(system.port, asks, address=system.address, timeout=20) as load:
        pass
    return load.results


def alive(pid: int) -> bool:
    """Does it run? A zombie of another parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def questions(count: int, service: float, **fields: Any) -> list[Ask]:
    return [Ask(0.0, chat(None, f"question {i} sim_service={service}", **fields)) for i in range(count)]


@pytest.mark.parametrize("name", REGISTRY)
def test_plain_and_streamed(name: str, fleet: MakeFleet, tmp_path: Path) -> None:
    system = able(name)
    engines = fleet(*(Spec(f"n{i}", f"127.0.71.{i}", slots=2) for i in (1, 2)[: 1 if name == "direct" else 2]))
    with running(system, peers(engines), tmp_path):
        engines.report(forget=True)  # LiteLLM and others ask peers at their start
        pids = system.pids()
        results = ask(system, questions(2, 0.02)) + ask(system, questions(2, 0.02, stream=True, max_tokens=7))
        assert all(result.ok for result in results), results
        assert [result.tokens for result in results[2:]] == [7, 7]
        assert sum(len(each["log"]) for each in engines.report().values()) == 4
    assert (name == "direct") == (not pids)
    assert not [pid for pid in pids if alive(pid)]
    assert name == "direct" or system.version()


@pytest.mark.parametrize(
    ("name", "served", "waits"),
    [
        ("affinity", 4, "outside"),
        ("least_busy", 4, "outside"),
        ("haproxy", 4, "outside"),
        ("haproxy_hash", 4, "outside"),
        ("nginx_engine_queue", 4, "inside"),
        ("nginx_plain", 2, "nowhere"),
    ],
)
def test_busy_peers(name: str, served: int, waits: str, fleet: MakeFleet, tmp_path: Path) -> None:
    """Four requests for two slots: who lets them wait outside of the engines, who inside, and who refuses them."""
    system = able(name)
    engines = fleet(*(Spec(f"n{i}", f"127.0.72.{i}", slots=1) for i in (1, 2)))
    with running(system, peers(engines), tmp_path):
        results = ask(system, questions(4, 0.3))
    assert sum(result.ok for result in results) == served, results
    entries = [entry for each in engines.report().values() for entry in each["log"]]
    assert len(entries) == served
    inside = sum(entry["start"] - entry["got"] > 0.1 for entry in entries)
    assert inside == (2 if waits == "inside" else 0)


@pytest.mark.parametrize("name", ["affinity", "haproxy", "haproxy_hash"])
def test_several_models(name: str, fleet: MakeFleet, tmp_path: Path) -> None:
    system = able(name)
    engines = fleet(*(Spec(f"n{m}", f"127.0.73.{i}", slots=2, models=[m]) for i, m in enumerate("abc", 1)))
    assert not system.unfit(peers(engines))
    with running(system, peers(engines), tmp_path):
        engines.report(forget=True)
        asks = [Ask(0.0, chat(None, f"sim_service=0.01 {'long ' * 2000}", model)) for model in "abcab"]
        assert all(result.ok for result in ask(system, asks))
    assert {name: len(each["log"]) for name, each in engines.report().items()} == {"na": 2, "nb": 2, "nc": 1}


def test_a_chat_stays_where_its_first_question_went(fleet: MakeFleet, tmp_path: Path) -> None:
    """With and without a system's prompt, which all chats share; and different chats go to different nodes."""
    system = able("haproxy_hash")
    engines = fleet(*(Spec(f"n{i}", f"127.0.75.{i}", slots=8) for i in (1, 2, 3)))
    asks: list[Ask] = []
    for turn, has_system, chat_number in itertools.product((1, 2, 3), (True, False), range(8)):
        name = f"{chat_number}-{has_system}"
        begin = [{"role": "system", "content": "You are of help."}] if has_system else []
        said = [{"role": "user", "content": f"{name} for the {i}. time"} for i in range(turn)]
        body = {"model": "m", "max_tokens": 1, "messages": [*begin, *said]}
        # One after the other: a node that is still busy with the one before may be passed over.
        asks.append(Ask(0.0, body, f"{name} {turn}", after=asks[-1] if asks else None, think=0.05))
    with running(system, peers(engines), tmp_path):
        assert all(result.ok for result in ask(system, asks))
    went: dict[str, set[str]] = {}
    for node, each in engines.report().items():
        for entry in each["log"]:
            went.setdefault(entry["says"], set()).add(node)
    assert [len(nodes) for nodes in went.values()] == [1] * 16
    assert set.union(*went.values()) == {"n1", "n2", "n3"}


def test_what_is_made_for_caches_takes_part_only_where_there_are_some() -> None:
    names = list(REGISTRY)
    assert set(scenarios.keepers(names)) - set(scenarios.balancers(names)) == {"haproxy_hash"}


def test_unfit_peers() -> None:
    mixed = [Peer("n1", "127.0.0.1", 1, models=("a",)), Peer("n2", "127.0.0.1", 2, models=("a", "b"))]
    unfit = {name for name in REGISTRY if REGISTRY[name]().unfit(mixed)}
    assert unfit == {"direct", "nginx_plain", "nginx_engine_queue", "sglang_router"}
    assert groups(mixed) == {("n1", "n2"): ["a"], ("n2",): ["b"]}


def test_weights_keep_proportions() -> None:
    unequal = [Peer("n1", "127.0.0.1", 1, slots=1, weight=0.5), Peer("n2", "127.0.0.1", 2, slots=16, weight=2.0)]
    assert weights(unequal, 256) == {"n1": 4, "n2": 256}
    assert weights(unequal[:1]) == {"n1": 50}


def test_start_that_fails(tmp_path: Path) -> None:
    """The error says what the program wrote, and nothing of it is left."""
    system = System()
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('no such setting', flush=True)"
    for ending, seconds, said in (("; raise SystemExit(3)", 10, "ended with 3"), ("; time.sleep(60)", 0.5, "answer")):
        program = Program([sys.executable, "-c", code + ending], tmp_path / "log")
        with pytest.raises(RuntimeError, match=rf"{said}.*\n?.*no such setting"):
            system.run(program, lambda: False, seconds)
        assert not system.pids()


def test_stop_ends_children(tmp_path: Path) -> None:
    """Also those that do not listen to a polite request."""
    code = "import signal, subprocess, time; signal.signal(15, signal.SIG_IGN); subprocess.Popen(['sleep', '60'])"
    program = Program([sys.executable, "-c", code + "; time.sleep(60)"], tmp_path / "log")
    program.start()
    assert program.process
    leader = program.process.pid
    program.wait(lambda: len(program.pids()) == 2, 5)
    began = time.monotonic()
    program.stop(seconds=0.3)
    assert time.monotonic() - began < 2
    assert session(leader) == []


def test_rival_that_cannot_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, no exception, and it is not taken for installed afterwards."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    environment = Environment("rival", "no-such-rival", tmp_path)
    said = environment.make()
    assert said.startswith("no-such-rival cannot be installed: ")
    assert "\n" not in said
    assert not environment.ready()
