# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer of this collection, from the role's own template and Lua, with the role's defaults."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from balancer.harness import Balancer, wait_for
from bench.systems.base import ANSWER_SECONDS, QUEUE_SECONDS, WORKERS, Peer, System

PLACEMENT = Path(__file__).parents[2] / "lua" / "placement_probe.lua"
# Of nginx, by the pattern of their Debian packages.
PARTS = {"Lua module": "libnginx-mod-http-lua", "LuaJIT": "libluajit*-5.1-2"}


def debian(package: str) -> str:
    """The version that is installed; empty on another distribution."""
    if not shutil.which("dpkg-query"):
        return ""
    command = ["dpkg-query", "--show", "--showformat=${Version} ", package]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return found[0] if found else ""


class Ours(System):
    """All slots busy: requests wait in one queue per set of peers, first come, first served, and are placed once a slot
    is free; 503 after the time.

    A node dies: the first refused connection takes it out, what had not started goes back with its old place and is
    placed elsewhere; streams under way end with an error event. A node hangs: the same once two probes failed (4 s),
    but streams under way are given 30 s.
    """

    policy = ""

    def __init__(self) -> None:
        super().__init__()
        self.balancer: Balancer | None = None
        self.folder = Path()

    def missing(self) -> str:
        if not shutil.which("nginx"):
            return "nginx with its Lua module is not installed: apt install nginx libnginx-mod-http-lua lua-cjson"
        return ""

    def version(self) -> str:
        said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
        parts = [f"policy {self.policy}, on {said.strip().removeprefix('nginx version: ')}"]
        parts += [f"{name} {found}" for name, package in PARTS.items() if (found := debian(package))]
        return ", ".join(parts)

    def start(self, peers: list[Peer], folder: Path) -> None:
        self.folder = folder
        self.balancer = Balancer(workers=WORKERS)
        try:
            # The harness keeps small what tests need small; these are the role's defaults.
            self.balancer.render(
                balancer_worker_connections=16384,
                balancer_rlimit_nofile=65536,
                balancer_log_level="warn",
                balancer_prefix_dict_mb=32,
                balancer_max_body_bytes=16 << 20,
            )
            self.balancer.restart()
            self.route(peers)
        except BaseException:
            self.stop()
            raise
        self.port = self.balancer.port

    def route(self, peers: list[Peer]) -> None:
        """Put the table of these peers, and wait until all are up."""
        assert self.balancer
        entries = [
            {
                "name": peer.name,
                "node": peer.name,
                "engine": "llama_cpp",
                "address": peer.address,
                "port": peer.port,
                "models": list(peer.models),
                "slots": peer.slots,
                "weight": peer.weight,
            }
            for peer in peers
        ]
        # More may wait than by default (1,000): the others' queues have no bound either.
        limits = {"queue_timeout": QUEUE_SECONDS, "first_byte_timeout": ANSWER_SECONDS, "queue_length": 10000}
        table = {"schema": 1, "require_key": False, "policy": self.policy, "peers": entries, "limits": limits}
        answer = self.balancer.put(table, ready=False)
        if answer.status != 200:
            raise RuntimeError(f"the balancer refuses the table: {answer.body!r}")
        wait_for(self.all_up, 30, "all peers are up")

    def all_up(self) -> bool:
        assert self.balancer
        return all(peer["health"] == "up" for peer in self.balancer.state()["peers"])

    def placement_us(self) -> float:
        """Microseconds of processor time in which a request is given a slot that is free. nginx is reloaded for it."""
        assert self.balancer
        found: float = self.balancer.probe(PLACEMENT)["microseconds"]
        return found

    def stop(self) -> None:
        if self.balancer:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "ours-error.log").write_text(self.balancer.errors())
            self.balancer.destroy()
            self.balancer = None

    def pids(self) -> list[int]:
        if not self.balancer or not self.balancer.process:
            return []
        return [self.balancer.process.pid, *self.balancer.worker_pids()]


class Affinity(Ours):
    name = policy = "affinity"
    label = "llm.cluster, affinity"


class LeastBusy(Ours):
    name = policy = "least_busy"
    label = "llm.cluster, least_busy"


class WeightedRoundRobin(Ours):
    name = policy = "weighted_round_robin"
    label = "llm.cluster, weighted_round_robin"
