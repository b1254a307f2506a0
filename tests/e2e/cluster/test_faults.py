# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of real llama.cpp under load: a process that is stopped, a node that is drained.

Its death is test_failover.py's. What needs many peers, exact service times or thousands of requests is in tests/chaos.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from e2e.demo_cluster import Cluster

MODEL = "gemma3:270m"
UNIT = "llama-cpp@gemma3-270m.service"
ADMIN = "curl --silent --fail --unix-socket /run/llm-cluster/admin.sock"


@dataclass
class Load:
    """What six clients that ask without pause have seen."""

    answered: list[tuple[float, float, str]] = field(default_factory=list)  # asked at, answered at, by
    failed: list[str] = field(default_factory=list)

    def since(self, moment: float, peer: str) -> list[tuple[float, float, str]]:
        return [each for each in list(self.answered) if each[1] > moment and each[2] == peer]


@contextlib.contextmanager
def load(cluster: Cluster) -> Iterator[Load]:
    endpoint = cluster.endpoint
    client = openai.OpenAI(base_url=endpoint["base_url"], api_key=endpoint["api_key"], max_retries=0, timeout=60)
    seen, stop = Load(), threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            asked = time.monotonic()
            try:
                answer = client.chat.completions.with_raw_response.create(
                    model=MODEL, messages=[{"role": "user", "content": "Count: one, two,"}], max_tokens=16
                )
                answer.parse()
                seen.answered.append((asked, time.monotonic(), answer.headers["X-LLM-Peer"]))
            except openai.OpenAIError as error:
                seen.failed.append(str(error))

    threads = [threading.Thread(target=keep_asking) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def peer(cluster: Cluster, node: str) -> dict[str, Any]:
    """What the balancer thinks of the node's peer."""
    state = json.loads(cluster.ssh("balancer", f"{ADMIN} http://x/state"))
    found: dict[str, Any] = next(each for each in state["peers"] if each["node"] == node)
    return found


def wait_for(condition: Callable[[], object], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


@pytest.fixture
def proceeding(cluster: Cluster) -> Iterator[None]:
    """Whatever happens: node1's engine runs on, and nothing of ours holds the node out."""
    yield
    cluster.ssh("node1", f"systemctl kill --kill-whom=all --signal=CONT {UNIT}")
    cluster.ssh("balancer", f'{ADMIN} -X POST http://x/peers/node1/resume -d \'{{"owner": "test"}}\'', check=False)


@pytest.mark.usefixtures("proceeding")
def test_stopped_engine_is_out_and_its_requests_are_answered_elsewhere(cluster: Cluster) -> None:
    with load(cluster) as seen:
        wait_for(lambda: seen.since(0, "node1"), 60, "node1 never answered")
        stopped = time.monotonic()
        cluster.ssh("node1", f"systemctl kill --kill-whom=all --signal=STOP {UNIT}")
        wait_for(lambda: peer(cluster, "node1")["health"] == "down", 8, "the stopped engine is not out")
        out = time.monotonic() - stopped
        time.sleep(2)
        going = time.monotonic()
        cluster.ssh("node1", f"systemctl kill --kill-whom=all --signal=CONT {UNIT}")
        wait_for(lambda: seen.since(going + 0.5, "node1"), 40, "node1 did not return")
        returned = time.monotonic() - going
    slowest = max(end - begin for begin, end, _ in seen.answered)
    print(
        f"stopped node1: out after {out:.1f} s, {len(seen.answered)} answered, {len(seen.failed)} failed, the slowest"
        f" after {slowest:.1f} s; back {returned:.1f} s after it went on"
    )
    assert seen.failed == []
    # Four seconds is the promise; ssh and the look at the state take their part of a busy machine.
    assert out <= 6
    assert not [each for each in seen.since(stopped + 1, "node1") if each[1] < going]


@pytest.mark.usefixtures("proceeding")
def test_drained_node_gets_nothing_new_and_ends_what_it_holds(cluster: Cluster) -> None:
    mark = json.dumps({"owner": "test", "reason": "proof"})
    with load(cluster) as seen:
        wait_for(lambda: seen.since(0, "node1"), 60, "node1 never answered")
        cluster.ssh("balancer", f"{ADMIN} -X POST http://x/peers/node1/drain -d '{mark}'")
        drained = time.monotonic()
        wait_for(lambda: peer(cluster, "node1")["busy"] == 0, 30, "its requests did not end")
        ended = time.monotonic()
        time.sleep(3)
        resumed = time.monotonic()
        cluster.ssh("balancer", f"{ADMIN} -X POST http://x/peers/node1/resume -d '{mark}'")
        wait_for(lambda: seen.since(resumed, "node1"), 40, "node1 did not return")
    print(
        f"drained node1: idle after {ended - drained:.1f} s, {len(seen.answered)} answered, {len(seen.failed)} failed"
    )
    assert seen.failed == []
    assert not [each for each in seen.since(drained, "node1") if drained < each[0] and each[1] < resumed]
