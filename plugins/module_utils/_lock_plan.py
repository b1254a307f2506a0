# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks/lock.yml asks whom, and what it then locks.

Pure functions on plain dictionaries: nothing is asked, read or written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils._fetch import split_credentials
from ansible_collections.llm.cluster.plugins.module_utils._topology import (
    facts_unread,
    fits,
    locked,
    node_labels,
    normal_model,
    placed_on,
    settings,
)


@dataclass
class Want:
    """One model on one engine, as ``llm_models`` has it. ``nodes`` are those it is placed on for certain."""

    name: str
    engine: str
    source: dict[str, str]
    insecure: bool
    digest: str
    nodes: list[str] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """What the lock and answers call it."""
        return self.name, self.engine

    @property
    def on_controller(self) -> bool:
        """Whether it is a file on the controller, where alone it can be looked at."""
        return bool(self.source.get("file"))


def lock_source(source: Mapping[str, Any]) -> dict[str, str]:
    """Return a source as the lock has it: without a login, and without the folder, which is another one elsewhere."""
    kinds = {
        "url": lambda url: split_credentials(url)[0],
        "file": lambda path: path.replace("\\", "/").rpartition("/")[2],
        "registry": lambda name: name,
    }
    return {kind: shown(str(source[kind])) for kind, shown in kinds.items() if source.get(kind)}


def wants(
    hosts: Mapping[str, Mapping[str, Any]], nodes: Iterable[str], defaults: Mapping[str, Any]
) -> tuple[dict[tuple[str, str], Want], list[str]]:
    """Return what all nodes want by model and engine, and where they disagree.

    A model that is placed by labels which could not be read is among it, with no node.
    """
    found: dict[tuple[str, str], Want] = {}
    problems = []
    for node in nodes:
        values = settings(hosts[node], defaults)
        engine = values["llm_engine"]
        labels, unknown = node_labels(hosts[node], values)
        for given in values["llm_models"]:
            doubtful = unknown if facts_unread(hosts[node]) else []
            if not placed_on(given, node, hosts[node].get("group_names") or []) or not fits(given, labels, doubtful):
                continue
            model = normal_model(given, engine, 1)
            digest = model["digest"] or ""
            want = Want(model["name"], engine, model["source"], model["insecure"], digest)
            first = found.setdefault(want.key, want)
            if first.digest != want.digest or lock_source(first.source) != lock_source(want.source):
                problems.append(
                    f"{want.name} ({engine}): llm_models of {node} and of {first.nodes[0] if first.nodes else 'others'}"
                    " want different digests or sources. One name is one version: make them the same, or give one of "
                    "them another name."
                )
            if fits(given, labels):
                first.nodes.append(node)
    return found, list(dict.fromkeys(problems))


def update_names(update: Any) -> list[str]:
    """Return ``lock_update`` as a list, whether it came as one or as text with commas."""
    parts = update if isinstance(update, (list, tuple)) else str(update or "").split(",")
    return [name for name in (str(part).strip() for part in parts) if name]


def settled(want: Want, lock: Mapping[str, Any]) -> bool:
    """Whether the lock says which version it is, and ``llm_models`` no other one. What is on no node need not be."""
    digest = locked(lock, want.name, want.engine).get("digest")
    return not want.nodes or bool(digest and want.digest in ("", digest))


def to_ask(wanted: Mapping[tuple[str, str], Want], lock: Mapping[str, Any], names: list[str]) -> list[Want]:
    """Return what has to be asked: what isn't locked, or not as llm_models has it, and what is to be updated."""
    asked = []
    for want in wanted.values():
        same = locked(lock, want.name, want.engine).get("source") == lock_source(want.source)
        update = want.name in names or "all" in names
        if want.nodes and (update or not same or not settled(want, lock)):
            asked.append(want)
    return asked


def update_problems(wanted: Iterable[tuple[str, str]], names: list[str]) -> list[str]:
    """A misspelt name would update nothing without a word."""
    known = sorted({name for name, _engine in wanted})
    return [
        f"lock_update names {name}, which is not in llm_models; there are {', '.join(known) or 'none'}."
        for name in names
        if name not in (*known, "all")
    ]


def askers(asked: Iterable[Want], reached: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """Return by host what it is to ask, as module model_source takes it; under ``""`` is what the controller asks.

    The first node asks that can be reached: it sees the network as the one that will fetch the model.
    """
    able = set(reached)
    found: dict[str, list[dict[str, Any]]] = {}
    for want in asked:
        host = "" if want.on_controller else next((node for node in want.nodes if node in able), "")
        entry = {"name": want.name, "engine": want.engine, "source": want.source, "insecure": want.insecure}
        found.setdefault(host, []).append(entry)
    return found


def served_answers(asked: Iterable[Want], node: str, engine: str, models: Iterable[Mapping[str, Any]] | None) -> Any:
    """Return what a node serves as answers to what is asked for its engine."""
    found = {str(model["name"]): model for model in models or []}
    answers = []
    for want in asked:
        if want.engine == engine:
            model = found.get(want.name) or {}
            usable = model.get("digest") and model.get("status") != "corrupt"
            said = "serves a damaged file of it" if model.get("digest") else "does not serve it"
            answers.append(
                {
                    "name": want.name,
                    "engine": engine,
                    "digest": model["digest"] if usable else "",
                    "size": model.get("size") if usable else None,
                    "problem": "" if usable else f"{node} {said}. Name a node that does with -e lock_from=NODE.",
                }
            )
    return answers


def new_lock(
    wanted: Mapping[tuple[str, str], Want],
    lock: Mapping[str, Any],
    asked: Iterable[Want],
    answers: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[str]]:
    """Return the lock that the answers make, and what could not be locked, for which the old entry stays."""
    said = {(answer["name"], answer["engine"]): answer for answer in answers}
    entries = {key: locked(lock, *key) for key in wanted}
    problems = []
    for want in asked:
        answer = said.get(want.key) or {"digest": "", "problem": "nobody could be asked."}
        digest, size = answer["digest"], answer.get("size")
        if want.digest and digest and digest != want.digest:
            problems.append(
                f"{want.name} ({want.engine}): llm_models wants {want.digest}, the source has {digest} now. Take the "
                "digest out of llm_models to accept that version, or name a source that has the wanted one."
            )
        elif want.digest or digest:
            if size is None and entries[want.key].get("digest") == (want.digest or digest):
                size = entries[want.key].get("size")
            entries[want.key] = {"digest": want.digest or digest, "size": size, "source": lock_source(want.source)}
        else:
            problems.append(f"{want.name} ({want.engine}): {answer['problem']}")
    new: dict[str, Any] = {}
    for (name, engine), entry in entries.items():
        if entry:
            new.setdefault(name, {})[engine] = dict(entry)
    return new, problems


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what changes, a line each."""
    keys = sorted({(name, engine) for lock in (old, new) for name, engines in lock.items() for engine in engines})
    lines = []
    for key in keys:
        before, after = locked(old, *key), locked(new, *key)
        if before != after:
            digests = [entry.get("digest") or "nothing" for entry in (before, after)]
            what = " → ".join(dict.fromkeys(digests)) + (" (source or size)" if digests[0] == digests[1] else "")
            lines.append(f"{key[0]} ({key[1]}): {what}")
    return lines
