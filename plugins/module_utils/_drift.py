# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drift: where a node's models are not what the lock says.

Pure functions on what module node_stats returns; nothing is asked or changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SCHEMA = 1
# ok: as wanted. missing: not served. partial: the same, half of it came. wrong: another version is served. corrupt: the
# files aren't what they should be. stale: the files are right, memory has another version. extra: nobody wants it.
DRIFTED = ("missing", "partial", "wrong", "corrupt", "stale")
WORDS = {
    "ok": "",
    "missing": "missing",
    "partial": "half downloaded",
    "wrong": "another version",
    "corrupt": "damaged",
    "stale": "another version in memory",
    "extra": "not wanted here",
}


def node_drift(stats: Mapping[str, Any] | None, wanted: Iterable[Mapping[str, Any]], prune: bool) -> dict[str, Any]:
    """Return how one node differs from what is wanted.

    :param stats: what module node_stats returned; None if the node could not be reached
    :param wanted: its models as the modules take them (filter module_models)
    :param prune: whether a model that nobody wants here is drift
    """
    if stats is None:
        return {"state": "unreachable", "models": [], "note": "the node can't be reached"}
    if stats.get("models") is None:
        unread = {part["part"]: part["reason"] for part in stats.get("unread") or []}
        reason = unread.get("models") or stats.get("msg") or "its models can't be read"
        return {"state": "unknown", "models": [], "note": str(reason)}
    found = {model["name"]: model for model in stats["models"]}
    models = [_model_drift(found.pop(model["name"], {}), model) for model in wanted]
    models += [_entry(model, "extra") for _name, model in sorted(found.items()) if model.get("digest")]
    drifted = [model for model in models if model["kind"] in DRIFTED or (prune and model["kind"] == "extra")]
    return {"state": "drift" if drifted else "ok", "models": models, "note": ""}


def _model_drift(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return how one model differs from what is wanted."""
    digest, loaded, status = (found.get(key) or "" for key in ("digest", "loaded", "status"))
    named = {**found, "name": wanted["name"], "wanted": wanted.get("digest") or ""}
    if status == "corrupt":
        return _entry(named, "corrupt")
    if not digest:
        if found.get("held"):
            return _entry(named, "missing", "it is on the node, and only has to be switched to")
        return _entry(named, "partial" if found.get("have") else "missing")
    if named["wanted"] not in ("", digest):
        ready = "the wanted one is on the node, and only has to be switched to" if found.get("held") else ""
        return _entry(named, "wrong", ready)
    if loaded and loaded != digest:
        return _entry(named, "stale", f"memory has {loaded}")
    return _entry(named, "ok")


def _entry(model: Mapping[str, Any], kind: str, note: str = "") -> dict[str, Any]:
    notes = [one for one in (note, str(model.get("note") or "")) if one]
    return {
        "name": model["name"],
        "kind": kind,
        "wanted": model.get("wanted") or "",
        "digest": model.get("digest") or "",
        "note": "; ".join(notes),
    }


def report(nodes: Mapping[str, Mapping[str, Any]], unlocked: Iterable[str] = ()) -> dict[str, Any]:
    """Return the whole report from each node's drift: what is written to result.json.

    :param unlocked: models whose version the lock doesn't settle
    """
    unlocked = list(unlocked)

    def in_state(state: str) -> list[str]:
        return sorted(node for node, found in nodes.items() if found["state"] == state)

    return {
        "schema": SCHEMA,
        "ok": not unlocked and all(found["state"] == "ok" for found in nodes.values()),
        "drift": in_state("drift"),
        "unreachable": in_state("unreachable"),
        "unknown": in_state("unknown"),
        "unlocked": unlocked,
        "nodes": {node: dict(found) for node, found in nodes.items()},
    }


def short(digest: str) -> str | None:
    """Return a digest's first digits, which is what people compare; None for none."""
    return digest[: len("sha256:") + 12] or None


def rows(nodes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str | None, ...]]:
    """Return a line for each node and model: node, state, model, wanted, there, what is to be said of it."""
    found: list[tuple[str | None, ...]] = []
    for node, drift in nodes.items():
        if not drift["models"]:
            found.append((node, drift["state"], None, None, None, drift["note"] or None))
        for model in drift["models"]:
            said = ": ".join(part for part in (WORDS[model["kind"]], model["note"]) if part)
            versions = (short(model["wanted"]), short(model["digest"]))
            found.append((node, drift["state"], model["name"], *versions, said or None))
    return found


def problems(found: Mapping[str, Any]) -> list[str]:
    """Return what is wrong in a report, a sentence each that says what to do."""
    said = []
    if found["unlocked"]:
        said.append(
            f"The lock file does not settle the version of {', '.join(found['unlocked'])}. Lock it with: "
            "ansible-playbook playbooks/lock.yml -i INVENTORY"
        )
    if found["drift"]:
        said.append(
            f"{', '.join(found['drift'])}: the models are not those of the lock file. Look at what sync would do with: "
            "ansible-playbook playbooks/sync.yml -i INVENTORY --check --diff; then run it without --check."
        )
    if found["unreachable"]:
        said.append(
            f"{', '.join(found['unreachable'])}: can't be reached, so nobody knows what it serves. Bring it back, take "
            "it out of service with playbooks/drain.yml, or take it out of the inventory."
        )
    said += [
        f"{node}: its models could not be read: {found['nodes'][node]['note'].rstrip('.')}. Look there, then run again."
        for node in found["unknown"]
    ]
    return said
