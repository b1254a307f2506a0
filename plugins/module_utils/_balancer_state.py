# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a balancer says of itself (``GET /state``), in one stable form.

Standard library only, no Ansible import. Every field is there whatever the balancer left out, since Lua drops what is
nil and doesn't tell an empty list from an empty object.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOTHING: dict[str, Any] = {
    "peer": {
        "name": "",
        "node": "",
        "engine": "",
        "address": "",
        "port": 0,
        "models": [],
        "lacks": [],
        "slots": 0,
        "usable": 0,
        "weight": 1,
        "backup": False,
        "state": "probing",
        "health": "probing",
        "reason": "",
        "since": None,
        "held_down_until": None,
        "resting": False,
        "slow": 0,
        "busy": 0,
        "ending": 0,
        "waiting": 0,
        "minute": {},
        "in_flight": [],
        "drains": [],
    },
    "minute": {"requests_per_minute": None, "answered_per_minute": None, "latency": None, "timed_out": None},
    "request": {"id": "", "model": "", "key": None, "seconds": 0, "ending": False},
    "drain": {"name": "", "owner": "", "reason": "", "since": None},
    "queue": {"waiting": 0, "bytes": 0, "oldest": None, "drain_rate": 0, "sets": []},
    "key": {"name": "", "requests_per_minute": None, "requests": None, "concurrent": None, "at_work": None},
    "worker": {"pid": 0, "held": 0},
}


def _filled(kind: str, given: Any) -> dict[str, Any]:
    """Return the fields of a kind as given; those that are not given have the value that means nothing."""
    given = given if isinstance(given, Mapping) else {}
    return {
        name: _list(given.get(name)) if default == [] else default if given.get(name) is None else given[name]
        for name, default in _NOTHING[kind].items()
    }


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _all(kind: str, given: Any) -> list[dict[str, Any]]:
    return [_filled(kind, each) for each in _list(given)]


def _peer(given: Any) -> dict[str, Any]:
    peer = _filled("peer", given)
    return {
        **peer,
        "minute": _filled("minute", peer["minute"]),
        "in_flight": _all("request", peer["in_flight"]),
        "drains": _all("drain", peer["drains"]),
    }


def read_state(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to ``GET /state`` with its peers by node and every field present."""
    nodes: dict[str, list[dict[str, Any]]] = {}
    for peer in map(_peer, _list(answer.get("peers"))):
        nodes.setdefault(peer["node"], []).append(peer)
    return {
        "version": answer.get("version") or 0,
        "default_model": answer.get("default_model") or "",
        "policy": answer.get("policy") or "",
        "nodes": nodes,
        "drains": _all("drain", answer.get("drains")),
        "queue": _filled("queue", answer.get("queue")),
        "minute": _filled("minute", answer.get("minute")),
        "keys": _all("key", answer.get("keys")),
        "workers": _all("worker", answer.get("workers")),
    }


def peers_named(state: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the peers that a name means: all of a node, or one peer."""
    return [peer for peers in state["nodes"].values() for peer in peers if name in (peer["node"], peer["name"])]


def known_names(state: Mapping[str, Any]) -> list[str]:
    """Return every name that a drain can mean, sorted."""
    return sorted({*state["nodes"], *(peer["name"] for peers in state["nodes"].values() for peer in peers)})


def marks_on(state: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return the drain marks that were set under this very name: reasons by owner."""
    return {mark["owner"]: mark["reason"] for mark in state["drains"] if mark["name"] == name}
