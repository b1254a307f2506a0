#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_info
short_description: Tell what a balancer thinks of its nodes and does now
description:
  - Returns nodes with their health, drain marks and the requests they work on, the queue, the use of keys' limits, and
    the version of the routing table in force.
  - Changes nothing. Runs on the balancer itself and needs root, because the admin API is a Unix socket.
author:
  - llm.cluster contributors (@llm-cluster)
extends_documentation_fragment:
  - llm.cluster.admin_socket
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: It changes nothing.
"""

EXAMPLES = r"""
- name: Ask the balancer
  llm.cluster.balancer_info:
  become: true
  register: balancer

- name: Fail if a node is out
  ansible.builtin.assert:
    that: balancer.nodes[item] | rejectattr('state', 'in', ['up', 'drained']) | length == 0
    fail_msg: "{{ balancer.nodes[item] | map(attribute='reason') | join(', ') }}"
  loop: "{{ balancer.nodes }}"
"""

RETURN = r"""
version:
  description: Number of the routing table in force, 0 if there is none yet.
  returned: success
  type: int
  sample: 3
default_model:
  description: The model of requests that name none. Empty for none.
  returned: success
  type: str
  sample: gemma3:270m
policy:
  description: How a peer is chosen among those with a free slot.
  returned: success
  type: str
  sample: affinity
nodes:
  description: The peers of each node, by the node's name.
  returned: success
  type: dict
  sample:
    node1:
      - name: node1
        node: node1
        engine: llama_cpp
        address: 192.0.2.11
        port: 8000
        models: [gemma3:270m]
        lacks: []
        slots: 2
        usable: 2
        weight: 1
        backup: false
        state: up
        health: up
        reason: 2 probes answered
        since: 1790000000.5
        held_down_until: null
        resting: false
        slow: 0
        busy: 1
        ending: 0
        waiting: 0
        minute: {requests_per_minute: 12.5, answered_per_minute: 12.5, latency: 1.2, timed_out: 0}
        in_flight:
          - {id: 5b1c, model: gemma3:270m, key: demo, seconds: 2.5, ending: false}
        drains: []
  contains:
    name:
      description: The peer's name.
      type: str
    node:
      description: Its node.
      type: str
    engine:
      description: V(llama_cpp) or V(ollama).
      type: str
    address:
      description: Its IP address.
      type: str
    port:
      description: Its port.
      type: int
    models:
      description: The models it serves by the table.
      type: list
      elements: str
    lacks:
      description: Those of them that it hasn't got in truth. No request for them goes there.
      type: list
      elements: str
    slots:
      description: Requests it works on at a time.
      type: int
    usable:
      description: Those of them that are open now. Fewer while it comes back after a failure, or while it is slow.
      type: int
    weight:
      description: Its share of requests relative to the others' at equal load.
      type: float
    backup:
      description: Whether it gets requests only when all others are out or drained.
      type: bool
    state:
      description: V(up), V(down), V(probing) while nothing is known yet, or V(drained).
      type: str
    health:
      description: The same without drain marks.
      type: str
    reason:
      description: Why the state is as it is.
      type: str
    since:
      description: Since when its health is as it is, in seconds since the epoch. Null while nothing is known.
      type: float
    held_down_until:
      description: It isn't let in before, in seconds since the epoch. Null if it isn't held.
      type: float
    resting:
      description: Whether it said that it is busy, and gets nothing for a moment.
      type: bool
    slow:
      description: Seconds that its first token takes longer than that of the others. 0 if it isn't slow.
      type: float
    busy:
      description: Slots in use, with those that are ending.
      type: int
    ending:
      description: Slots in which only the engine is still at work, because the client left.
      type: int
    waiting:
      description: Requests in the queue that this peer may take. One that several may take counts for each of them.
      type: int
    minute:
      description: The last minute, of the requests that the peer was the last to hold. As RV(minute).
      type: dict
    in_flight:
      description:
        - What holds the slots, oldest first.
        - Each has the request's C(id), C(model), C(key) (the key's name or null), C(seconds) since the peer got it, and
          C(ending).
      type: list
      elements: dict
    drains:
      description: The marks that keep it drained, each with C(name), C(owner), C(reason) and C(since).
      type: list
      elements: dict
drains:
  description: Every drain mark, also those on names that the table doesn't have any more.
  returned: success
  type: list
  elements: dict
  sample: [{name: node1, owner: operator, reason: new disk, since: 1790000000}]
queue:
  description: The requests that wait for a slot.
  returned: success
  type: dict
  sample: {waiting: 3, bytes: 48211, oldest: 0.8, drain_rate: 4.2, sets: []}
  contains:
    waiting:
      description: How many.
      type: int
    bytes:
      description: The bytes of their bodies.
      type: int
    oldest:
      description: Seconds that the oldest has waited. Null if none waits.
      type: float
    drain_rate:
      description: Waiting requests that get a slot, per second, as measured.
      type: float
    sets:
      description: How many wait for which peers.
      type: list
      elements: dict
minute:
  description: What the last minute was like, or the time since nginx started. Null is what isn't known.
  returned: success
  type: dict
  sample: {requests_per_minute: 1243, answered_per_minute: 1240, latency: 1.2, timed_out: 0.003}
  contains:
    requests_per_minute:
      description: Requests that ended, whatever their end. Those for no model, such as lists of models, don't count.
      type: float
    answered_per_minute:
      description: Those of them that a peer answered.
      type: float
    latency:
      description: Seconds from arrival to the last byte, the mean of those that were answered. Null if there were none.
      type: float
    timed_out:
      description:
        - Share of requests that waited in vain, for a slot, the first byte or the next part of a stream, from 0 to 1.
        - Null if there were no requests.
      type: float
keys:
  description: How much of their limits keys use. What has no limit isn't counted and is null.
  returned: success
  type: list
  elements: dict
  sample: [{name: demo, requests_per_minute: 60, requests: 12, concurrent: 4, at_work: 1}]
  contains:
    name:
      description: The key's name.
      type: str
    requests_per_minute:
      description: The limit.
      type: int
    requests:
      description: Requests in the last minute.
      type: int
    concurrent:
      description: The limit of requests at a time.
      type: int
    at_work:
      description: Requests that wait or are worked on now.
      type: int
workers:
  description: nginx's worker processes, also old ones that finish what they hold after a reload.
  returned: success
  type: list
  elements: dict
  sample: [{pid: 4711, held: 1}]
  contains:
    pid:
      description: The process.
      type: int
    held:
      description: Slots that its requests hold.
      type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._admin import ADMIN_OPTIONS, AdminClient, AdminError
from ansible_collections.llm.cluster.plugins.module_utils._balancer_state import read_state


def main() -> None:
    module = AnsibleModule(argument_spec=ADMIN_OPTIONS, supports_check_mode=True)
    client = AdminClient(module.params["socket"], module.params["answer_timeout"])
    try:
        state = read_state(client.get("/state"))
    except AdminError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **state)


if __name__ == "__main__":
    main()
