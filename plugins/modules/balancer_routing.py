#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_routing
short_description: Put the whole routing table of a balancer
description:
  - The routing table says everything a balancer must know of its cluster - peers, models, keys, limits. This module
    compares the wanted table with the one in force and puts it if they differ.
  - A new table takes effect at once, without a reload, so no stream is cut. It survives restarts.
  - The balancer validates the table before it accepts it. One that it refuses leaves the old one in force.
  - Runs on the balancer itself and needs root, because the admin API is a Unix socket.
author:
  - llm.cluster contributors (@llm-cluster)
extends_documentation_fragment:
  - llm.cluster.admin_socket
attributes:
  check_mode:
    support: full
    description: Validates the table as far as the host can without the balancer, and compares it with the one in force.
  diff_mode:
    support: full
    description: Shows the table before and after. A key's hash is hidden; that it changed is shown.
options:
  table:
    description:
      - The table. Filter P(llm.cluster.routing_table#filter) makes it from an inventory.
      - The order of peers and keys has no meaning.
    type: dict
    required: true
    suboptions:
      schema:
        description: Version of the table's form.
        type: int
        choices: [1]
        default: 1
      default_model:
        description: The model of requests that name none. Empty for none.
        type: str
        default: ""
      require_key:
        description: Whether requests need one of the keys.
        type: bool
        default: true
      peers:
        description: Every address and port that requests can be sent to.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: The peer's name, unique in the table.
            type: str
            required: true
          node:
            description: The node that it belongs to. Defaults to the peer's name.
            type: str
          engine:
            description: What answers there.
            type: str
            choices: [llama_cpp, ollama]
            required: true
          address:
            description: Its IP address.
            type: str
            required: true
          port:
            description: Its port.
            type: int
            required: true
          models:
            description: The models it serves, by the names that clients use.
            type: list
            elements: str
            required: true
          slots:
            description: Requests it works on at a time.
            type: int
            required: true
          weight:
            description: Its share of requests relative to the others' at equal load.
            type: float
            default: 1
          backup:
            description: Whether it gets requests only when all others are out or drained.
            type: bool
            default: false
          labels:
            description: Free facts about the node.
            type: dict
            default: {}
      keys:
        description: Who may use the endpoint.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: The key's name, which logs show.
            type: str
            required: true
          sha256:
            description: The SHA-256 of the key, as 64 hexadecimal digits.
            type: str
            required: true
      limits:
        description: Time-outs in seconds, sizes in bytes, and counts.
        type: dict
        default: {}
        suboptions:
          connect_timeout:
            description: Seconds to wait for a peer to accept a connection.
            type: float
            default: 1
          first_byte_timeout:
            description: Seconds to wait for the first byte of a peer's answer.
            type: float
            default: 300
          stream_idle_timeout:
            description: Seconds that a stream may be silent between two events.
            type: float
            default: 30
          queue_timeout:
            description: Seconds that a request waits for a free slot.
            type: float
            default: 60
          max_body_bytes:
            description: The largest request body.
            type: float
            default: 16777216
          max_answer_bytes:
            description: The largest answer that is not streamed.
            type: float
            default: 67108864
          probe_interval:
            description: Seconds between two probes of a peer.
            type: float
            default: 2
          probe_timeout:
            description: Seconds to wait for a probe's answer.
            type: float
            default: 1
          probe_failures:
            description: Failed probes in a row after which a peer is taken out.
            type: float
            default: 2
          probe_successes:
            description: Good probes in a row after which it is taken in again.
            type: float
            default: 2
"""

EXAMPLES = r"""
- name: Put the table of a cluster
  llm.cluster.balancer_routing:
    table:
      default_model: gemma3:270m
      peers:
        - name: node1
          engine: ollama
          address: 192.0.2.11
          port: 8000
          models: [gemma3:270m]
          slots: 4
      keys:
        - name: demo
          sha256: "{{ demo_key | hash('sha256') }}"
  become: true

- name: Put what the inventory says
  llm.cluster.balancer_routing:
    table: "{{ balancer_routing_table }}"
  become: true
"""

RETURN = r"""
version:
  description: Number of the table in force. It grows by one with each change.
  returned: success
  type: int
  sample: 3
changes:
  description: What differs, a line each.
  returned: success
  type: list
  elements: str
  sample: ["peer node1: slots 2 -> 4", "key demo: changed"]
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._admin import (
    ADMIN_OPTIONS,
    AdminClient,
    AdminError,
    RefusedError,
)

HIDDEN = "sha256:...hidden"
SHA256 = re.compile(r"^[0-9a-f]{64}$")

PEER_OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "node": {"type": "str"},
    "engine": {"type": "str", "choices": ["llama_cpp", "ollama"], "required": True},
    "address": {"type": "str", "required": True},
    "port": {"type": "int", "required": True},
    "models": {"type": "list", "elements": "str", "required": True},
    "slots": {"type": "int", "required": True},
    "weight": {"type": "float", "default": 1},
    "backup": {"type": "bool", "default": False},
    "labels": {"type": "dict", "default": {}},
}
KEY_OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "sha256": {"type": "str", "required": True, "no_log": True},
}
# The balancer has the same defaults (LIMITS in peers.lua) and shows them in the table in force.
LIMIT_OPTIONS: dict[str, dict[str, Any]] = {
    "connect_timeout": {"type": "float", "default": 1},
    "first_byte_timeout": {"type": "float", "default": 300},
    "stream_idle_timeout": {"type": "float", "default": 30},
    "queue_timeout": {"type": "float", "default": 60},
    "max_body_bytes": {"type": "float", "default": 16777216},
    "max_answer_bytes": {"type": "float", "default": 67108864},
    "probe_interval": {"type": "float", "default": 2},
    "probe_timeout": {"type": "float", "default": 1},
    "probe_failures": {"type": "float", "default": 2},
    "probe_successes": {"type": "float", "default": 2},
}
TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    "schema": {"type": "int", "choices": [1], "default": 1},
    "default_model": {"type": "str", "default": ""},
    "require_key": {"type": "bool", "default": True},
    "peers": {"type": "list", "elements": "dict", "default": [], "options": PEER_OPTIONS},
    "keys": {"type": "list", "elements": "dict", "default": [], "options": KEY_OPTIONS, "no_log": False},
    "limits": {"type": "dict", "default": {}, "options": LIMIT_OPTIONS},
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
        "labels": {name: normal_number(value) for name, value in sorted(dict(peer.get("labels") or {}).items())},
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
        "peers": [normal_peer(peer) for peer in table.get("peers") or []],
        "keys": [{"name": key["name"], "sha256": key["sha256"].lower()} for key in table.get("keys") or []],
        "limits": {
            name: normal_number(option["default"] if limits.get(name) is None else limits[name])
            for name, option in LIMIT_OPTIONS.items()
        },
    }


def table_problems(table: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a normal table, a sentence each; only what can be known without the balancer."""
    peers = table["peers"]
    found = [] if peers else ["it has no peers"]
    found += [problem for peer in peers for problem in peer_problems(peer)]
    found += [f"two peers are named {name}" for name in repeated(peer["name"] for peer in peers)]
    found += [
        f"two peers have the address {address}"
        for address in repeated(f"{peer['address']}:{peer['port']}" for peer in peers)
    ]
    served = {model for peer in peers for model in peer["models"]}
    if table["default_model"] and table["default_model"] not in served:
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
    found += [f"limit {name}: {value} is below 0" for name, value in table["limits"].items() if value < 0]
    return found


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
        for field in ("schema", "default_model", "require_key")
        if before[field] != after[field]
    ]
    for kind, field in (("peer", "peers"), ("key", "keys")):
        old, new = by_name(before[field]), by_name(after[field])
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                lines.append(f"{kind} {name}: removed")
            elif name not in old:
                lines.append(f"{kind} {name}: added")
            elif old[name] != new[name]:
                lines.append(
                    f"{kind} {name}: " + ("changed" if kind == "key" else fields_changed(old[name], new[name]))
                )
    if before["limits"] != after["limits"]:
        lines.append("limits: " + fields_changed(before["limits"], after["limits"]))
    return lines


def fields_changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return the fields that differ as ``slots 2 -> 4, weight 1 -> 2``."""
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in after if before[name] != after[name])


def diff_view(table: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a normal table for showing: by name, with hashes hidden and those marked that differ from the other's."""
    known = by_name(other["keys"]) if other else {}
    return {
        **table,
        "peers": {
            peer["name"]: {field: value for field, value in peer.items() if field != "name"} for peer in table["peers"]
        },
        "keys": {
            key["name"]: HIDDEN + (" (changed)" if known.get(key["name"], key) != key else "") for key in table["keys"]
        },
    }


def current_table(client: AdminClient) -> dict[str, Any]:
    """Return the table in force in its normal form; a new balancer has none, which is the same as an empty one."""
    try:
        return normal_table(client.get("/routing"))
    except RefusedError as error:
        if error.status == 404:
            return normal_table({})
        raise


def put_table(client: AdminClient, wanted: Mapping[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring the wanted normal table in force and return the module's result."""
    before = current_table(client)
    changes = differences(before, wanted)
    if changes and not check_mode:
        version = client.put("/routing", dict(wanted)).get("version")
        lost = differences(current_table(client), wanted)
        if lost:
            raise AdminError(
                "The balancer accepted the table, but another one is in force: " + "; ".join(lost) + ". "
                "Does something else put tables too? Run the play again. Look with: journalctl -u nginx -n 50"
            )
    else:
        version = client.get("/state").get("version")
    return {
        "changed": bool(changes),
        "changes": changes,
        "version": version,
        "diff": {"before": diff_view(before), "after": diff_view(wanted, before)},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={"table": {"type": "dict", "required": True, "options": TABLE_OPTIONS}, **ADMIN_OPTIONS},
        supports_check_mode=True,
    )
    wanted = normal_table(module.params["table"])
    problems = table_problems(wanted)
    if problems:
        module.fail_json(msg="The routing table is not valid, nothing was changed: " + "; ".join(problems) + ".")
    try:
        result = put_table(AdminClient(module.params["socket"], module.params["timeout"]), wanted, module.check_mode)
    except RefusedError as error:
        module.fail_json(
            msg=f"The balancer refused the routing table, the old one stays in force: {error.reason}. "
            "Correct the variable it comes from (llm_models, llm_node_*, llm_api_keys or balancer_*), then run again.",
            status=error.status,
        )
    except AdminError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
