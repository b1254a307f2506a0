# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The LiteLLM proxy, from PyPI, without a database."""

from __future__ import annotations

import json
import time
from pathlib import Path

from balancer.harness import free_port
from bench.systems.base import ANSWER_SECONDS, WORKERS, Peer, Program, System, weights
from bench.systems.environment import Environment, variables
from load.processor import processor_time

# Its production page: log errors only, no .env file, set a request time-out, and on a single machine as many workers as
# processors. The prices of models come from its package: it needs no internet to start. No client needs a key here.
VARIABLES = {
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "DISABLE_ADMIN_UI": "True",
}
START_SECONDS = 180


class LiteLLM(System):
    """All slots busy: requests are spread all the same, by chance, and wait inside the engines.

    A node dies: its requests are tried again, by chance elsewhere; streams under way end with an error event. A node
    hangs: those in its hands wait for the whole time-out.
    """

    name = "litellm"
    label = "LiteLLM, simple-shuffle"
    # The strategy that its documentation recommends, by weights, which are here what the peers can take.
    strategy = "simple-shuffle"
    workers = WORKERS
    environment = Environment("litellm", "litellm[proxy]")

    def missing(self) -> str:
        return self.environment.make()

    def installed(self) -> bool:
        return self.environment.ready()

    def version(self) -> str:
        return self.environment.installed_version("litellm")

    def start(self, peers: list[Peer], folder: Path) -> None:
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "litellm.yaml"
        file.write_text(json.dumps(self.configuration(peers), indent=1))  # JSON is YAML
        command = [self.environment.path("litellm"), "--config", str(file.resolve()), "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--num_workers", str(self.workers), "--telemetry", "False"]
        # Workers are killed and started again, for ever, if they are not up within this time, by default five seconds.
        command += ["--timeout_worker_healthcheck", str(START_SECONDS)]
        program = Program(command, folder / "litellm.log", variables(**VARIABLES))
        self.run(program, lambda: self.up(program), START_SECONDS)

    def up(self, program: Program) -> bool:
        """Does it answer, and is none of its workers still busy with its start? One that answers may be the first."""
        if "Application startup failed" in program.tail(100_000):  # it would start its workers again and again
            raise RuntimeError(f"LiteLLM does not start: {program.tail()}")
        if not self.listens("/health/liveliness"):
            return False
        before = processor_time(program.pids())
        time.sleep(0.5)
        return processor_time(program.pids()) - before < 0.1

    def configuration(self, peers: list[Peer]) -> dict[str, object]:
        share = weights(peers, 1000)
        deployments = [
            {
                "model_name": model,
                "litellm_params": {
                    "model": f"openai/{model}",
                    "api_base": f"http://{peer.address}:{peer.port}/v1",
                    "api_key": "none",
                    "weight": share[peer.name],
                },
                "model_info": {"id": f"{peer.name}-{model}"},
            }
            for peer in peers
            for model in peer.models
        ]
        return {
            "model_list": deployments,
            # Its guide's way to leave out a node that fails: one failure is forgiven, then it rests.
            "router_settings": {
                "routing_strategy": self.strategy,
                "num_retries": 3,
                "allowed_fails": 1,
                "cooldown_time": 5,
            },
            "litellm_settings": {"request_timeout": ANSWER_SECONDS, "set_verbose": False, "json_logs": True},
            "general_settings": {"disable_error_logs": True, "disable_spend_logs": True},
        }


class LiteLLMLeastBusy(LiteLLM):
    """Counts requests under way, so it has one worker: several would need a Redis to count together.

    All slots busy: requests wait inside the engine that has the fewest, however many slots it has. A node dies: it
    looks the least busy, so some of its requests are tried there until they have no try left and get 500, until it
    rests.
    """

    name = "litellm_least_busy"
    label = "LiteLLM, least-busy"
    strategy = "least-busy"
    workers = 1
