#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_routing
short_description: Put the whole routing table of a balancer
description:
  - The routing table says everything a balancer must know of its cluster - peers, models, routes, keys, limits. This
    module compares the wanted table with the one in force and puts it if they differ.
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
      - The order of peers and keys has no meaning, that of routes has.
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
      policy:
        description: >-
          How a peer is chosen among those with a free slot: the one that has most of the conversation in its cache and
          else the least busy one, only the least busy one, or one after the other by weight.
        type: str
        choices: [affinity, least_busy, weighted_round_robin]
        default: affinity
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
            description: Facts about the node that routes can ask for, each a text, a number, true or false, or a list.
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
          requests_per_minute:
            description: Requests that may be made with it in a minute. Without it, any number.
            type: int
          concurrent:
            description: Requests that may be made with it at a time. Without it, any number.
            type: int
          models:
            description: Models that may be used with it; C(*) stands for anything. Without it, all.
            type: list
            elements: str
      routes:
        description:
          - Rules on requests. The first one that matches decides which peers may take the request.
          - One that can match no peer is refused.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: The route's name, unique in the table.
            type: str
            required: true
          when:
            description:
              - Conditions on the request, all of which must hold - C(model), C(path) and C(key) (patterns in which C(*)
                stands for anything, or lists of such), C(prompt_chars_over), C(prompt_chars_under), C(messages_over),
                C(messages_under) (numbers) and C(stream) (a boolean).
              - Without it the route matches each request.
            type: dict
          require:
            description:
              - Labels that a peer must have, with a condition each, such as C('>24') for C(gpu_memory_gb).
              - A condition is a value, a comparison (C(>), C(>=), C(<), C(<=), C(=), C(!=)), or a list of such of
                which one must be met.
            type: dict
          prefer:
            description: The same, but other peers are taken where none of those is free.
            type: dict
          peers:
            description: Names of the peers or nodes that may take the request.
            type: list
            elements: str
          model:
            description: The model that is asked instead of the one that the request names.
            type: str
          fallback:
            description: The model that is asked where all peers for the first one are out or drained.
            type: str
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
          max_body_bytes:
            description: The largest request body.
            type: float
            default: 16777216
          max_answer_bytes:
            description: The largest answer that is not streamed.
            type: float
            default: 67108864
          queue_timeout:
            description: Seconds that a request waits for a free slot. After that, 503.
            type: float
            default: 60
          queue_length:
            description: Requests that may wait. With more, 503 at once.
            type: float
            default: 1000
          queue_bytes:
            description: Bytes that the bodies of waiting requests may take. With more, 503 at once.
            type: float
            default: 268435456
          queue_window:
            description: >-
              Oldest waiting requests of each group of peers that a free slot chooses among. More cost time.
            type: float
            default: 16
          ending_timeout:
            description: Seconds that an engine may go on working for a client that left before its slot counts as free.
            type: float
            default: 60
          affinity_max_wait:
            description:
              - Seconds that a waiting request lets later ones go first that a free peer has the beginning of.
              - Also the most that a request waits for a full peer that has its own.
            type: float
            default: 2
          affinity_ttl:
            description: >-
              Seconds that a peer is thought to remember the beginning of a conversation after it was last asked.
            type: float
            default: 600
          affinity_blocks:
            description: >-
              Blocks (messages, or 1 kB of long ones) at the start of a conversation that are compared.
            type: float
            default: 128
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
          canary_interval:
            description: Seconds between two real questions of one token to each model of a peer. 0 asks none.
            type: float
            default: 0
          canary_timeout:
            description: Seconds to wait for such a question's answer.
            type: float
            default: 30
          passive_failures:
            description: >-
              Requests that must fail on a peer, and succeed elsewhere, in the passive window for it to be taken out.
            type: float
            default: 3
          passive_window:
            description: Seconds in which failures of requests on a peer add up, the passive window.
            type: float
            default: 30
          hold_down:
            description: Seconds that a peer stays out at least, if failed requests took it out or it was out of late.
            type: float
            default: 4
          hold_down_max:
            description: Most seconds that it stays out. The time doubles each time that the peer fails again soon.
            type: float
            default: 60
          return_time:
            description: Seconds over which a peer that comes back gets its slots one after the other.
            type: float
            default: 10
          busy_rest:
            description: >-
              Seconds that a peer is left alone after a 503 or 429 that names no time itself; at least 0.2 are kept.
            type: float
            default: 0.5
          slow_share:
            description: >-
              Share of the other peers' speed below which a peer counts as slow. A request goes there only once it has
              waited as long as it would lose there. 0: none is slow.
            type: float
            default: 0.5
          retry_budget:
            description: Second tries after a 5xx or silence, as a share of all requests.
            type: float
            default: 0.2
  keep_labels:
    description:
      - Labels that could not be read for this table, as lists of names by node. Of these, what the table in force has
        is kept, so that a node that is down for the moment doesn't lose them.
    type: dict
    default: {}
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

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._admin import (
    ADMIN_OPTIONS,
    AdminClient,
    AdminError,
    RefusedError,
)
from ansible_collections.llm.cluster.plugins.module_utils._routing_table import (
    LIMITS,
    diff_view,
    differences,
    normal_table,
    table_problems,
    with_kept_labels,
)

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
    "requests_per_minute": {"type": "int"},
    "concurrent": {"type": "int"},
    "models": {"type": "list", "elements": "str"},
}
ROUTE_OPTIONS: dict[str, dict[str, Any]] = {
    "name": {"type": "str", "required": True},
    "when": {"type": "dict"},
    "require": {"type": "dict"},
    "prefer": {"type": "dict"},
    "peers": {"type": "list", "elements": "str"},
    "model": {"type": "str"},
    "fallback": {"type": "str"},
}
LIMIT_OPTIONS: dict[str, dict[str, Any]] = {
    name: {"type": "float", "default": default} for name, (default, _least, _most) in LIMITS.items()
}
TABLE_OPTIONS: dict[str, dict[str, Any]] = {
    "schema": {"type": "int", "choices": [1], "default": 1},
    "default_model": {"type": "str", "default": ""},
    "require_key": {"type": "bool", "default": True},
    "policy": {"type": "str", "choices": ["affinity", "least_busy", "weighted_round_robin"], "default": "affinity"},
    "peers": {"type": "list", "elements": "dict", "default": [], "options": PEER_OPTIONS},
    "keys": {"type": "list", "elements": "dict", "default": [], "options": KEY_OPTIONS, "no_log": False},
    "routes": {"type": "list", "elements": "dict", "default": [], "options": ROUTE_OPTIONS},
    "limits": {"type": "dict", "default": {}, "options": LIMIT_OPTIONS},
}


def current_table(client: AdminClient) -> dict[str, Any]:
    """Return the table in force in its normal form; a new balancer has none, which is the same as an empty one."""
    try:
        return normal_table(client.get("/routing"))
    except RefusedError as error:
        if error.status == 404:
            return normal_table({})
        raise


def put_table(
    client: AdminClient, given: Mapping[str, Any], keep_labels: Mapping[str, Iterable[str]], check_mode: bool
) -> dict[str, Any]:
    """Bring the given normal table in force and return the module's result."""
    before = current_table(client)
    wanted = with_kept_labels(given, before, keep_labels)
    changes = differences(before, wanted)
    if changes and not check_mode:
        version = client.put("/routing", wanted).get("version")
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
        argument_spec={
            "table": {"type": "dict", "required": True, "options": TABLE_OPTIONS},
            "keep_labels": {"type": "dict", "default": {}},
            **ADMIN_OPTIONS,
        },
        supports_check_mode=True,
    )
    given, keep = normal_table(module.params["table"]), module.params["keep_labels"]
    problems = table_problems(given, keep)
    if problems:
        module.fail_json(msg="The routing table is not valid, nothing was changed: " + "; ".join(problems) + ".")
    try:
        client = AdminClient(module.params["socket"], module.params["answer_timeout"])
        result = put_table(client, given, keep, module.check_mode)
    except RefusedError as error:
        module.fail_json(
            msg=f"The balancer refused the routing table, the old one stays in force: {error.reason}. "
            "Correct the variable it comes from (llm_models, llm_node_*, llm_routes, llm_api_keys or balancer_*), "
            "then run again.",
            status=error.status,
        )
    except AdminError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
