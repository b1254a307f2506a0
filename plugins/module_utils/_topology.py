# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From an inventory to nodes, peers and the balancer's routing table.

Pure functions on plain dictionaries: no Ansible import, nothing is read or written.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

ENGINES = ("ollama", "llama_cpp")

# The variables that describe one node; each may be set for all hosts, a group or a host.
NODE_VARIABLES = (
    "llm_engine",
    "llm_node_port",
    "llm_node_slots",
    "llm_node_weight",
    "llm_node_backup",
    "llm_node_labels",
    "llm_models",
)


def settings(host_vars: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the node variables of one host: the inventory's value, else the default.

    The address falls back to that of the host's default route, as the defaults say for the host itself.
    """
    values = {name: host_vars[name] if name in host_vars else defaults[name] for name in NODE_VARIABLES}
    values["llm_address"] = address_of(host_vars)
    return values


def address_of(host_vars: Mapping[str, Any]) -> str | None:
    """Return the host's address inside the cluster, or None where neither the inventory nor the facts know one.

    A host without facts is one that could not be reached. It keeps its place in the routing table by the address that
    Ansible uses, if that is one: a node that is down must not keep the others from being converged.
    """
    if host_vars.get("llm_address"):
        return str(host_vars["llm_address"])
    facts = host_vars.get("ansible_facts") or {}
    known = (facts.get("default_ipv4") or {}).get("address") or (facts.get("default_ipv6") or {}).get("address")
    if known:
        return str(known)
    reached_at = str(host_vars.get("ansible_host"))
    return reached_at if is_ip_address(reached_at) else None


def is_ip_address(text: str) -> bool:
    """Whether the text is an IPv4 or IPv6 address, not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def url_of(address: str, port: int, tls: bool = False) -> str:
    """Return the URL of an address and port: IPv6 in brackets, the scheme's own port left out."""
    scheme, usual = ("https", 443) if tls else ("http", 80)
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}" + ("" if int(port) == usual else f":{port}")


def unit_name(model: str) -> str:
    """Return the model's name as a part of a systemd unit or file name: ``gemma3:270m`` → ``gemma3-270m``."""
    return re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.") or "model"


def placed_on(model: Mapping[str, Any], node: str, group_names: Iterable[str]) -> bool:
    """Whether the model belongs on the node: ``nodes`` names hosts or groups; without it, every node."""
    wanted = model.get("nodes")
    return not wanted or node in wanted or any(group in wanted for group in group_names)


def truth(value: Any) -> bool:
    """Return a boolean that may have come as text, from an INI inventory or the command line."""
    return value if isinstance(value, bool) else str(value).lower() in ("true", "yes", "1")


def normal_digest(digest: str | None) -> str | None:
    """Return a digest as ``sha256:hex`` in lower case, whether it was given with its prefix or without."""
    if not digest:
        return None
    text = str(digest).lower()
    return text if text.startswith("sha256:") else "sha256:" + text


def normal_model(model: Mapping[str, Any], engine: str, slots: int) -> dict[str, Any]:
    """Return one entry of ``llm_models`` with every key present."""
    source = dict(model.get("source") or {})
    if engine == "ollama" and not source:
        source["registry"] = model["name"]
    return {
        "name": str(model["name"]),
        "source": source,
        "digest": normal_digest(model.get("digest")),
        "preload": truth(model.get("preload", True)),
        "context": int(model.get("context") or 4096),
        "slots": int(model.get("slots") or slots),
        "insecure": truth(model.get("insecure", False)),
        "unit": unit_name(str(model["name"])),
    }


def node_peers(node: str, host_vars: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the peers of one node.

    An Ollama node is one peer with all its models. llama.cpp serves one model per process, so such a node is one
    peer per model, on consecutive ports from ``llm_node_port`` in the order of ``llm_models`` unless a model names its
    own ``port``.
    """
    values = settings(host_vars, defaults)
    engine, port, slots = values["llm_engine"], int(values["llm_node_port"]), int(values["llm_node_slots"])
    wanted = [model for model in values["llm_models"] if placed_on(model, node, host_vars.get("group_names") or [])]
    models = [normal_model(model, engine, slots) for model in wanted]

    def peer(name: str, at: int, held: list[dict[str, Any]], capacity: int) -> dict[str, Any]:
        return {
            "name": name,
            "node": node,
            "engine": engine,
            "address": values["llm_address"],
            "port": at,
            "slots": capacity,
            "weight": float(values["llm_node_weight"]),
            "backup": truth(values["llm_node_backup"]),
            "labels": dict(values["llm_node_labels"]),
            "models": held,
        }

    if engine != "llama_cpp":
        return [peer(node, port, models, slots)] if models else []
    return [
        peer(
            node if len(models) == 1 else node + "/" + model["unit"],
            int(wanted[position].get("port") or port + position),
            [model],
            model["slots"],
        )
        for position, model in enumerate(models)
    ]


def key_entries(api_keys: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return ``llm_api_keys`` as the balancer stores them: a name and the key's SHA-256, sorted by name."""
    entries = []
    for entry in api_keys:
        digest = entry.get("sha256") or hashlib.sha256(str(entry["key"]).encode()).hexdigest()
        entries.append({"name": str(entry["name"]), "sha256": str(digest).lower()})
    return sorted(entries, key=lambda entry: entry["name"])


def routing_table(
    peers: Iterable[Mapping[str, Any]],
    default_model: str,
    api_keys: Iterable[Mapping[str, Any]],
    require_key: bool,
    limits: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the routing table (schema 1) that says everything a balancer must know.

    An empty ``default_model`` stands for the first model of the first peer.
    """
    peers = list(peers)
    return {
        "schema": 1,
        "default_model": default_model or peers[0]["models"][0]["name"],
        "require_key": truth(require_key),
        "keys": key_entries(api_keys),
        "peers": [
            {
                **{key: peer[key] for key in ("name", "node", "engine", "address", "port")},
                **{key: peer[key] for key in ("slots", "weight", "backup", "labels")},
                "models": [model["name"] for model in peer["models"]],
            }
            for peer in peers
        ],
        "limits": dict(limits),
    }
