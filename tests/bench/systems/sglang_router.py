# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The router of SGLang (its model gateway), from PyPI: it knows what is in the engines' caches."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from balancer.harness import free_port
from bench.systems.base import ANSWER_SECONDS, Peer, Program, System
from bench.systems.environment import Environment, variables

START_SECONDS = 60


class SglangRouter(System):
    """All slots busy: requests are spread all the same and wait inside the engines. It knows no slots and no weights.

    A node dies: what it had not begun to answer is tried elsewhere; a stream just ends. A node hangs: new requests go
    elsewhere after two probes, those in its hands wait for the whole time-out.

    Its own queue (--max-concurrent-requests) stays off: of 700 requests at load 0.9, five were not woken and got 408
    after the whole time.

    It writes bodies anew, without fields that it does not know, and with `max_completion_tokens` for `max_tokens`.
    """

    name = "sglang_router"
    label = "sglang-router, cache_aware"
    environment = Environment("sglang-router", "sglang-router")

    def missing(self) -> str:
        return self.environment.make()

    def installed(self) -> bool:
        return self.environment.ready()

    def version(self) -> str:
        return self.environment.installed_version("sglang-router")

    def unfit(self, peers: list[Peer]) -> str:
        if len({frozenset(peer.models) for peer in peers}) > 1:
            # --enable-igw ends at its start if it cannot fetch the vocabulary of another vendor's tokenizer.
            return "sglang-router's mode for several models needs the internet to start"
        return ""

    def start(self, peers: list[Peer], folder: Path) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        command = [self.environment.path("python"), "-m", "sglang_router.launch_router", *arguments(peers, self.port)]
        program = Program(command, folder / "sglang-router.log", variables())
        self.run(program, lambda: self.healthy() >= len(peers), START_SECONDS)

    def healthy(self) -> int:
        """How many workers it knows as healthy."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=5)
        try:
            connection.request("GET", "/workers")
            workers = json.loads(connection.getresponse().read())["workers"]
            return sum(bool(worker["is_healthy"]) for worker in workers)
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return 0
        finally:
            connection.close()


def arguments(peers: list[Peer], port: int) -> list[str]:
    # The balance thresholds count requests: by default load decides only when one worker has 64 more than another,
    # which engines with a handful of slots never have, and all chats stay on one; its guide says to lower them for a
    # more even load. The cache threshold is the share of a prompt that a worker must know: at 0.3, the default, what
    # the system's prompt says makes all chats alike. Tried for 10 s each with multi_turn at load 0.65 (2 slots):
    # differences of 1, 2, 4 and 64 at 0.3 gave first tokens after 94, 96, 152 and 340 ms on average; 1, 2 and 4 at 0.7
    # after 91, 73 and 71; 2 at 0.5 after 91. With sweep at load 0.9 (4 slots) 4 at 0.7 was not behind 2 at 0.3 (219
    # and 232 ms).
    spare = min(peer.slots for peer in peers)
    options = {
        "host": "127.0.0.1",
        "port": port,
        "policy": "cache_aware",
        "cache-threshold": 0.7,
        "balance-abs-threshold": spare,
        "balance-rel-threshold": 1.1,
        "worker-startup-timeout-secs": START_SECONDS,
        "worker-startup-check-interval": 1,
        # As often as the others look; its defaults are a minute and three failures.
        "health-check-interval-secs": 2,
        "health-check-timeout-secs": 1,
        "health-failure-threshold": 2,
        "health-success-threshold": 2,
        "cb-failure-threshold": 2,
        "cb-success-threshold": 1,
        "cb-timeout-duration-secs": 4,
        "request-timeout-secs": ANSWER_SECONDS,
        "shutdown-grace-period-secs": 1,
        "history-backend": "none",
        "prometheus-host": "127.0.0.1",
        "prometheus-port": free_port(),
        "log-level": "error",
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return [*given, "--worker-urls", *(f"http://{peer.address}:{peer.port}" for peer in peers)]
