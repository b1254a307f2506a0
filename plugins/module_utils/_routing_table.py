# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer's routing table: one form for comparing, what is wrong with one, how two differ.

Pure functions on plain dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _routes

HIDDEN = "sha256:...hidden"
SHA256 = re.compile(r"^[0-9a-f]{64}$")
POLICIES = ("affinity", "least_busy", "weighted_round_robin")
KEY_NUMBERS = ("requests_per_minute", "concurrent")
MOST_PER_KEY = 1000000

# name: (default, least, most). The balancer has the same (LIMITS in peers.lua) and shows them in the table in force.
LIMITS: dict[str, tuple[float, float, float]] = {
    "connect_timeout": (1, 0.05, 60),
    "first_byte_timeout": (300, 0.1, 86400),
    "stream_idle_timeout": (30, 0.1, 86400),
    "max_body_bytes": (16777216, 1024, 1073741824),
    "max_answer_bytes": (67108864, 1024, 1073741824),
    "queue_timeout": (60, 0, 86400),
    "queue_length": (1000, 0, 100000),
    "queue_bytes": (268435456, 0, 17179869184),
    "queue_window": (16, 1, 256),
    "ending_timeout": (60, 0, 3600),
    "affinity_max_wait": (2, 0, 3600),
    "affinity_ttl": (600, 0, 86400),
    "affinity_blocks": (128, 1, 1024),
    "probe_interval": (2, 0.1, 3600),
    "probe_timeout": (1, 0.05, 60),
    "probe_failures": (2, 1, 100),
    "probe_successes": (2, 1, 100),
    "canary_interval": (0, 0, 86400),
    "canary_timeout": (30, 0.1, 3600),
    "passive_failures": (3, 1, 100),
    "passive_window": (30, 1, 3600),
    "hold_down": (4, 0, 3600),
    "hold_down_max": (60, 0, 86400),
    "return_time": (10, 0, 3600),
    "busy_rest": (0.5, 0, 60),
    "slow_share": (0.5, 0, 1),
    "retry_budget": (0.2, 0, 1),
}


def normal_number(value: Any) -> Any:
    """Return a number in its shortest form (``1.0`` and ``"1"`` → ``1``), anything else unchanged."""
    if isinstance(value, bool):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return int(number) if number.is_integer() else number


def normal_label(value: Any) -> Any:
    """Return a label in one form. A text stays as it is written, also one that looks like a number (a version)."""
    if isinstance(value, (list, tuple)):
        return [normal_label(one) for one in value]
    if isinstance(value, Mapping):  # Lua doesn't know an empty list from an empty object
        return [] if not value else dict(value)
    return value if isinstance(value, str) else normal_number(value)


def normal_route(route: Any) -> Any:
    """Return a route without what is null or empty and with numbers in one form. What is no object stays."""
    if isinstance(route, Mapping):
        parts = {name: normal_route(value) for name, value in sorted(route.items())}
        return {name: value for name, value in parts.items() if value is not None and value != {}}
    return normal_label(route)


def normal_key(key: Mapping[str, Any]) -> dict[str, Any]:
    """Return a key's entry with only those of its limits that are set."""
    limits = {name: normal_number(key.get(name)) for name in KEY_NUMBERS}
    limits["models"] = list(key.get("models") or []) or None
    return {
        "name": key["name"],
        "sha256": key["sha256"].lower(),
        **{name: value for name, value in limits.items() if value is not None},
    }


def normal_peer(peer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a peer with every field present and in one form."""
    return {
        "name": peer.get("name"),
        "node": peer.get("node") or peer.get("name"),
        "engine": peer.get("engine"),
        "address": peer.get("address"),
        "port": normal_number(peer.get("port")),
        "models": list(peer.get("models") or []),
        "slots": normal_number(peer.get("slots")),
        "weight": normal_number(1 if peer.get("weight") is None else peer.get("weight")),
        "backup": bool(peer.get("backup")),
        "labels": {name: normal_label(value) for name, value in sorted(dict(peer.get("labels") or {}).items())},
    }


def normal_table(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table with every field present and numbers in one form, so that equal means equal.

    An empty list or object may come as either: Lua doesn't know them apart.
    """
    limits = dict(table.get("limits") or {})
    return {
        "schema": normal_number(table.get("schema") or 1),
        "default_model": table.get("default_model") or "",
        "require_key": table.get("require_key") is not False,
        "policy": table.get("policy") or POLICIES[0],
        "peers": [normal_peer(peer) for peer in table.get("peers") or []],
        "keys": [normal_key(key) for key in table.get("keys") or []],
        "routes": [normal_route(route) for route in table.get("routes") or []],
        "limits": {
            name: normal_number(default if limits.get(name) is None else limits[name])
            for name, (default, _least, _most) in LIMITS.items()
        },
    }


def table_problems(table: Mapping[str, Any], unread_labels: Mapping[str, Any] | None = None) -> list[str]:
    """Return what is wrong with a normal table, a sentence each; only what can be known without the balancer.

    :param unread_labels: node → names of labels that could not be read, which is no reason to refuse a route
    """
    peers = table["peers"]
    found = [] if peers else ["it has no peers"]
    found += [problem for peer in peers for problem in peer_problems(peer)]
    found += [f"two peers are named {name}" for name in repeated(peer["name"] for peer in peers)]
    found += [
        f"two peers have the address {address}"
        for address in repeated(f"{peer['address']}:{peer['port']}" for peer in peers)
    ]
    served = {model for peer in peers for model in peer["models"]}
    if table["default_model"] and not served.intersection(_routes.forms(table["default_model"])):
        known = ", ".join(sorted(served)) or "none"
        found.append(f"no peer serves default_model {table['default_model']} (served: {known})")
    if table["require_key"] and not table["keys"]:
        found.append("require_key is on and there is no key, so nobody could ask anything")
    found += [f"two keys are named {name}" for name in repeated(key["name"] for key in table["keys"])]
    found += [
        f"key {key['name']}: sha256 must be 64 hexadecimal digits"
        for key in table["keys"]
        if not SHA256.match(key["sha256"])
    ]
    found += [problem for key in table["keys"] for problem in limit_problems(key)]
    if table["policy"] not in POLICIES:
        found.append(f"policy is {table['policy']}, it must be one of {', '.join(POLICIES)}")
    found += [
        f"limit {name} is {value}, it must be a number from {LIMITS[name][1]} to {LIMITS[name][2]}"
        for name, value in table["limits"].items()
        if not _routes.is_number(value) or not LIMITS[name][1] <= value <= LIMITS[name][2]
    ]
    if not found:  # they are checked against the peers, which must make sense for that
        unread = unread_labels or {}
        found += _routes.problems(
            table["routes"], [{**peer, "unknown_labels": unread.get(peer["node"])} for peer in peers]
        )
    return found


def limit_problems(key: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one key's limits."""
    found = [
        f"{name} is {key[name]}, it must be a whole number from 1 to {MOST_PER_KEY}"
        for name in KEY_NUMBERS
        if name in key and not (_routes.is_number(key[name]) and 1 <= key[name] <= MOST_PER_KEY and key[name] % 1 == 0)
    ]
    if not all(_routes.is_text(model) for model in key.get("models") or []):
        found.append("models must be a list of names, in which * stands for anything")
    return [f"key {key['name']}: {problem}" for problem in found]


def peer_problems(peer: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with one peer."""
    found = []
    if not 1 <= peer["port"] <= 65535:
        found.append(f"port {peer['port']} is not in 1 to 65535")
    if peer["slots"] < 1:
        found.append(f"slots is {peer['slots']}, it must be at least 1")
    if peer["weight"] <= 0:
        found.append(f"weight is {peer['weight']}, it must be above 0")
    if not peer["address"]:
        found.append("address is empty")
    if not peer["models"]:
        found.append("it serves no model")
    return [f"peer {peer['name'] or '(without a name)'}: {problem}" for problem in found]


def repeated(values: Iterable[str]) -> list[str]:
    """Return the values that occur more than once, sorted."""
    seen: set[str] = set()
    twice: set[str] = set()
    for value in values:
        (twice if value in seen else seen).add(value)
    return sorted(twice)


def by_name(entries: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return entries by their names."""
    return {entry["name"]: entry for entry in entries}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return how two normal tables differ, a line each; a key's hash is never part of it."""
    lines = [
        f"{field}: {before[field]} -> {after[field]}"
        for field in ("schema", "default_model", "require_key", "policy")
        if before[field] != after[field]
    ]
    for kind, field in (("peer", "peers"), ("key", "keys"), ("route", "routes")):
        old, new = by_name(before[field]), by_name(after[field])
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                lines.append(f"{kind} {name}: removed")
            elif name not in old:
                lines.append(f"{kind} {name}: added")
            elif old[name] != new[name]:
                lines.append(f"{kind} {name}: {fields_changed(old[name], new[name])}")
    order = list(by_name(after["routes"]))
    if [name for name in by_name(before["routes"]) if name in order] != [
        name for name in order if name in by_name(before["routes"])
    ]:
        lines.append(f"routes: now in the order {', '.join(order)}")
    if before["limits"] != after["limits"]:
        lines.append("limits: " + fields_changed(before["limits"], after["limits"]))
    return lines


def fields_changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the fields that differ as ``slots 2 -> 4, weight 1 -> 2``; a key's hash only as changed."""
    names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    return ", ".join(
        "changed" if name == "sha256" else f"{name} {before.get(name, 'none')} -> {after.get(name, 'none')}"
        for name in names
    )


def diff_view(table: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a normal table for showing: by name, with hashes hidden and those marked that differ from the other's."""
    known = by_name(other["keys"]) if other else {}

    def shown_key(key: Mapping[str, Any]) -> dict[str, Any]:
        changed = known.get(key["name"], key)["sha256"] != key["sha256"]
        return {**unnamed(key), "sha256": HIDDEN + (" (changed)" if changed else "")}

    return {
        **table,
        "peers": {peer["name"]: unnamed(peer) for peer in table["peers"]},
        "keys": {key["name"]: shown_key(key) for key in table["keys"]},
    }


def unnamed(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry without its name."""
    return {field: value for field, value in entry.items() if field != "name"}


def with_kept_labels(
    table: Mapping[str, Any], before: Mapping[str, Any], keep: Mapping[str, Iterable[str]]
) -> dict[str, Any]:
    """Return a normal table in which labels that could not be read are as in the table before.

    :param keep: node → names of labels
    """
    known: dict[str, Mapping[str, Any]] = {}
    for peer in before["peers"]:
        known.setdefault(peer["node"], peer["labels"])

    def kept(peer: Mapping[str, Any]) -> dict[str, Any]:
        old = known.get(peer["node"], {})
        labels = {name: old[name] for name in keep.get(peer["node"], ()) if name in old}
        return {**peer, "labels": dict(sorted({**labels, **peer["labels"]}.items()))}

    return {**table, "peers": [kept(peer) for peer in table["peers"]]}
