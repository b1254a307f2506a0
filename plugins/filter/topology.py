# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that turn an inventory into nodes, peers and the routing table. The logic is in module_utils/_topology."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.llm.cluster.plugins.module_utils import _inventory_check, _routing_table, _topology

HostVars = Mapping[str, Mapping[str, Any]]


@lru_cache(maxsize=1)
def cluster_defaults() -> dict[str, Any]:
    """Return the defaults of role cluster, the one place where they are written, without those that are computed."""
    path = Path(__file__).parents[2] / "roles" / "cluster" / "defaults" / "main.yml"
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {name: value for name, value in defaults.items() if "{{" not in str(value)}


def host_address(host_vars: Mapping[str, Any]) -> str:
    """Return a host's address inside the cluster: llm_address where the inventory sets it, else from its facts."""
    address = _topology.address_of(host_vars)
    if address is None:
        name = host_vars.get("inventory_hostname", "the host")
        raise AnsibleFilterError(f"No address is known for {name}: gather its facts first, or set llm_address for it.")
    return address


def endpoint_url(balancers: list[str], hostvars: HostVars, tls: bool, port: int) -> str:
    """Return the first balancer's URL; empty when there is none or its address isn't known (yet)."""
    address = _topology.address_of(hostvars[balancers[0]]) if balancers else None
    return _topology.url_of(address, port, tls) if address else ""


def node_peers(node: str, host_vars: Mapping[str, Any], lock: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the peers of one node, with the models that are to be there."""
    return _topology.node_peers(node, host_vars, cluster_defaults(), lock)


def cluster_peers(nodes: list[str], hostvars: HostVars, lock: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the peers of all nodes, in the inventory's order, with the models that may be there."""
    defaults = cluster_defaults()
    return [
        peer for node in nodes for peer in _topology.node_peers(node, hostvars[node], defaults, lock, doubtful=True)
    ]


def inventory_problems(hostvars: HostVars, roles: Mapping[str, list[str]], cluster: Mapping[str, Any]) -> list[str]:
    """Return what makes the inventory unusable, a sentence each."""
    return _inventory_check.problems(hostvars, roles, {**cluster_defaults(), **cluster})


def inventory_warnings(hostvars: HostVars, nodes: list[str], cluster: Mapping[str, Any]) -> list[str]:
    """Return what works but will disappoint, a sentence each."""
    return _inventory_check.warnings(hostvars, nodes, {**cluster_defaults(), **cluster})


def routing_problems(table: Mapping[str, Any], unread_labels: Mapping[str, list[str]]) -> list[str]:
    """Return what a balancer would refuse in a routing table, a sentence each; an empty table is not put at all."""
    return _routing_table.table_problems(_routing_table.normal_table(table), unread_labels) if table else []


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "cluster_peers": cluster_peers,
            "endpoint_url": endpoint_url,
            "host_address": host_address,
            "inventory_problems": inventory_problems,
            "inventory_warnings": inventory_warnings,
            "node_peers": node_peers,
            "routing_problems": routing_problems,
            "routing_table": _topology.routing_table,
            "unread_labels": _topology.unread_labels,
        }
