# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An Ollama server now. It says nothing of requests that it works on or that wait: only the balancer knows those."""

from __future__ import annotations

from typing import Any, Mapping

from ansible_collections.llm.cluster.plugins.module_utils._engines import call_engine
from ansible_collections.llm.cluster.plugins.module_utils._stats import Part, UnreadableError
from ansible_collections.llm.cluster.plugins.module_utils._stats._engine import EngineState, asked

VERSION = "version"


def parts(base: str, timeout: float) -> dict[str, Part]:
    """Return what has to be asked."""

    def version() -> str:
        answer = asked(lambda: call_engine(base, "GET", "/api/version", timeout=timeout), timeout)
        if not isinstance(answer, dict) or not answer.get("version"):
            raise UnreadableError(f"{base} is no Ollama: it doesn't tell its version")
        return str(answer["version"])

    return {VERSION: Part(version, timeout)}


def state(read: Mapping[str, Any], failed: Mapping[str, str], slots: int | None) -> EngineState:
    """Return the server's state from the answers, and from the reasons for those that didn't come."""
    return EngineState("ollama", read.get(VERSION), VERSION in read, failed.get(VERSION, ""), None, slots, None)
