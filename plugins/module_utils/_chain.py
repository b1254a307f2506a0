# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who fetches which version from whom, so that it crosses the internet link once.

For each version the nodes that lack it make a chain: the first one gets it from nodes that have it, else from where it
comes from; each of the others from the one before it, while that is still fetching. Pure functions on plain
dictionaries.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Seconds of silence after which a peer is given up. The next one in the chain goes elsewhere first, and the ones behind
# it have the bytes again before they would.
FIRST, STEP, LONGEST = 10.0, 5.0, 60.0
# A node that fetches other versions before may be late by this.
LATER = 20.0
# The controller sends in chunks, with nothing in between.
SENT = 300.0
# More nodes than these are not asked one after the other.
PREDECESSORS, HOLDERS = 4, 3

# Where engines have their models unless the inventory says otherwise; role models derives the same.
FOLDERS = {
    "llama_cpp": ("llama_cpp_data_dir", "/var/lib/llama-cpp", "models"),
    "ollama": ("ollama_models_path", "/var/lib/ollama/models", ""),
}


@dataclass
class Node:
    """What is known of one node: its wanted models with their digests, which of those it lacks, and what it holds."""

    name: str
    url: str
    models: list[dict[str, Any]] = field(default_factory=list)
    lacks: set[str] = field(default_factory=set)
    holds: set[str] = field(default_factory=set)


@dataclass
class Plan:
    """What each node does: fetch in the background, or be sent files by the controller; and who serves."""

    fetch: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    send: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    serve: list[str] = field(default_factory=list)


def is_digest(text: Any) -> bool:
    """Whether the text names a version."""
    return isinstance(text, str) and text.startswith("sha256:")


def seen(host_vars: Mapping[str, Any]) -> tuple[dict[str, str], set[str], set[str]] | None:
    """Return the wanted version by model, the versions that the node lacks and those that it holds; None if unknown.

    They come from module node_stats (``llm_node_stats``), or from module model in check mode (``__models_look``).
    """
    stats = host_vars.get("llm_node_stats") or {}
    if isinstance(stats.get("held"), Mapping):
        wanted = {found["name"]: found["wanted"] for found in stats["models"] if is_digest(found["wanted"])}
        holds = set(stats["held"])
        holds -= {found["digest"] for found in stats["models"] if found["status"] == "corrupt"}
        return wanted, set(wanted.values()) - holds, holds
    look = host_vars.get("__models_look") or {}
    if look.get("failed") or not look.get("models"):
        return None
    wanted, lacks, holds = {}, set(), set()
    for model in look["models"]:
        before, after, kept = model["digest_before"], model["digest_after"], set(model.get("held") or [])
        holds |= kept
        if model["changed"] and before == after:
            # The file under the right name is damaged.
            lacks.add(after)
        elif is_digest(before):
            holds.add(before)
        if is_digest(after):
            wanted[model["name"]] = after
    lacks |= set(wanted.values()) - holds
    return wanted, lacks, holds - lacks


def folders(host_vars: Mapping[str, Any], engine: str) -> dict[str, str]:
    """Return where a host that isn't in play has its models, from what the inventory sets."""
    variable, default, below = FOLDERS[engine]
    models = host_vars.get("models_dir") or posixpath.join(host_vars.get(variable) or default, below).rstrip("/")
    partial = host_vars.get("models_partial_dir") or posixpath.join(posixpath.dirname(models), "partial")
    return {"models_dir": models, "partial_dir": partial}


def patience(position: int, earlier: int, sent: bool) -> float:
    """Return the seconds of silence that a node bears, by its place in the chain and what it fetches before."""
    if sent:
        return SENT
    return min(FIRST + STEP * max(position - 1, 0), LONGEST) + (LATER if earlier else 0)


def plan(nodes: list[Node], targets: Iterable[str]) -> Plan:
    """Return what to do for the targets; versions for which nobody could help another are left out.

    All nodes fetch in one order, and those that begin a version first are at the head of its chain.
    """
    wanted = set(targets)
    result = Plan()
    earlier: dict[str, int] = {}
    senders: list[str] = []
    jobs: dict[str, list[dict[str, Any]]] = {}
    needed: set[str] = set()
    lacking = [node for node in nodes if node.name in wanted and node.lacks]
    digests = dict.fromkeys(model["digest"] for node in lacking for model in node.models)
    # Who is sent files has no time for others meanwhile, so this has to be known first.
    for digest in sorted(digests, key=lambda digest: not _is_sent(nodes, lacking, digest)):
        chain = [node for node in lacking if digest in node.lacks and _models(node, digest)]
        holders = [node for node in nodes if digest in node.holds]
        if not chain or len(chain) + len(holders) < 2:
            continue
        sent = _is_sent(nodes, lacking, digest)
        chain.sort(key=lambda node, sent=sent: ((node.name in senders) is not sent, earlier.get(node.name, 0)))  # type: ignore[misc]
        if sent and chain[0].name not in senders:
            senders.append(chain[0].name)
        # What is needed already helps again before others are asked to.
        holders.sort(key=lambda node: node.name not in needed)
        helping = holders[:HOLDERS]
        needed |= {node.name for node in [*helping, *chain]}
        for position, node in enumerate(chain):
            before = chain[max(position - PREDECESSORS, 0) : position][::-1]
            turned = [helping[(position + step) % len(helping)] for step in range(len(helping))]
            bears = patience(position, earlier.get(node.name, 0), sent)
            peers = [peer.url for peer in [*before, *turned]]
            jobs.setdefault(node.name, []).extend(
                {**model, "peers": peers, "patience": bears} for model in _models(node, digest)
            )
            earlier[node.name] = earlier.get(node.name, 0) + 1
    result.send = {name: models for name, models in jobs.items() if name in senders}
    result.fetch = {name: models for name, models in jobs.items() if name not in senders}
    result.serve = [node.name for node in nodes if node.name in needed]
    return result


def _is_sent(nodes: list[Node], lacking: list[Node], digest: str) -> bool:
    """Whether a version has to come from the controller: it is a file there, and no node has it."""
    models = [model for node in lacking for model in _models(node, digest)]
    return not any(digest in node.holds for node in nodes) and any("file" in model["source"] for model in models)


def _models(node: Node, digest: str) -> list[dict[str, Any]]:
    return [model for model in node.models if model["digest"] == digest]
