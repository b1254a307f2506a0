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

from ansible_collections.llm.cluster.plugins.module_utils import _routes

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

# Of a peer, what goes into the routing table beside the names of its models.
TABLE_PEER = ("name", "node", "engine", "address", "port", "slots", "weight", "backup", "labels")
# Of a key, beside its name and hash.
KEY_LIMITS = ("requests_per_minute", "concurrent", "models")
# The labels that module node_facts reads on the node itself.
FACT_LABELS = ("memory_gb", "cpus", "architecture", "gpus", "gpu_memory_gb")


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
    Ansible uses (``ansible_host``, else the host's name), if that is one: a node that is down must not keep the others
    from being converged.
    """
    if host_vars.get("llm_address"):
        return str(host_vars["llm_address"])
    facts = host_vars.get("ansible_facts") or {}
    known = (facts.get("default_ipv4") or {}).get("address") or (facts.get("default_ipv6") or {}).get("address")
    if known:
        return str(known)
    reached_at = str(host_vars.get("ansible_host") or host_vars.get("inventory_hostname"))
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


def fits(model: Mapping[str, Any], labels: Mapping[str, Any], unknown: Iterable[str] = ()) -> bool:
    """Whether a node's labels are what the model's ``labels`` ask for, as in routes; unknown ones count as right."""
    return _routes.meets(model.get("labels"), {"labels": labels, "unknown_labels": unknown})


def locked(lock: Mapping[str, Any], name: str, engine: str) -> Mapping[str, Any]:
    """Return what is locked for a model on an engine, nothing if it isn't."""
    entry: Mapping[str, Any] = (lock.get(name) or {}).get(engine) or {}
    return entry


def truth(value: Any) -> bool:
    """Return a boolean that may have come as text, from an INI inventory or the command line."""
    return value if isinstance(value, bool) else str(value).lower() in ("true", "yes", "1")


def normal_digest(digest: str | None) -> str | None:
    """Return a digest as ``sha256:hex`` in lower case, whether it was given with its prefix or without."""
    if not digest:
        return None
    text = str(digest).lower()
    return text if text.startswith("sha256:") else "sha256:" + text


def normal_model(
    model: Mapping[str, Any], engine: str, slots: int, lock: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return one entry of ``llm_models`` with every key present. Without a digest of its own it has the locked one."""
    source = dict(model.get("source") or {})
    if engine == "ollama" and not source:
        source["registry"] = model["name"]
    entry = locked(lock or {}, str(model["name"]), engine)
    digest = normal_digest(model.get("digest") or entry.get("digest"))
    return {
        "name": str(model["name"]),
        "source": source,
        "digest": digest,
        "size": entry.get("size") if digest == entry.get("digest") else None,
        "preload": truth(model.get("preload", True)),
        "context": int(model.get("context") or 4096),
        "slots": int(model.get("slots") or slots),
        "insecure": truth(model.get("insecure", False)),
        "unit": unit_name(str(model["name"])),
    }


def node_labels(host_vars: Mapping[str, Any], values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the labels of one node, and the names of those that nobody knows because its facts could not be read.

    What ``llm_node_labels`` sets goes before what the facts say; null takes a label away.
    """
    facts = (host_vars.get("ansible_facts") or {}).get("llm_node_facts") or {}
    labels = {
        "engine": values["llm_engine"],
        "groups": sorted(group for group in host_vars.get("group_names") or [] if group not in ("all", "ungrouped")),
        **{name: facts[name] for name in FACT_LABELS if facts.get(name) is not None},
        **values["llm_node_labels"],
    }
    known = {name: value for name, value in labels.items() if value is not None}
    return known, [name for name in FACT_LABELS if name not in labels]


def facts_unread(host_vars: Mapping[str, Any]) -> bool:
    """Whether nothing is known of the node's size: it was not reached."""
    return "llm_node_facts" not in (host_vars.get("ansible_facts") or {})


def node_peers(
    node: str,
    host_vars: Mapping[str, Any],
    defaults: Mapping[str, Any],
    lock: Mapping[str, Any] | None = None,
    doubtful: bool = False,
) -> list[dict[str, Any]]:
    """Return the peers of one node.

    An Ollama node is one peer with all its models. llama.cpp serves one model per process, so such a node is one
    peer per model, on consecutive ports from ``llm_node_port`` in the order of ``llm_models`` unless a model names its
    own ``port``. Names and ports do not depend on labels, so that they are the same while those can't be read.

    :param doubtful: whether a model that is placed by labels belongs on a node whose facts could not be read at all.
        For the routing table it does, because it may well be there; nothing is ever brought to a node on a guess.
    """
    values = settings(host_vars, defaults)
    engine, port, slots = values["llm_engine"], int(values["llm_node_port"]), int(values["llm_node_slots"])
    labels, unknown_labels = node_labels(host_vars, values)
    named = [model for model in values["llm_models"] if placed_on(model, node, host_vars.get("group_names") or [])]
    unknown = unknown_labels if doubtful and facts_unread(host_vars) else []
    wanted = [(position, model) for position, model in enumerate(named) if fits(model, labels, unknown)]
    models = [normal_model(model, engine, slots, lock) for _position, model in wanted]

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
            "labels": labels,
            "unknown_labels": unknown_labels,
            "models": held,
        }

    if engine != "llama_cpp":
        return [peer(node, port, models, slots)] if models else []
    return [
        peer(
            node if len(named) == 1 else node + "/" + model["unit"],
            int(given.get("port") or port + position),
            [model],
            model["slots"],
        )
        for (position, given), model in zip(wanted, models)
    ]


def key_entries(api_keys: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return ``llm_api_keys`` as the balancer stores them, sorted by name: the key's SHA-256 instead of the key."""
    entries = []
    for entry in api_keys:
        digest = entry.get("sha256") or hashlib.sha256(str(entry["key"]).encode()).hexdigest()
        limits = {name: entry[name] for name in KEY_LIMITS if entry.get(name) is not None}
        entries.append({"name": str(entry["name"]), "sha256": str(digest).lower(), **limits})
    return sorted(entries, key=lambda entry: entry["name"])


def table_peers(peers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return peers as a routing table has them: models by their names."""
    return [
        {**{key: peer[key] for key in TABLE_PEER}, "models": [model["name"] for model in peer["models"]]}
        for peer in peers
    ]


def unread_labels(peers: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return by node the labels that its facts should have told and did not."""
    return {peer["node"]: peer["unknown_labels"] for peer in peers if peer["unknown_labels"]}


def routing_table(
    peers: Iterable[Mapping[str, Any]],
    *,
    default_model: str,
    api_keys: Iterable[Mapping[str, Any]],
    require_key: bool,
    limits: Mapping[str, Any],
    policy: str,
    routes: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the routing table (schema 1) that says everything a balancer must know.

    An empty ``default_model`` stands for the first model of the first peer.
    """
    peers = list(peers)
    return {
        "schema": 1,
        "default_model": default_model or peers[0]["models"][0]["name"],
        "require_key": truth(require_key),
        "policy": policy,
        "keys": key_entries(api_keys),
        "peers": table_peers(peers),
        "routes": list(routes),
        "limits": dict(limits),
    }
