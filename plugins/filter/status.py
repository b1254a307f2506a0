# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of the playbooks status and stats: their reports. The logic is in module_utils/_status."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.filter.models import module_models
from ansible_collections.llm.cluster.plugins.module_utils import _status

HostVars = Mapping[str, Mapping[str, Any]]
Answers = dict[str, "_status.Answer | _status.Silent"]


def answers(hostvars: HostVars, hosts: list[str], variable: str) -> Answers:
    """Return what each host registered."""
    return {host: _status.answer_of(hostvars[host].get(variable)) for host in hosts}


def report(found: dict[str, Any], lines: list[str]) -> dict[str, str]:
    """Return a report as JSON and as text."""
    return {"json": json.dumps(found, indent=2, ensure_ascii=False), "text": "\n".join(lines)}


def status_report(
    hostvars: HostVars, nodes: list[str], balancers: list[str], peers: list[dict[str, Any]], prune: bool
) -> dict[str, str]:
    """Return the status as ``json`` and ``text`` from what the hosts registered, and the peers of the whole cluster."""
    wanted = {node: module_models(peer for peer in peers if peer["node"] == node) for node in nodes}
    found = _status.status(
        answers(hostvars, nodes, "llm_node_stats"), answers(hostvars, balancers, "__cluster_balancer"), wanted, prune
    )
    return report(found, _status.status_lines(found))


def stats_report(hostvars: HostVars, nodes: list[str], balancers: list[str]) -> dict[str, str]:
    """Return the stats as ``json`` and ``text`` from what the hosts registered."""
    found = _status.stats(
        answers(hostvars, nodes, "llm_node_stats"), answers(hostvars, balancers, "__cluster_balancer")
    )
    return report(found, _status.stats_lines(found))


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"stats_report": stats_report, "status_report": status_report}
