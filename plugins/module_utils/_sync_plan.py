# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a sync has to do, in which order, and what it must not do: nodes to the versions in the lock, a few at a time.

Pure functions on what was looked at before: the nodes' peers (from the inventory and the lock), what each node said of
its models (module node_stats), and what each balancer thinks of the nodes (module balancer_info).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils._sync_marks import OWNER

Stats = Mapping[str, Any]
Info = Mapping[str, Any]


def short(digest: str) -> str:
    """Return as much of a digest as people compare."""
    return digest.partition(":")[2][:12] or "none"


# One node


def wanted_models(peers: Iterable[Mapping[str, Any]], node: str) -> list[Mapping[str, Any]]:
    """Return the models that a node is to serve."""
    return [model for peer in peers if peer["node"] == node for model in peer["models"]]


def found_models(stats: Stats | None) -> dict[str, Mapping[str, Any]]:
    """Return what was found of each model on a node; nothing if nobody could look."""
    return {found["name"]: found for found in (stats or {}).get("models") or []}


def node_work(engine: str, models: Sequence[Mapping[str, Any]], stats: Stats) -> dict[str, Any]:
    """Return what one node needs to serve the wanted versions.

    fetch: models whose bytes are not on the node. switch: models that another version is served of, or none. load:
    models of which memory holds another version than is served. restart: services that have something else in memory
    than is served, or a damaged file. back: the version to go back to for each switched model, empty if any of them
    has none that was good.
    """
    found = found_models(stats)
    held = stats.get("held") or {}
    fetch: list[str] = []
    switch: list[dict[str, str]] = []
    load: list[str] = []
    restart: list[str] = []
    back: dict[str, str] = {}
    for model in models:
        name, wanted = model["name"], model["digest"]
        now = found.get(name) or {"status": "missing", "digest": "", "held": False, "loaded": ""}
        service = "ollama.service" if engine == "ollama" else f"llama-cpp@{model['unit']}.service"
        if now["status"] == "ok":
            if (model["preload"] or engine == "llama_cpp") and now["loaded"] not in ("", wanted):
                load.append(name)
                # Ollama loads what it is asked for, an instance of llama.cpp what it finds when it starts.
                restart += [service] if engine == "llama_cpp" else []
            continue
        if not now["held"]:
            fetch.append(name)
        if now["status"] == "corrupt":
            restart.append(service)
        switch.append({"name": name, "before": now["digest"], "after": wanted, "status": now["status"]})
        if now["digest"] in held and now["status"] != "corrupt":
            back[name] = now["digest"]
    return {
        "fetch": fetch,
        "switch": switch,
        "load": load,
        "restart": sorted(set(restart)),
        "back": back if len(back) == len(switch) else {},
    }


# The balancers' view


def marks_on(info: Info, node: str) -> dict[str, str]:
    """Return the drain marks that hold a node, as reasons by owner."""
    return {mark["owner"]: mark["reason"] for mark in info.get("drains") or [] if mark["name"] == node}


def knows(info: Info, node: str) -> bool:
    """Whether a balancer's table has the node, so that it can be drained there."""
    return node in info["nodes"]


def serving(info: Info, model: str) -> set[str]:
    """Return the nodes that a balancer sends requests for a model to."""
    return {
        node
        for node, peers in info["nodes"].items()
        for peer in peers
        if peer["state"] == "up" and model in peer["models"] and model not in peer["lacks"]
    }


def shortage(
    info: Info, models: Iterable[str], without: Iterable[str], least: int, before: Info | None = None
) -> list[str]:
    """Return which models would be served by too few nodes without these, a sentence each.

    before: what the balancer said when these were not drained yet, if they are by now.
    """
    gone = set(without)
    sentences = []
    for model in sorted(set(models)):
        left = serving(info, model) - gone
        served = serving(before or info, model) & gone
        if served and len(left) < least:
            sentences.append(
                f"{model} would be left with {len(left)} of the {least} nodes that llm_sync_min_available asks for"
                f" while {', '.join(sorted(served))} {'is' if len(served) == 1 else 'are'} switched"
            )
    return sentences


# All nodes


def _batches(
    visit: Sequence[str],
    wanted: Mapping[str, set[str]],
    infos: Sequence[Info],
    *,
    away: set[str],
    size: int,
    least: int,
) -> tuple[list[list[str]], list[str]]:
    """Return the nodes in groups that may be switched at once, and those that never may.

    away: nodes that won't come back into rotation, because somebody else drained them. Nodes that serve nothing now go
    first, since that costs nobody anything and may give the others more room.
    """
    models = sorted(set().union(*wanted.values())) if wanted else []
    serve = [{model: serving(info, model) for model in models} for info in infos]

    def serves(node: str) -> bool:
        return any(node in nodes for by_model in serve for nodes in by_model.values())

    def keeps(group: Iterable[str]) -> bool:
        gone = set(group)
        return all(not nodes & gone or len(nodes - gone) >= least for by_model in serve for nodes in by_model.values())

    left = sorted(visit, key=serves)
    batches: list[list[str]] = []
    while left:
        chosen: list[str] = []
        for node in left:
            if len(chosen) < size and keeps([*chosen, node]):
                chosen.append(node)
        if not chosen:
            break
        batches.append(chosen)
        left = [node for node in left if node not in chosen]
        for node in set(chosen) - away:
            for by_model in serve:
                for model in wanted[node]:
                    by_model[model].add(node)
    return batches, left


def _unknown(seen: Stats | None) -> str:
    """Return why nobody knows what a node serves, empty if it is known."""
    if seen is None:
        return "can't be reached"
    if seen.get("models") is None:
        unread = {part["part"]: part["reason"] for part in seen.get("unread") or []}
        return "its models can't be read: " + unread.get("models", "no reason was given")
    return ""


def _unlocked(peers: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted(
        {f"{model['name']} ({peer['engine']})" for peer in peers for model in peer["models"] if not model["digest"]}
    )


def plan(
    peers: Sequence[Mapping[str, Any]],
    stats: Mapping[str, Stats | None],
    balancers: Mapping[str, Info | None],
    *,
    batch: int,
    min_available: int,
    run: str,
    at_work: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the whole plan of a sync.

    :param peers: of all nodes, with the locked digests
    :param stats: by node, in the inventory's order; None where nobody could look
    :param balancers: by balancer; None where it gave no answer
    :param at_work: what other syncs are at work on, a sentence each
    :returns: ``nodes`` (what each needs), ``fetch`` and ``order`` (nodes), ``serial`` (sizes of the batches), ``mark``
        (nodes of unknown versions, which must not serve meanwhile), ``unknown`` (why, by node), ``refused`` (sentences)
    """
    engines = {peer["node"]: peer["engine"] for peer in peers}
    infos = {name: info for name, info in balancers.items() if info is not None}
    lost = [name for name, info in balancers.items() if info is None]
    unknown = {node: _unknown(seen) for node, seen in stats.items() if _unknown(seen)}
    nodes: dict[str, dict[str, Any]] = {}
    for node, seen in stats.items():
        if seen is None or node in unknown or node not in engines:
            continue
        marks = {owner: reason for info in infos.values() for owner, reason in marks_on(info, node).items()}
        work = node_work(engines[node], wanted_models(peers, node), seen)
        nodes[node] = {
            **work,
            "balancers": [name for name, info in infos.items() if knows(info, node)],
            "leftover": OWNER in marks,
            "drained_by": sorted(set(marks) - {OWNER}),
            "visit": bool(work["switch"] or work["load"] or OWNER in marks),
        }
    visit = [node for node, work in nodes.items() if work["visit"]]
    switched = {each["name"] for work in nodes.values() for each in work["switch"]}
    mark = [
        node
        for node in unknown
        if switched & {model["name"] for model in wanted_models(peers, node)}
        and any(knows(info, node) for info in infos.values())
    ]
    wanted = {node: {model["name"] for model in wanted_models(peers, node)} for node in visit}
    # Who is out of reach is marked before anything is switched, so it doesn't count.
    seen_infos = [_without(info, mark) for info in infos.values()]
    away = {node for node, work in nodes.items() if work["drained_by"]}
    batches, never = _batches(visit, wanted, seen_infos, away=away, size=max(batch, 1), least=min_available)
    unlocked = _unlocked(peers)
    if at_work:
        refused = list(at_work)
    elif unlocked:
        refused = [f"No version is locked for {', '.join(unlocked)}: run lock.yml first."]
    else:
        refused = [_not_set_up(node, names) for node, names in _without_service(nodes, stats).items()]
        refused += _lost(lost) if visit and lost else []
        refused += _too_few(never, wanted, seen_infos, min_available, mark) if never else []
    return {
        "run": run,
        "nodes": nodes,
        "unknown": unknown,
        "balancers": list(balancers),
        "lost": lost,
        "mark": mark,
        "fetch": [node for node in visit if nodes[node]["fetch"]],
        "batches": batches,
        "order": [node for group in batches for node in group],
        "serial": [len(group) for group in batches],
        "refused": refused,
    }


def _without(info: Info, nodes: Iterable[str]) -> Info:
    gone = set(nodes)
    return {**info, "nodes": {name: peers for name, peers in info["nodes"].items() if name not in gone}}


def _without_service(nodes: Mapping[str, Mapping[str, Any]], stats: Mapping[str, Stats | None]) -> dict[str, list[str]]:
    """Return by node the models to be switched that the node could not serve: draining it would be for nothing."""
    waiting = {}
    for node, work in nodes.items():
        found = found_models(stats[node])
        names = [each["name"] for each in work["switch"] if not found.get(each["name"], {}).get("set_up", True)]
        if names:
            waiting[node] = names
    return waiting


def _not_set_up(node: str, names: Sequence[str]) -> str:
    return f"{node} has no service for {', '.join(names)} yet: run site.yml, which sets new models up."


def _lost(balancers: Sequence[str]) -> list[str]:
    return [
        f"{', '.join(balancers)} can't be asked, and a drain holds on all balancers or on none. Bring back each, or "
        "take it out of the inventory."
    ]


def _too_few(
    never: Sequence[str], wanted: Mapping[str, set[str]], infos: Sequence[Info], least: int, mark: Sequence[str]
) -> list[str]:
    """Return why nodes can't be taken out of rotation, a sentence for each model."""
    sentences = []
    for model in sorted(set().union(*(wanted[node] for node in never))):
        now = set.intersection(*(serving(info, model) for info in infos)) if infos else set()
        stuck = sorted(now & set(never))
        if not stuck or len(now) - 1 >= least:
            continue
        also = f" ({', '.join(mark)} can't be reached)" if mark else ""
        sentences.append(
            f"{model} is served by {', '.join(sorted(now))} only{also}, so {len(now) - 1} would be left while"
            f" {stuck[0]} is switched, and llm_sync_min_available is {least}. Have more nodes serve it, or set"
            f" llm_sync_min_available to {len(now) - 1} for this run."
        )
    return sentences


# What people see

HEADINGS = ("node", "model", "served", "wanted", "to do")
STEPS = {"missing": "serve", "wrong": "switch", "corrupt": "mend"}


def preview(made: Mapping[str, Any], peers: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Return the plan for people: rows under HEADINGS, and sentences on what else there is to know."""
    rows, notes = [], []
    for node, work in made["nodes"].items():
        for each in work["switch"]:
            steps = (["fetch"] if each["name"] in work["fetch"] else []) + [STEPS[each["status"]]]
            rows.append([node, each["name"], short(each["before"]), short(each["after"]), ", ".join(steps)])
        digests = {model["name"]: model["digest"] for model in wanted_models(peers, node)}
        rows += [[node, name, short(digests[name]), short(digests[name]), "load"] for name in work["load"]]
        if work["leftover"]:
            notes.append(f"{node} is still drained by an earlier sync: it is checked and taken back.")
        if work["drained_by"] and work["visit"]:
            notes.append(f"{node} is drained by {', '.join(work['drained_by'])} and stays so.")
    if made["batches"]:
        notes.append("Order: " + ", then ".join(" and ".join(group) for group in made["batches"]) + ".")
    for node, why in made["unknown"].items():
        notes.append(f"{node}: {why}" + (", so it is kept out of rotation." if node in made["mark"] else "."))
    for name in made["lost"]:
        notes.append(f"Balancer {name} gives no answer.")
    if not made["order"]:
        notes.append("Nothing is to be switched.")
    return rows, notes


# Versions and tables


def at_versions(peers: Iterable[Mapping[str, Any]], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return peers with other digests for the models named, and without sources.

    For versions that are on the node: whatever the source has by now, nobody is to ask it.
    """

    def at_version(model: Mapping[str, Any]) -> dict[str, Any]:
        return {**model, "digest": digests.get(model["name"], model["digest"]), "source": {}, "size": None}

    return [{**peer, "models": [at_version(model) for model in peer["models"]]} for peer in peers]


def asked_peers(peers: Iterable[Mapping[str, Any]], switched: Iterable[str]) -> list[dict[str, Any]]:
    """Return the peers with the models that are to prove themselves: those that were switched, then the preloaded ones.

    In that order, because an engine may drop a model out of memory for another.
    """
    names = set(switched)
    return [
        {
            **peer,
            "models": [
                {**model, "preload": True}
                for model in sorted(peer["models"], key=lambda model: bool(model["preload"]))
                if model["preload"] or model["name"] in names
            ],
        }
        for peer in peers
    ]


def not_loaded(peers: Iterable[Mapping[str, Any]], stats: Stats) -> list[str]:
    """Return which models memory doesn't hold in the wanted version, a sentence each."""
    found = found_models(stats)
    sentences = []
    for peer in peers:
        for model in peer["models"]:
            loaded = (found.get(model["name"]) or {}).get("loaded") or ""
            if loaded == model["digest"] or (not loaded and not model["preload"]):
                continue
            sentences.append(
                f"{model['name']} is in memory as {short(loaded)}, not as {short(model['digest'])}"
                if loaded
                else f"{model['name']} is not in memory"
            )
    return sentences


def followed(table: Mapping[str, Any], stats: Mapping[str, Stats | None], infos: Iterable[Info]) -> dict[str, Any]:
    """Return a routing table whose peers have the models that are on their nodes; a peer without any is left out.

    A node without stats keeps what the tables in force say: nobody could look at it, or its turn has not come and it
    serves from memory what its disk has lost. A model that no node has stays with all that want it, so that its clients
    and routes are told what is wrong by the balancer, as for a node that is down.
    """
    in_force: dict[str, set[str]] = {}
    for info in infos:
        for peers in info["nodes"].values():
            for peer in peers:
                in_force.setdefault(peer["name"], set()).update(peer["models"])

    def there(peer: Mapping[str, Any]) -> set[str]:
        seen = stats.get(peer["node"])
        if seen is None:
            return in_force.get(peer["name"], set())
        return {name for name, found in found_models(seen).items() if found["digest"]}

    had = {model for peer in table["peers"] for model in peer["models"] if model in there(peer)}
    kept = [
        {**peer, "models": [model for model in peer["models"] if model in there(peer) or model not in had]}
        for peer in table["peers"]
    ]
    return {**table, "peers": [peer for peer in kept if peer["models"]]}


def same_models(table: Mapping[str, Any], info: Info) -> bool:
    """Whether a balancer's table in force has the same models on the same peers."""
    wanted = {peer["name"]: sorted(peer["models"]) for peer in table["peers"]}
    return wanted == {peer["name"]: sorted(peer["models"]) for peers in info["nodes"].values() for peer in peers}


# How it ended


def standing(
    made: Mapping[str, Any],
    peers: Sequence[Mapping[str, Any]],
    stats: Mapping[str, Stats | None],
    ended: Mapping[str, str],
) -> list[list[str | None]]:
    """Return rows on where things stand: node, model, version, and how that compares.

    :param ended: what became of the nodes that the sync has visited, in words
    """
    rows: list[list[str | None]] = []
    for node, seen in stats.items():
        if _unknown(seen):
            rows.append([node, None, None, made["unknown"].get(node) or ended.get(node) or _unknown(seen)])
            continue
        found = found_models(seen)
        for model in wanted_models(peers, node):
            now = found.get(model["name"]) or {}
            served = now.get("digest") or ""
            state = "missing" if not served else "as locked" if served == model["digest"] else "not as locked"
            if now.get("status") == "corrupt":
                state = "damaged"
            waits = node in made["order"] and node not in ended
            said = ended.get(node) or ("its turn has not come" if waits else "")
            rows.append([node, model["name"], short(served), f"{state}; {said}" if said else state])
    return rows
