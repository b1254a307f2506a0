# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter that says which node fetches what from whom. The logic is in module_utils/_chain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.filter.models import module_models
from ansible_collections.llm.cluster.plugins.filter.topology import cluster_defaults
from ansible_collections.llm.cluster.plugins.module_utils import _chain, _topology


def chain(
    targets: list[str],
    hostvars: Mapping[str, Mapping[str, Any]],
    nodes: list[str],
    lock: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what the nodes do so that each version crosses the internet link once."""
    defaults = cluster_defaults()
    known: dict[str, _chain.Node] = {}
    engines: dict[str, str] = {}
    addresses: dict[str, str] = {}
    for name in nodes:
        host_vars = hostvars[name]
        found, address = _chain.seen(host_vars), _topology.address_of(host_vars)
        if found is None or address is None:
            continue
        wanted, lacks, holds = found
        peers = _topology.node_peers(name, host_vars, defaults, lock) if name in targets else []
        models = [
            {**model, "digest": wanted[model["name"]]} for model in module_models(peers) if model["name"] in wanted
        ]
        port = int(host_vars.get("llm_share_port") or defaults["llm_share_port"])
        known[name] = _chain.Node(name, _topology.url_of(address, port), models, lacks, holds)
        engines[name] = str(host_vars.get("llm_engine") or defaults["llm_engine"])
        addresses[name] = address
    plan = _chain.plan(list(known.values()), targets)
    return {
        "fetch": plan.fetch,
        "send": plan.send,
        "serve": [name for name in plan.serve if name in targets],
        "away": [
            {"host": name, "address": addresses[name], **_chain.folders(hostvars[name], engines[name])}
            for name in plan.serve
            if name not in targets
        ],
        "addresses": [addresses[name] for name in plan.serve],
    }


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"chain": chain}
