# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Nodes that run the real share server and the real fetch, each in a namespace of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distribution.lan import Lan

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SHARE = ROOT / "plugins" / "module_utils" / "_share_server.py"
TOKEN = "a-token-of-this-test-run"
PORT = 8090


@dataclass
class Node:
    """One node: its folder and its two programs."""

    number: int
    folder: Path
    share: subprocess.Popen[str] | None = None
    fetch: subprocess.Popen[str] | None = None
    answer: dict[str, Any] = field(default_factory=dict)

    @property
    def partials(self) -> Path:
        return self.folder / "partial"

    @property
    def models(self) -> Path:
        return self.folder / "models"


class Cluster:
    """An origin beyond a link, and nodes that pass its file on."""

    def __init__(self, folder: Path, model: Path, nodes: int, rate_mbit: int) -> None:
        self.model = model
        self.size = model.stat().st_size
        self.digest = "sha256:" + hashlib.sha256(model.read_bytes()).hexdigest()
        self.name = self.digest.replace(":", "-")
        self.origin: subprocess.Popen[str] | None = None
        self.nodes = [Node(number, folder / f"node{number}") for number in range(1, nodes + 1)]
        self.lan = Lan(nodes, rate_mbit)
        folder.mkdir(parents=True)
        self.token = folder / "token"
        self.token.write_text(TOKEN)
        for node in self.nodes:
            for path in (node.models / "blobs", node.partials):
                path.mkdir(parents=True)

    def start_origin(self) -> None:
        """Have the file at the origin."""
        self.origin = self._start(0, HERE / "origin.py", self.lan.address(0), "80", str(self.model))
        self._await(0, 80)

    def start_shares(self, token: str = TOKEN, max_rate: int = 0) -> None:
        """Have every node serve what it has and gets."""
        for node in self.nodes:
            own = node.folder / "token"
            own.write_text(token)
            node.share = self._start(
                node.number,
                SHARE,
                *("--address", self.lan.address(node.number), "--port", str(PORT), "--max-rate", str(max_rate)),
                *("--models-dir", str(node.models), "--partial-dir", str(node.partials)),
                *("--token-file", str(own), "--allowed", ",".join(self.lan.address(n.number) for n in self.nodes)),
            )
        for node in self.nodes:
            self._await(node.number, PORT)

    def fetch(self, *, origin: bool = True, **asked: Any) -> None:
        """Begin on all nodes at once, each with its predecessors, the nearest first."""
        for node in self.nodes:
            self.prepare(node, [n.number for n in reversed(self.nodes[: node.number - 1])], origin=origin, **asked)
        for node in self.nodes:
            self.release(node)

    def fetch_one(self, node: Node, peers: Iterable[int], *, origin: bool = True, **asked: Any) -> dict[str, Any]:
        """Fetch on one node; return what came of it."""
        self.prepare(node, peers, origin=origin, **asked)
        self.release(node)
        self.wait([node])
        return node.answer

    def prepare(self, node: Node, peers: Iterable[int], *, origin: bool = True, **asked: Any) -> None:
        """Have a node's fetch ready to begin."""
        question = {
            "peers": [f"http://{self.lan.address(number)}:{PORT}" for number in peers],
            "origin": f"http://{self.lan.address(0)}/model.gguf" if origin else "",
            "digest": self.digest,
            "token": TOKEN,
            # As filter chain gives it, only faster.
            "patience": 3.0 + 2.0 * max(node.number - 2, 0),
            "part": str(self.part(node)),
            "blob": str(self.blob(node)),
            "max_rate": 0,
            **asked,
        }
        path = node.folder / "fetch.json"
        path.write_text(json.dumps(question), encoding="utf-8")
        node.fetch = self._start(node.number, HERE / "fetcher.py", str(path))

    @staticmethod
    def release(node: Node) -> None:
        """Let it begin."""
        assert node.fetch and node.fetch.stdout and node.fetch.stdin
        assert node.fetch.stdout.readline() == "ready\n"
        node.fetch.stdin.write("\n")
        node.fetch.stdin.flush()

    def wait(self, nodes: Iterable[Node] | None = None) -> float:
        """Wait until the nodes' fetches have ended; return how long the slowest took."""
        for node in self.nodes if nodes is None else nodes:
            assert node.fetch
            said, _ = node.fetch.communicate(timeout=60)
            assert node.fetch.returncode == 0
            node.answer = json.loads(said)
        return max(node.answer["seconds"] for node in (self.nodes if nodes is None else nodes))

    def part(self, node: Node) -> Path:
        """The file on its way."""
        return node.partials / f"{self.name}.part"

    def blob(self, node: Node) -> Path:
        """The file in the store."""
        return node.models / "blobs" / self.name

    def right(self, node: Node) -> bool:
        """Whether the node has the file, whole, and nothing is left beside it."""
        there = self.blob(node)
        if not there.exists() or "sha256:" + hashlib.sha256(there.read_bytes()).hexdigest() != self.digest:
            return False
        return list(node.partials.iterdir()) == [] and list(there.parent.iterdir()) == [there]

    def copies_from_origin(self) -> float:
        """How many times the file's bytes crossed the internet link, packets' headers and all."""
        return self.lan.sent(0) / self.size

    def await_bytes(self, node: Node, share: float) -> None:
        """Wait until a node has a share of the file."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                if self.part(node).stat().st_size >= share * self.size:
                    return
            time.sleep(0.02)
        raise AssertionError(f"node {node.number} never had {share:.0%} of the file")

    def _start(self, number: int, program: Path, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.lan.enter(number), sys.executable, str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "collections")},
        )

    def _await(self, number: int, port: int) -> None:
        """Wait until a host listens, as seen from itself."""
        probe = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()"
        command = [*self.lan.enter(number), sys.executable, "-S", "-c", probe, self.lan.address(number), str(port)]
        deadline = time.monotonic() + 20
        while subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
            assert time.monotonic() < deadline, f"host {number} does not listen at {port}"
            time.sleep(0.05)

    @staticmethod
    def send_signal(program: subprocess.Popen[str] | None, number: signal.Signals) -> None:
        """Send a signal to a program, which ip replaced itself by."""
        assert program
        program.send_signal(number)

    def destroy(self) -> None:
        """End all programs, then the namespaces."""
        for program in [self.origin, *(p for node in self.nodes for p in (node.share, node.fetch))]:
            if program:
                program.kill()
                program.communicate()
        self.lan.destroy()
