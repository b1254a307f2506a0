# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""No system at all: clients ask the one peer themselves. What the others cost is counted from here."""

from __future__ import annotations

from pathlib import Path

from bench.systems.base import Peer, System


class Direct(System):
    """All slots busy: the engine itself lets requests wait. The node dies: everything fails."""

    name = "direct"

    def unfit(self, peers: list[Peer]) -> str:
        return "" if len(peers) == 1 else "without a balancer there is one peer"

    def version(self) -> str:
        return ""

    def start(self, peers: list[Peer], folder: Path) -> None:
        self.address, self.port = peers[0].address, peers[0].port
