# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""An engine dies while requests start: nobody outside notices, and the node comes back by itself."""

from __future__ import annotations

import threading
import time

import openai
from e2e.demo_cluster import Cluster

MODEL = "gemma3:270m"
UNIT = "llama-cpp@gemma3-270m.service"


def test_killing_an_engine_fails_no_request_that_had_not_started(cluster: Cluster) -> None:
    client = openai.OpenAI(
        base_url=cluster.endpoint["base_url"], api_key=cluster.endpoint["api_key"], max_retries=0, timeout=60
    )
    answered: list[tuple[float, str]] = []
    failed: list[str] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                answer = client.chat.completions.with_raw_response.create(
                    model=MODEL, messages=[{"role": "user", "content": "Count: one, two,"}], max_tokens=16
                )
                answer.parse()
                answered.append((time.monotonic(), answer.headers["X-LLM-Peer"]))
            except openai.OpenAIError as error:
                failed.append(str(error))

    threads = [threading.Thread(target=keep_asking) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: any(peer == "node1" for _, peer in answered), 60, "node1 never answered")
        time.sleep(2)
        cluster.ssh("node1", f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")
        killed = time.monotonic()
        # A whole answer is not started before it is complete, so also those that node1 was working on are asked again.
        wait_for(
            lambda: any(peer == "node1" for at, peer in list(answered) if at > killed + 1), 90, "node1 did not return"
        )
        returned = time.monotonic()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    after = [peer for at, peer in answered if at > killed]
    print(
        f"killed node1: {len(answered)} answered ({len(after)} after it), {len(failed)} failed,"
        f" back after {returned - killed:.1f} s"
    )
    assert failed == []
    assert {"node2", "node3"} <= set(after)


def wait_for(condition: object, seconds: float, otherwise: str) -> None:
    """Wait until the condition holds, looking ten times a second.

    :raises AssertionError: with the text when it does not hold in time
    """
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)
