# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role sync: from what hosts registered to the plan and back. The logic is in module_utils/_sync_plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _drift, _sync_marks, _sync_plan, _verify
from ansible_collections.llm.cluster.plugins.module_utils._table import text_table

HostVars = Mapping[str, Mapping[str, Any]]
Peers = Sequence[Mapping[str, Any]]


def registered(hostvars: HostVars, hosts: Iterable[str], variable: str) -> dict[str, Mapping[str, Any] | None]:
    """Return a task's results by host; None where it gave none."""
    results: dict[str, Mapping[str, Any] | None] = {}
    for host in hosts:
        result = hostvars[host].get(variable) or {}
        gone = not result or result.get("failed") or result.get("unreachable") or result.get("skipped")
        results[host] = None if gone else result
    return results


def _stats(hostvars: HostVars, nodes: Iterable[str]) -> dict[str, Mapping[str, Any] | None]:
    return registered(hostvars, nodes, "llm_node_stats")


def _infos(hostvars: HostVars, balancers: Iterable[str]) -> dict[str, Mapping[str, Any] | None]:
    return registered(hostvars, balancers, "__sync_info")


def sync_plan(
    peers: Peers,
    hostvars: HostVars,
    nodes: list[str],
    balancers: list[str],
    *,
    batch: int,
    min_available: int,
    run: str,
    take_over: bool = False,
) -> dict[str, Any]:
    """Return the plan of a sync, with ``preview`` for people."""
    infos = _infos(hostvars, balancers)
    made = _sync_plan.plan(
        peers,
        _stats(hostvars, nodes),
        infos,
        batch=int(batch),
        min_available=int(min_available),
        run=run,
        at_work=sync_others([info for info in infos.values() if info is not None], run, take_over),
    )
    rows, notes = _sync_plan.preview(made, peers)
    return {**made, "preview": (text_table(rows, _sync_plan.HEADINGS) if rows else []) + notes}


def sync_turn(run: str, seconds: float) -> str:
    """Return the beginning of the mark of a run that is at work on a node for at most so many seconds."""
    return _sync_marks.turn(run, time.time() + float(seconds))


def sync_others(infos: Iterable[Mapping[str, Any]], run: str, take_over: bool = False) -> list[str]:
    """Return where other controllers' syncs are at work; nowhere if their turns are to be taken over."""
    return [] if take_over else _sync_marks.others(infos, run, time.time())


def sync_shortage(
    info: Mapping[str, Any],
    peers: Peers,
    without: list[str],
    least: int,
    before: Mapping[str, Any] | None = None,
) -> list[str]:
    """Return which models a balancer would have too few nodes for, without these."""
    models = [model["name"] for node in without for model in _sync_plan.wanted_models(peers, node)]
    return _sync_plan.shortage(info, models, without, int(least), before)


def sync_questions(peers: Peers, switched: list[str], prompt: str, max_tokens: int) -> list[dict[str, Any]]:
    """Return the questions that prove a node's models, those that were switched first."""
    return _verify.peer_questions(_sync_plan.asked_peers(peers, switched), prompt, int(max_tokens))


def sync_table(table: Mapping[str, Any], hostvars: HostVars, nodes: list[str], balancers: list[str]) -> dict[str, Any]:
    """Return a routing table that follows what these nodes have; others keep what the tables in force say."""
    infos = [info for info in _infos(hostvars, balancers).values() if info is not None]
    return _sync_plan.followed(table, _stats(hostvars, nodes), infos) if table else {}


def sync_standing(plan: Mapping[str, Any], peers: Peers, hostvars: HostVars, nodes: list[str]) -> list[str]:
    """Return a table of where things stand after a sync."""
    ended = {node: str(hostvars[node]["__sync_ended"]) for node in nodes if hostvars[node].get("__sync_ended")}
    rows = _sync_plan.standing(plan, peers, _stats(hostvars, nodes), ended)
    return text_table(rows, ("node", "model", "served", "state"))


def sync_result(peers: Peers, hostvars: HostVars, nodes: list[str], prune: bool) -> dict[str, Any]:
    """Return what is written for programs after a sync: the drift that is left."""
    stats = _stats(hostvars, nodes)
    return _drift.report(
        {node: _drift.node_drift(seen, _sync_plan.wanted_models(peers, node), prune) for node, seen in stats.items()}
    )


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "sync_at_versions": _sync_plan.at_versions,
            "sync_holds": _sync_marks.holds,
            "sync_not_loaded": _sync_plan.not_loaded,
            "sync_others": sync_others,
            "sync_plan": sync_plan,
            "sync_questions": sync_questions,
            "sync_result": sync_result,
            "sync_same_models": _sync_plan.same_models,
            "sync_shortage": sync_shortage,
            "sync_standing": sync_standing,
            "sync_table": sync_table,
            "sync_turn": sync_turn,
        }
