#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: balancer_peer
short_description: Drain a node on a balancer, or take it back into service
description:
  - A drained node gets no new request from that moment on. What it works on goes on to its end, which the module waits
    for.
  - A drain is a mark with an owner. A node is drained while it carries any mark, so a play never takes back into
    service what somebody else took out. The marks survive reloads and restarts of the balancer.
  - With several balancers, drain on each. Playbook C(llm.cluster.drain) does it, and takes its marks back if one fails.
  - Runs on the balancer itself and needs root, because the admin API is a Unix socket.
author:
  - llm.cluster contributors (@llm-cluster)
extends_documentation_fragment:
  - llm.cluster.admin_socket
attributes:
  check_mode:
    support: full
    description: Says whether the mark would change. It doesn't wait.
  diff_mode:
    support: full
    description: Shows the owners' marks before and after.
options:
  name:
    description: The node, which means all its peers, or one peer.
    type: str
    required: true
  state:
    description:
      - V(drained) sets the owner's mark and waits until the node works on nothing any more.
      - V(active) removes the owner's mark. The node stays drained if others hold it.
    type: str
    choices: [active, drained]
    required: true
  owner:
    description: Whose mark it is. Only that one is set or removed.
    type: str
    default: operator
  reason:
    description: Why, for whoever looks at the node's state. If it isn't given, a mark that is there keeps its reason.
    type: str
  timeout:
    description:
      - Seconds to wait until the last request has ended, with O(state=drained). V(0) doesn't wait.
      - When it runs out the module fails and names what is still running. The mark stays.
    type: float
    default: 300
seealso:
  - module: llm.cluster.balancer_info
"""

EXAMPLES = r"""
- name: Take a node out for maintenance, once it has finished what it does
  llm.cluster.balancer_peer:
    name: node1
    state: drained
    reason: new disk
    timeout: 600
  become: true

- name: Take it back
  llm.cluster.balancer_peer:
    name: node1
    state: active
  become: true
"""

RETURN = r"""
peers:
  description: The peers that the name means, as RV(llm.cluster.balancer_info#module:nodes) has them.
  returned: always, if the balancer answered
  type: list
  elements: dict
held_by:
  description: The marks that keep any of the peers drained now, each with C(name), C(owner) and C(reason).
  returned: always, if the balancer answered
  type: list
  elements: dict
  sample: [{name: node1, owner: operator, reason: new disk}]
waited:
  description: Seconds that were waited for the last request.
  returned: success
  type: float
  sample: 12.5
running:
  description: What the peers still worked on when O(timeout) ran out.
  returned: when the time ran out
  type: list
  elements: dict
  sample: [{peer: node1, id: 5b1c, model: gemma3:270m, key: demo, seconds: 312.2, ending: false}]
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._admin import (
    ADMIN_OPTIONS,
    AdminClient,
    AdminError,
    UnreachableError,
)
from ansible_collections.llm.cluster.plugins.module_utils._balancer_state import (
    known_names,
    marks_on,
    peers_named,
    read_state,
)

FIRST_LOOK = 0.1  # seconds between two looks at the state, growing to the last
LAST_LOOK = 2.0


class UnknownNameError(Exception):
    """The balancer has neither a node nor a peer of that name."""


class StillRunningError(Exception):
    """The time ran out before the last request had ended."""

    def __init__(self, peers: list[dict[str, Any]], waited: float) -> None:
        super().__init__("still running")
        self.peers = peers
        self.waited = waited


def wanted_marks(before: Mapping[str, str], state: str, owner: str, reason: str | None) -> dict[str, str]:
    """Return the marks on the name as they shall be: reasons by owner."""
    after = dict(before)
    if state == "drained":
        after[owner] = before.get(owner, "") if reason is None else reason
    else:
        after.pop(owner, None)
    return after


def held_by(peers: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return the marks that keep any of the peers drained, each once."""
    marks = {(mark["name"], mark["owner"]): mark["reason"] for peer in peers for mark in peer["drains"]}
    return [{"name": name, "owner": owner, "reason": reason} for (name, owner), reason in sorted(marks.items())]


def running(peers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the peers work on, the oldest first."""
    requests = [{"peer": peer["name"], **request} for peer in peers for request in peer["in_flight"]]
    return sorted(requests, key=lambda request: -request["seconds"])


def mark_words(mark: Mapping[str, str]) -> str:
    """Return a mark as ``sync 12 (new digest)``."""
    return mark["owner"] + (f" ({mark['reason']})" if mark["reason"] else "")


def request_words(request: Mapping[str, Any]) -> str:
    """Return a request as ``5b1c on node1 (gemma3:270m, key demo, 312 s)``."""
    parts = [request["model"] or "no model"]
    if request["key"]:
        parts.append(f"key {request['key']}")
    parts.append(f"{request['seconds']:.0f} s")
    if request["ending"]:
        parts.append("its client left")
    return f"{request['id']} on {request['peer']} ({', '.join(parts)})"


def running_words(peers: Sequence[Mapping[str, Any]]) -> str:
    """Return what the peers still work on, for an error message."""
    count = sum(peer["busy"] for peer in peers)
    words = f"{count} request{'' if count == 1 else 's'}"
    named = [request_words(request) for request in running(peers)[:10]]
    if named:
        words += ": " + ", ".join(named) + (f" and {count - len(named)} more" if count > len(named) else "")
    return words


def wait_until_idle(
    look: Callable[[], list[dict[str, Any]]],
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[dict[str, Any]], float]:
    """Look at the peers until they work on nothing; return them and the seconds that it took.

    A balancer that doesn't answer for a moment, because it restarts, is asked again. Raises StillRunningError when the
    time runs out.
    """
    began = clock()
    delay = FIRST_LOOK
    while True:
        lost: UnreachableError | None = None
        peers: list[dict[str, Any]] = []
        try:
            peers = look()
        except UnreachableError as error:
            lost = error
        waited = clock() - began
        if lost is None and not any(peer["busy"] for peer in peers):
            return peers, waited
        if waited >= timeout:
            if lost is not None:
                raise lost
            raise StillRunningError(peers, waited)
        sleep(min(delay, timeout - waited))
        delay = min(delay * 1.5, LAST_LOOK)


class Drain:
    """One owner's mark on one name."""

    def __init__(self, client: AdminClient, name: str, owner: str) -> None:
        self.client = client
        self.name = name
        self.owner = owner

    def look(self) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Return the marks on the name, as reasons by owner, and the peers that it means.

        Raises UnknownNameError when it means none and there is no mark to take back either.
        """
        state = read_state(self.client.get("/state"))
        marks, peers = marks_on(state, self.name), peers_named(state, self.name)
        if not peers and self.owner not in marks:
            known = ", ".join(known_names(state)) or "none, because it has no routing table yet: run site.yml"
            raise UnknownNameError(f"The balancer has no node or peer {self.name}. It knows: {known}.")
        return marks, peers

    def peers(self) -> list[dict[str, Any]]:
        """Return the peers that the name means."""
        return peers_named(read_state(self.client.get("/state")), self.name)

    def set(self, reason: str | None) -> None:
        """Set the mark with this reason, or remove it if there is none."""
        path = f"/peers/{quote(self.name, safe='')}/"
        if reason is None:
            self.client.post(path + "resume", {"owner": self.owner})
        else:
            self.client.post(path + "drain", {"owner": self.owner, "reason": reason})


def result_of(name: str, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """Return what the module says of the mark's change."""
    return {
        "changed": before != after,
        "diff": {"before": {"name": name, "drained_by": before}, "after": {"name": name, "drained_by": after}},
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["active", "drained"], "required": True},
            "owner": {"type": "str", "default": "operator"},
            "reason": {"type": "str"},
            "timeout": {"type": "float", "default": 300},
            **ADMIN_OPTIONS,
        },
        supports_check_mode=True,
    )
    params = module.params
    name, owner, state, timeout = params["name"], params["owner"], params["state"], params["timeout"]
    drain = Drain(AdminClient(params["socket"], params["answer_timeout"]), name, owner)
    result: dict[str, Any] = {"changed": False}
    waited = 0.0
    try:
        before, peers = drain.look()
        after = wanted_marks(before, state, owner, params["reason"])
        result = result_of(name, before, after)
        if result["changed"] and not module.check_mode:
            drain.set(after.get(owner))
            peers = drain.peers()
        if state == "drained" and timeout > 0 and not module.check_mode:
            peers, waited = wait_until_idle(drain.peers, timeout)
    except StillRunningError as error:
        module.fail_json(
            msg=f"After {timeout:g} s {name} still works on {running_words(error.peers)}. The mark stays, so "
            "it gets nothing new. Run again to wait on; state=active with the same owner gives up.",
            running=running(error.peers),
            peers=error.peers,
            held_by=held_by(error.peers),
            waited=error.waited,
            **result,
        )
    except UnknownNameError as error:
        module.fail_json(msg=str(error))
    except AdminError as error:
        module.fail_json(msg=str(error), **result)
    others = [mark for mark in held_by(peers) if (mark["name"], mark["owner"]) != (name, owner)]
    if state == "active" and others:
        module.warn(f"{name} stays drained by {', '.join(map(mark_words, others))}: only the owner takes a mark back.")
    module.exit_json(peers=peers, held_by=held_by(peers), waited=waited, **result)


if __name__ == "__main__":
    main()
