# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the drift report. The logic is in module_utils/_drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _drift
from ansible_collections.llm.cluster.plugins.module_utils._table import text_table

HEADINGS = ("node", "state", "model", "wanted", "there", "")


def node_drift(stats: Mapping[str, Any] | None, wanted: list[dict[str, Any]], prune: bool = False) -> dict[str, Any]:
    """Return how a node differs from what is wanted; without what node_stats returned it is unreachable."""
    reached = stats and not stats.get("unreachable")
    return _drift.node_drift(stats if reached else None, wanted, prune)


def drift_report(nodes: Mapping[str, Mapping[str, Any]], unlocked: list[str]) -> dict[str, Any]:
    """Return the report on the nodes: ``result`` for machines, ``lines`` (a table) and ``problems`` for people."""
    result = _drift.report(nodes, unlocked)
    return {
        "result": result,
        "lines": text_table(_drift.rows(nodes), HEADINGS),
        "problems": _drift.problems(result),
    }


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"drift_report": drift_report, "node_drift": node_drift}
