# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with an inventory, said before anything is changed.

Pure functions: each returns sentences that name the host or variable and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _routes
from ansible_collections.llm.cluster.plugins.module_utils._routing_table import (
    KEY_NUMBERS,
    limit_problems,
    normal_number,
)
from ansible_collections.llm.cluster.plugins.module_utils._topology import (
    ENGINES,
    KEY_LIMITS,
    address_of,
    facts_unread,
    fits,
    is_ip_address,
    locked,
    node_labels,
    node_peers,
    normal_digest,
    normal_model,
    placed_on,
    settings,
    table_peers,
    unread_labels,
)

# Oldest major version that is supported, by distribution. Older ones have a Python that llm doesn't run on, and Ubuntu
# 22.04 has no Lua module for nginx.
SYSTEMS = {"Debian": 12, "Ubuntu": 24}

# Below these a node works, but not well: cores, memory in GB, free disk in GB, link in Mbit/s.
SMALL_NODE = {"cores": 8, "memory_gb": 16, "disk_gb": 100, "link_mbit": 100}

# A misspelt digest would leave a model unpinned without a word.
MODEL_KEYS = {"name", "source", "digest", "preload", "context", "slots", "port", "nodes", "labels", "insecure"}

# A misspelt limit would leave a key without it.
KEY_FIELDS = ("name", "key", "sha256", *KEY_LIMITS)

PLACEHOLDER = re.compile(r"change.?me|example|xxxx", re.IGNORECASE)


def problems(
    hosts: Mapping[str, Mapping[str, Any]], roles: Mapping[str, list[str]], cluster: Mapping[str, Any]
) -> list[str]:
    """Return what makes the inventory unusable, a sentence each; an empty list means it can be converged.

    :param hosts: host name → its variables, with ``ansible_facts`` and ``group_names``
    :param roles: ``nodes``, ``balancers`` and ``clients``: the host names of each
    :param cluster: the cluster-wide variables (``llm_*``) with their defaults
    """
    if not roles["nodes"]:
        return ["The inventory has no node: put at least one host into the group llm_nodes."]
    found: list[str] = []
    if not roles["balancers"]:
        found.append("The inventory has no balancer: put a host into the group llm_balancers.")
    for host in dict.fromkeys(roles["nodes"] + roles["balancers"] + roles["clients"]):
        found += system_problems(host, hosts[host])
    for host in roles["balancers"]:
        found += address_kind_problems(host, address_of(hosts[host]))
    found += name_problems(roles["nodes"])
    of_nodes = [problem for node in roles["nodes"] for problem in node_problems(node, hosts[node], cluster)]
    found += of_nodes
    found += key_problems(cluster.get("llm_api_keys") or [], bool(cluster.get("llm_require_api_key", True)))
    if not of_nodes:
        # What follows compares nodes with each other, which takes nodes that are right by themselves.
        found += address_problems(hosts, roles)
        found += default_model_problems(hosts, roles["nodes"], cluster)
        found += placement_problems(hosts, roles["nodes"], cluster)
        found += version_problems(hosts, roles["nodes"], cluster)
        found += route_problems(hosts, roles["nodes"], cluster)
    return list(dict.fromkeys(found))


def system_problems(host: str, host_vars: Mapping[str, Any]) -> list[str]:
    """Check the operating system; hosts whose facts are missing (outside ``--limit``) are passed over."""
    facts = host_vars.get("ansible_facts") or {}
    name, version = facts.get("distribution"), str(facts.get("distribution_version") or "")
    if not name:
        return []
    major = re.match(r"\d+", version)
    if name in SYSTEMS and (major is None or int(major.group()) >= SYSTEMS[name]):
        return []
    wanted = " or ".join(f"{system} {oldest} or newer" for system, oldest in SYSTEMS.items())
    return [f"{host}: {name} {version} is not supported; use {wanted}."]


def address_kind_problems(host: str, address: str | None) -> list[str]:
    """Check that a host has an address, and that it is one."""
    if not address:
        return [f"{host}: no address is known (was it reached?); set llm_address to its address in the cluster."]
    if not is_ip_address(address):
        return [f"{host}: llm_address is {address!r}; it must be an IP address, because nothing here looks up names."]
    return []


def name_problems(nodes: list[str]) -> list[str]:
    """Names are compared without case, because host names are."""
    seen: dict[str, str] = {}
    found = []
    for node in nodes:
        other = seen.setdefault(node.lower(), node)
        if other != node:
            found.append(f"{other} and {node} are one name written differently: rename one of them.")
    return found


def node_problems(node: str, host_vars: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """Check one node's engine, numbers and models."""
    values = settings(host_vars, cluster)
    found = []
    engine = values["llm_engine"]
    if engine not in ENGINES:
        found.append(f"{node}: llm_engine is {engine!r}, which is not known; use one of {', '.join(ENGINES)}.")
    found += address_kind_problems(node, values["llm_address"])
    found += number_problems(node, "llm_node_slots", values["llm_node_slots"], (1, 1024))
    found += number_problems(node, "llm_node_port", values["llm_node_port"], (1, 65535))
    found += number_problems(node, "llm_node_weight", values["llm_node_weight"], (0.01, 1000), whole=False)
    found += boolean_problems(node, "llm_node_backup", values["llm_node_backup"])
    found += label_problems(node, values["llm_node_labels"])
    models = values["llm_models"]
    if not isinstance(models, list) or not all(isinstance(model, Mapping) and model.get("name") for model in models):
        return [*found, f"{node}: llm_models must be a list of entries that each have a name."]
    found += [
        f"Model {model['name']}: labels{problem}."
        for model in models
        for problem in _routes.condition_problems(model.get("labels"))
    ]
    if found:
        return found
    mine = models_of(node, host_vars, values)
    if not mine:
        found.append(f"{node}: no model is placed on it; add one to llm_models, or take the host out of llm_nodes.")
    for model in mine:
        found += model_problems(node, model, engine, cluster.get("llm_lock") or {})
    names = [str(model["name"]) for model in mine]
    found += [f"{node}: llm_models names {name} twice." for name in sorted({n for n in names if names.count(n) > 1})]
    if not found and engine == "llama_cpp":
        found += port_problems(node, host_vars, cluster)
    return found or share_port_problems(node, host_vars, cluster)


def models_of(node: str, host_vars: Mapping[str, Any], values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the entries of ``llm_models`` for a node, with those that may be for it if its facts could not be read."""
    labels, unknown = node_labels(host_vars, values)
    return [
        model
        for model in values["llm_models"]
        if placed_on(model, node, host_vars.get("group_names") or [])
        and fits(model, labels, unknown if facts_unread(host_vars) else ())
    ]


def label_problems(node: str, labels: Any) -> list[str]:
    """Check that labels are what routes can compare with."""
    if not isinstance(labels, Mapping):
        return [f"{node}: llm_node_labels must be a mapping, such as {{gpu_memory_gb: 24}}."]
    plain = (str, int, float, type(None))
    return [
        f"{node}: label {name} must be a text, a number, true or false, or a list of such."
        for name, value in labels.items()
        if not isinstance(value, plain)
        and not (isinstance(value, list) and all(isinstance(one, plain) and one is not None for one in value))
    ]


def number_problems(host: str, variable: str, value: Any, bounds: tuple[float, float], whole: bool = True) -> list[str]:
    """Check that a value is a number within its bounds, both of which it may reach."""
    low, high = bounds
    kind = "a whole number" if whole else "a number"
    try:
        number = float(str(value))
    except ValueError:
        number = None
    if number is None or not low <= number <= high or (whole and number != int(number)):
        return [f"{host}: {variable} is {value!r}; it must be {kind} from {low:g} to {high:g}."]
    return []


def boolean_problems(host: str, variable: str, value: Any) -> list[str]:
    """Check that a value is true or false. Text is neither: INI inventories and ``-e name=false`` give such."""
    if isinstance(value, bool) or str(value).lower() in ("true", "false", "yes", "no"):
        return []
    return [f"{host}: {variable} is {value!r}; it must be true or false."]


def model_problems(node: str, model: Mapping[str, Any], engine: str, lock: Mapping[str, Any]) -> list[str]:
    """Check that a model entry says where the model comes from, in a way that the node's engine can use."""
    name, source, digest = model["name"], model.get("source") or {}, normal_digest(model.get("digest"))
    where = f"{node}: model {name}"
    strange = sorted(set(model) - MODEL_KEYS)
    found = [f"{where}: {key} is no key of a model; there are {', '.join(sorted(MODEL_KEYS))}." for key in strange]
    for key in ("preload", "insecure"):
        found += boolean_problems(where, key, model.get(key, False))
    if digest and not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        found.append(f"{where}: digest must be sha256: and 64 hexadecimal digits.")
    unknown = sorted(set(source) - {"url", "file", "registry"})
    if unknown or len(source) > 1:
        found.append(f"{where}: source takes exactly one of url, file or registry, not {', '.join(sorted(source))}.")
    elif engine == "llama_cpp" and not ("url" in source or "file" in source):
        found.append(f"{where}: llama_cpp needs source.url or source.file (a GGUF file).")
    elif engine == "llama_cpp" and "url" in source and not (digest or locked(lock, str(name), engine)):
        found.append(
            f"{where}: a model from a URL needs its digest, so that nothing else can be served: lock it with "
            "playbooks/lock.yml, or write it here (sha256:…)."
        )
    elif engine == "ollama" and ("url" in source or "file" in source):
        found.append(f"{where}: ollama takes models from a registry; use source.registry, or llm_engine: llama_cpp.")
    for key, highest in (("slots", 1024), ("port", 65535), ("context", 16_777_216)):
        if model.get(key) is not None:
            found += number_problems(where, key, model[key], (1, highest))
    return found


def port_problems(node: str, host_vars: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """Check that the models of a llama.cpp node do not share a port or a unit."""
    found = []
    peers = node_peers(node, host_vars, cluster, doubtful=True)
    for attribute, what in (("port", "port"), ("unit", "unit name")):
        taken: dict[Any, str] = {}
        for peer in peers:
            model = peer["models"][0]
            value = peer["port"] if attribute == "port" else model["unit"]
            other = taken.setdefault(value, model["name"])
            if other != model["name"]:
                cure = "give one another port" if attribute == "port" else "rename one"
                found.append(f"{node}: models {other} and {model['name']} would share the {what} {value}; {cure}.")
    return found


def share_port_problems(node: str, host_vars: Mapping[str, Any], cluster: Mapping[str, Any]) -> list[str]:
    """Check the port at which nodes give each other model files: no engine of the node may have it."""
    share = host_vars.get("llm_share_port", cluster.get("llm_share_port"))
    found = number_problems(node, "llm_share_port", share, (1, 65535))
    if found:
        return found
    return [
        f"{node}: {peer['name']} listens on port {peer['port']}, which is llm_share_port too; choose another one."
        for peer in node_peers(node, host_vars, cluster)
        if peer["port"] == int(share)
    ]


def address_problems(hosts: Mapping[str, Mapping[str, Any]], roles: Mapping[str, list[str]]) -> list[str]:
    """Two nodes with one address are one machine twice: their engines would fight over files and ports."""
    seen: dict[str, str] = {}
    found = []
    for node in roles["nodes"]:
        address = address_of(hosts[node])
        if address is None:
            continue
        other = seen.setdefault(address, node)
        if other != node:
            found.append(f"{other} and {node} have the same address {address}; a machine can be one node only.")
    return found


def default_model_problems(
    hosts: Mapping[str, Mapping[str, Any]], nodes: list[str], cluster: Mapping[str, Any]
) -> list[str]:
    """The model that requests without one are given must be served somewhere."""
    wanted = cluster.get("llm_default_model")
    served = {
        model["name"]
        for node in nodes
        for peer in node_peers(node, hosts[node], cluster, doubtful=True)
        for model in peer["models"]
    }
    if not wanted or wanted in served:
        return []
    return [f"llm_default_model is {wanted}, which no node serves; choose one of {', '.join(sorted(served))}."]


def placement_problems(
    hosts: Mapping[str, Mapping[str, Any]], nodes: list[str], cluster: Mapping[str, Any]
) -> list[str]:
    """A name under a model's ``nodes`` that is neither a node nor a group of one is a typing error."""
    known = set(nodes) | {group for node in nodes for group in hosts[node].get("group_names") or []}
    labels = {
        label for node in nodes for part in node_labels(hosts[node], settings(hosts[node], cluster)) for label in part
    }
    found = []
    for node in nodes:
        for model in settings(hosts[node], cluster)["llm_models"]:
            for name in model.get("nodes") or []:
                if name not in known:
                    found.append(
                        f"Model {model['name']}: nodes names {name}, which is neither a node nor a group of nodes."
                    )
            found += [
                f"Model {model['name']}: labels asks for {name}, which no node has; there are "
                f"{', '.join(sorted(labels))}."
                for name in model.get("labels") or {}
                if name not in labels
            ]
    return found


def version_problems(hosts: Mapping[str, Mapping[str, Any]], nodes: list[str], cluster: Mapping[str, Any]) -> list[str]:
    """One model is one version on all nodes of an engine: anything else gives different answers to one question."""
    lock = cluster.get("llm_lock") or {}
    seen: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
    found = []
    for node in nodes:
        values = settings(hosts[node], cluster)
        engine = values["llm_engine"]
        for given in models_of(node, hosts[node], values):
            model = normal_model(given, engine, 1, lock)
            pinned = locked(lock, model["name"], engine).get("digest")
            if pinned and model["digest"] != pinned:
                found.append(
                    f"Model {model['name']}: llm_models wants {model['digest']}, the lock file says {pinned} "
                    f"({engine}). Run playbooks/lock.yml to lock what llm_models wants, or take the digest out there."
                )
            other, first = seen.setdefault((model["name"], engine), (node, model))
            if first["digest"] != model["digest"]:
                what = f"{first['digest'] or 'any version'} on {other} and {model['digest'] or 'any version'} on {node}"
                found.append(
                    f"Model {model['name']} would be {what}, and so give different answers to one question: give all "
                    "nodes one digest, or the models different names."
                )
            elif not model["digest"] and first["source"] != model["source"]:
                found.append(
                    f"Model {model['name']} comes from different sources on {other} and {node}, and so may give "
                    "different answers to one question: give all nodes one source, or its digest."
                )
    return found


def cluster_peers(
    hosts: Mapping[str, Mapping[str, Any]], nodes: list[str], cluster: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the peers as the routing table will have them, with the labels that could not be read."""
    peers = [peer for node in nodes for peer in node_peers(node, hosts[node], cluster, doubtful=True)]
    unread = unread_labels(peers)
    return [{**peer, "unknown_labels": unread.get(peer["node"])} for peer in table_peers(peers)]


def route_problems(hosts: Mapping[str, Mapping[str, Any]], nodes: list[str], cluster: Mapping[str, Any]) -> list[str]:
    """Check the routes: what they name must be there, and each must allow at least one peer."""
    found = _routes.problems(cluster.get("llm_routes") or [], cluster_peers(hosts, nodes, cluster))
    return [f"llm_{problem}." for problem in found]


def key_problems(api_keys: Any, required: bool) -> list[str]:
    """Check the API keys without ever repeating one."""
    if not isinstance(api_keys, list) or not all(
        isinstance(entry, Mapping) and entry.get("name") for entry in api_keys
    ):
        return ["llm_api_keys must be a list of entries with a name and a key (or the key's sha256)."]
    if required and not api_keys:
        return [
            "llm_api_keys is empty: anyone who reaches the balancer could use the models. Add a key (from a vault),"
            " or set llm_require_api_key: false for a closed laboratory."
        ]
    found = []
    names = [str(entry["name"]) for entry in api_keys]
    found += [f"llm_api_keys names {name} twice." for name in sorted({n for n in names if names.count(n) > 1})]
    found += [
        f"llm_api_keys: the name {name!r} must start with a letter or digit; then . _ : / @ + - may follow too."
        for name in names
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:/@+-]{0,199}", name)
    ]
    for entry in api_keys:
        strange = sorted(set(map(str, entry)) - set(KEY_FIELDS))
        found += [f"llm_api_keys: {entry['name']}: {name} is no field of a key." for name in strange]
        models = entry.get("models")
        if models is not None and not _routes.is_texts(models):
            found.append(f"llm_api_keys: key {entry['name']}: models must be a list of at least one name or pattern.")
        numbers = {name: normal_number(entry[name]) for name in KEY_NUMBERS if entry.get(name) is not None}
        found += [f"llm_api_keys: {problem}." for problem in limit_problems({"name": entry["name"], **numbers})]
        key, digest = entry.get("key"), entry.get("sha256")
        if digest:
            if not re.fullmatch(r"[0-9a-fA-F]{64}", str(digest)):
                found.append(f"llm_api_keys: the sha256 of {entry['name']} is not 64 hexadecimal digits.")
        elif not key:
            found.append(f"llm_api_keys: {entry['name']} has neither key nor sha256.")
        elif PLACEHOLDER.search(str(key)):
            found.append(
                f"llm_api_keys: the key of {entry['name']} is still the example's; make one with: openssl rand -hex 24"
            )
        elif len(str(key)) < 16:
            found.append(
                f"llm_api_keys: the key of {entry['name']} is shorter than 16 characters;"
                " make one with: openssl rand -hex 24"
            )
    return found


def warnings(hosts: Mapping[str, Mapping[str, Any]], nodes: list[str], cluster: Mapping[str, Any]) -> list[str]:
    """Return what works but will disappoint, a sentence each: small machines, slow links, rules for nothing."""
    found = []
    for node in nodes:
        facts = hosts[node].get("ansible_facts") or {}
        small = [
            f"{have:g} {unit} (want {SMALL_NODE[key]})"
            for key, have, unit in sizes(facts)
            if have is not None and have < SMALL_NODE[key]
        ]
        if small:
            found.append(f"{node} is small for serving models: {', '.join(small)}.")
    found += label_warnings(hosts, nodes, cluster)
    return found + rule_warnings(cluster, cluster_peers(hosts, nodes, cluster))


def label_warnings(hosts: Mapping[str, Mapping[str, Any]], nodes: list[str], cluster: Mapping[str, Any]) -> list[str]:
    """Return what comes of placing models by labels: those that are nowhere, and labels that could not be read."""
    found = []
    placed = {node: models_of(node, hosts[node], settings(hosts[node], cluster)) for node in nodes}
    for node in nodes:
        values = settings(hosts[node], cluster)
        unknown = node_labels(hosts[node], values)[1]
        for model in values["llm_models"]:
            asked = model.get("labels") or {}
            missing = sorted(set(asked) & set(unknown))
            words = " and ".join(f"{label} {_routes.as_words(wanted)}" for label, wanted in asked.items())
            if asked and not any(model in models for models in placed.values()):
                found.append(f"Model {model['name']} is on no node: none has {words}.")
            if missing and model in placed[node]:
                found.append(
                    f"{node}: {', '.join(missing)} could not be read, so nobody knows whether model {model['name']} "
                    f"({words}) belongs there. Requests for it go there if the node has it."
                )
            elif missing and placed_on(model, node, hosts[node].get("group_names") or []):
                found.append(
                    f"{node}: {', '.join(missing)} could not be read, so model {model['name']} ({words}) isn't brought "
                    "there. Set llm_node_labels for it."
                )
    return list(dict.fromkeys(found))


def rule_warnings(cluster: Mapping[str, Any], peers: list[dict[str, Any]]) -> list[str]:
    """Return what is right in routes and keys by itself, but can't ever have an effect."""
    routes, keys = cluster.get("llm_routes") or [], cluster.get("llm_api_keys") or []
    names = [str(entry["name"]) for entry in keys]
    found = []
    for position, route in enumerate(routes):
        where, when = f"Route {route['name']}", route.get("when") or {}
        if route.get("prefer") and not _routes.preferred(route, peers):
            wanted = " and ".join(f"{name} {_routes.as_words(value)}" for name, value in route["prefer"].items())
            found.append(f"{where} prefers {wanted}, but none of the nodes that it allows is such.")
        patterns = _routes.patterns_of(when.get("key"))
        if patterns and not any(_routes.glob_matches(pattern, name) for pattern in patterns for name in names):
            found.append(f"{where} is for key {' or '.join(patterns)}, but llm_api_keys has none of that name.")
        if not when and position + 1 < len(routes):
            rest = ", ".join(str(later["name"]) for later in routes[position + 1 :])
            found.append(f"{where} takes every request, so those after it never come to their turn: {rest}.")
            break
    served = {form for peer in peers for model in peer["models"] for form in _routes.forms(model)}
    aliases = [
        pattern
        for route in routes
        if route.get("model")
        for pattern in _routes.patterns_of((route.get("when") or {}).get("model")) or []
    ]
    for entry in keys:
        allowed = entry.get("models") or []
        if allowed and not any(
            _routes.glob_matches(pattern, name) for pattern in allowed for name in [*served, *aliases]
        ):
            found.append(f"Key {entry['name']} may use {', '.join(allowed)} only, but no node serves such a model.")
    return found


def sizes(facts: Mapping[str, Any]) -> list[tuple[str, float | None, str]]:
    """Return the sizes that matter from a host's facts: (key of SMALL_NODE, value or None if unknown, unit)."""
    memory = facts.get("memtotal_mb")
    free = [mount.get("size_available") for mount in facts.get("mounts") or [] if mount.get("mount") in ("/", "/var")]
    device = facts.get((facts.get("default_ipv4") or {}).get("interface") or "") or {}
    speed = device.get("speed")
    known = [size for size in free if size]
    return [
        ("cores", facts.get("processor_vcpus"), "cores"),
        # A machine sold with 16 GB reports a little less to its kernel.
        ("memory_gb", round(memory / 1000 * 1.03, 1) if memory else None, "GB of memory"),
        ("disk_gb", round(max(known) / 1e9, 1) if known else None, "GB of free disk"),
        ("link_mbit", speed if speed and speed > 0 else None, "Mbit/s"),
    ]
