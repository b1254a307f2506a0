# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role verify: what to ask, and the report. The logic is in module_utils/_verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _verify
from ansible_collections.llm.cluster.plugins.module_utils._table import text_table

HEADINGS = ("who", "asked from", "model", "how", "seconds", "outcome")


def endpoint_question(stream: bool, question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the question to an endpoint, plain or streamed."""
    return {**question, "stream": stream}


def verify_report(
    hostvars: Mapping[str, Mapping[str, Any]], nodes: list[str], balancers: list[str]
) -> dict[str, list[str]]:
    """Return ``lines`` (the table) and ``problems`` (sentences) from what the hosts registered."""

    def registered(hosts: list[str], variable: str) -> dict[str, list[dict[str, Any]] | None]:
        return {host: (hostvars[host].get(variable) or {}).get("results") for host in hosts}

    judged = _verify.report(
        registered(nodes, "__verify_local"),
        registered(balancers, "__verify_remote"),
        registered(balancers, "__verify_endpoint_answers"),
    )
    return {"lines": text_table(judged["rows"], HEADINGS), "problems": judged["problems"]}


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "endpoint_question": endpoint_question,
            "peer_questions": _verify.peer_questions,
            "verify_report": verify_report,
        }
