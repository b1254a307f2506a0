# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What status and stats tell programs and people: the results of modules node_stats and balancer_info, put together.

Pure functions. A host that could not be asked is a Silent one; it is told of as well as it can be, by what others know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Mapping, Sequence

from ansible_collections.llm.cluster.plugins.module_utils._drift import DRIFTED, WORDS, node_drift, short
from ansible_collections.llm.cluster.plugins.module_utils._table import text_table

GIB = 1 << 30
LONGEST_REASON = 300
STATUS_HEADINGS = ("node", "state", "engine", "slots", "model", "digest", "drift")
# A balancer's word for a peer's condition → the operator's.
CONDITIONS = {"up": "up", "down": "out", "drained": "drained", "probing": "probing"}


@dataclass(frozen=True)
class Silent:
    """A host that could not be asked: why, and whether it could not even be reached."""

    reason: str
    unreachable: bool


Answer = Mapping[str, Any]


def answer_of(result: Mapping[str, Any] | None) -> Answer | Silent:
    """Return what a module answered on a host, from what was registered there."""
    if not result or result.get("failed") or result.get("unreachable"):
        reason = " ".join(str((result or {}).get("msg") or "it was not asked").split())
        reason = reason[len("Task failed: ") :] if reason.startswith("Task failed: ") else reason
        return Silent(reason[:LONGEST_REASON], bool((result or {}).get("unreachable")))
    return result


# What the balancers say of a node


def peers_at(node: str, balancers: Mapping[str, Answer | Silent]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the node's peers at each balancer that could be asked."""
    return {
        name: list(info["nodes"].get(node) or []) for name, info in balancers.items() if not isinstance(info, Silent)
    }


def condition(at: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return one word for a node by its peers at the balancers; empty if no balancer could be asked."""
    words = {CONDITIONS.get(peer["state"], peer["state"]) for peers in at.values() for peer in peers}
    words |= {"unplaced" for peers in at.values() if not peers}
    return words.pop() if len(words) == 1 else "partly up" if "up" in words else "out" if words else ""


def owners(at: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return who keeps the node drained."""
    return sorted({mark["owner"] for peers in at.values() for peer in peers for mark in peer["drains"]})


def balancer_notes(node: str, at: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return why the node isn't simply up, for each peer and balancer where there is something to say."""
    notes = []
    for balancer, peers in at.items():
        where = f" at {balancer}" if len(at) > 1 else ""
        if not peers:
            notes.append(f"{node}: is not in the routing table{where}.")
        for peer in peers:
            word = CONDITIONS.get(peer["state"], peer["state"])
            if word == "drained":
                notes.append(f"{peer['name']}: {peer['reason']}{where}.")
            elif word != "up":
                notes.append(f"{peer['name']}: {word}{where}: {peer['reason'] or 'no reason is known'}.")
            if peer["lacks"]:
                notes.append(f"{peer['name']}: has no {', '.join(peer['lacks'])}{where}, so gets no request for it.")
    return notes


def slots_of(stats: Answer | Silent, at: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, int | None]:
    """Return slots in use and all: by the balancers' count where they have the node, else by the engine's."""
    own: Mapping[str, Any] = {} if isinstance(stats, Silent) else stats["slots"]
    placed = [peers for peers in at.values() if peers]
    busy = sum(peer["busy"] for peers in placed for peer in peers) if placed else own.get("busy")
    total = max((sum(peer["slots"] for peer in peers) for peers in placed), default=None)
    return {"busy": busy, "total": own.get("total") or total}


def unread_texts(unread: Iterable[Mapping[str, Any]], engine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the parts that could not be read, by the reason; what has the engine's own is no news."""
    parts: dict[str, list[str]] = {}
    for part in unread:
        if part["reason"] != engine.get("reason"):
            parts.setdefault(part["reason"], []).append(part["part"])
    return [(", ".join(found), reason) for reason, found in parts.items()]


# Status


def status(
    nodes: Mapping[str, Answer | Silent],
    balancers: Mapping[str, Answer | Silent],
    wanted: Mapping[str, Iterable[Mapping[str, Any]]],
    prune: bool,
) -> dict[str, Any]:
    """Return what is, for programs.

    :param wanted: the models of each node, as the modules take them
    :param prune: whether a model that nobody wants is drift
    """
    return {
        "nodes": {
            node: _node_status(node, stats, balancers, wanted.get(node, []), prune) for node, stats in nodes.items()
        },
        "balancers": {name: _balancer_status(info) for name, info in balancers.items()},
    }


def _node_status(
    node: str,
    stats: Answer | Silent,
    balancers: Mapping[str, Answer | Silent],
    wanted: Iterable[Mapping[str, Any]],
    prune: bool,
) -> dict[str, Any]:
    at = peers_at(node, balancers)
    seen, notes = condition(at), balancer_notes(node, at)
    if isinstance(stats, Silent):
        state = "unreachable" if stats.unreachable else "silent"
        notes.insert(0, f"{node}: {stats.reason}")
        engine, unread = None, []
    else:
        engine, unread = stats["engine"], stats["unread"]
        # Without a balancer the engine's own word is what there is.
        state = seen or ("up" if engine["healthy"] else "out")
        if not engine["healthy"]:
            notes.append(f"{node}: the engine isn't healthy: {engine['reason']}.")
        notes += [f"{node}: {what} could not be read: {why}." for what, why in unread_texts(unread, engine)]
    drift = node_drift(None if isinstance(stats, Silent) else stats, wanted, prune)
    return {
        "state": state,
        "at_balancers": seen,
        "drained_by": owners(at),
        "engine": engine,
        "slots": slots_of(stats, at),
        "drift": drift["state"],
        "models": drift["models"],
        "unread": unread,
        "notes": notes,
    }


def _balancer_status(info: Answer | Silent) -> dict[str, Any]:
    if isinstance(info, Silent):
        return {"state": "unreachable" if info.unreachable else "out", "reason": info.reason}
    states = [{peer["state"] for peer in peers} for peers in info["nodes"].values()]
    return {
        "state": "up",
        "reason": "",
        "version": info["version"],
        "policy": info["policy"],
        "nodes": len(states),
        "nodes_up": sum(found == {"up"} for found in states),
        "queue": info["queue"]["waiting"],
    }


def status_lines(found: Mapping[str, Any]) -> list[str]:
    """Return a status for people: the table, a line for each balancer, and what there is to say."""
    rows = [row for node, entry in found["nodes"].items() for row in _status_rows(node, entry)]
    lines = text_table(rows, STATUS_HEADINGS) if rows else ["There are no nodes in this run."]
    lines.append("")
    for name, info in found["balancers"].items():
        if info["state"] != "up":
            lines.append(f"{name}: {info['state']}: {info['reason']}")
            continue
        lines.append(
            f"{name}: up | nodes {info['nodes_up']} of {info['nodes']} up | queue {info['queue']}"
            f" | routing table {info['version']} | policy {info['policy'] or '-'}"
        )
    if not found["balancers"]:
        lines.append("No balancer is in this run: states are the engines' own.")
    notes = [note for entry in found["nodes"].values() for note in entry["notes"]]
    return lines + (["", *notes] if notes else [])


def _status_rows(node: str, entry: Mapping[str, Any]) -> list[list[Any]]:
    """Return the rows of one node: what holds for the node stands in the first only."""
    engine = entry["engine"] or {}
    named = " ".join(filter(None, (engine.get("kind"), engine.get("version")))) or None
    head = [node, state_text(entry), named, fraction(entry["slots"])]
    models = [_model_cells(model) for model in entry["models"]] or [[None, None, None]]
    return [(head if position == 0 else [""] * len(head)) + cells for position, cells in enumerate(models)]


def state_text(entry: Mapping[str, Any]) -> str:
    """Return a node's state as people say it."""
    state, seen = str(entry["state"]), str(entry["at_balancers"])
    if "drained" in (state, seen) and entry["drained_by"]:
        drained = "drained by " + ", ".join(entry["drained_by"])
        return drained if state == "drained" else f"{state}, {drained}"
    return f"{state}, {seen} at the balancer" if seen and state != seen else state


def _model_cells(model: Mapping[str, Any]) -> list[str | None]:
    said = WORDS[model["kind"]]
    if model["kind"] in DRIFTED and model["wanted"] and model["kind"] != "stale":
        said += f", wanted {short(model['wanted'])}"
    said = ": ".join(filter(None, (said, model["note"])))
    return [model["name"], short(model["digest"]), f"DRIFT: {said}" if model["kind"] in DRIFTED else said or "ok"]


# Stats


def stats(nodes: Mapping[str, Answer | Silent], balancers: Mapping[str, Answer | Silent]) -> dict[str, Any]:
    """Return load and requests of the last minute, for programs."""
    heard = [info for info in balancers.values() if not isinstance(info, Silent)]
    return {
        "nodes": {node: _node_stats(node, answer, balancers) for node, answer in nodes.items()},
        "balancers": {name: _balancer_stats(info) for name, info in balancers.items()},
        "all": requests([info["minute"] for info in heard], sum(info["queue"]["waiting"] for info in heard))
        if heard
        else None,
    }


def _node_stats(node: str, answer: Answer | Silent, balancers: Mapping[str, Answer | Silent]) -> dict[str, Any]:
    at = peers_at(node, balancers)
    seen = condition(at)
    peers = [peer for found in at.values() for peer in found]
    entry: dict[str, Any] = {
        "state": seen,
        "at_balancers": seen,
        "drained_by": owners(at),
        "reason": "",
        **dict.fromkeys(("engine", "cpu", "memory", "disk", "gpus", "waiting")),
        "unread": [],
    }
    if isinstance(answer, Silent):
        entry.update(state="unreachable" if answer.unreachable else "silent", reason=answer.reason)
    else:
        entry.update({part: answer[part] for part in ("engine", "cpu", "memory", "disk", "gpus", "waiting", "unread")})
        entry["state"] = seen or ("up" if answer["engine"]["healthy"] else "out")
        entry["reason"] = answer["engine"]["reason"]
    entry["slots"] = slots_of(answer, at)
    # What waits may take several of a node's peers, so their numbers don't add up.
    queue = sum(max((peer["waiting"] for peer in found if peer["state"] == "up"), default=0) for found in at.values())
    entry["requests"] = requests([peer["minute"] for peer in peers], queue) if peers else None
    return entry


def _balancer_stats(info: Answer | Silent) -> dict[str, Any]:
    if isinstance(info, Silent):
        return {"state": "unreachable" if info.unreachable else "out", "reason": info.reason, "requests": None}
    return {"state": "up", "reason": "", "requests": requests([info["minute"]], info["queue"]["waiting"])}


def requests(minutes: Sequence[Mapping[str, Any]], queue: int) -> dict[str, Any]:
    """Return several last minutes as one: rates add up, means and shares count by what they are of. None is unknown."""
    known = [minute for minute in minutes if minute["requests_per_minute"] is not None]
    answered = [(minute["answered_per_minute"] or 0, minute["latency"]) for minute in known]
    asked = [(minute["requests_per_minute"], minute["timed_out"]) for minute in known]
    share = _mean(asked)
    return {
        "per_minute": round(sum(rate for rate, _share in asked), 1) if known else None,
        "mean_seconds": _mean(answered),
        "timed_out_percent": None if share is None else round(100 * share, 2),
        "queue": queue,
    }


def _mean(weighted: Iterable[tuple[float, float | None]]) -> float | None:
    """Return the mean of (weight, value), None if nothing weighs anything."""
    known = [(weight, value) for weight, value in weighted if weight and value is not None]
    total = sum(weight for weight, _value in known)
    return round(sum(weight * value for weight, value in known) / total, 3) if total else None


def stats_lines(found: Mapping[str, Any]) -> list[str]:
    """Return stats for people: two lines for each node, then a line for each balancer, and one for all of several."""
    lines = [line for node, entry in found["nodes"].items() for line in _node_lines(node, entry)]
    for name, entry in found["balancers"].items():
        told = requests_text(entry["requests"]) if entry["requests"] else f"{entry['state']}: {entry['reason']}"
        lines.append(f"{name}: {told}")
    if len(found["balancers"]) > 1 and found["all"]:
        lines.append(f"all: {requests_text(found['all'])}")
    return lines


def _node_lines(node: str, entry: Mapping[str, Any]) -> list[str]:
    if entry["state"] in ("unreachable", "silent"):
        first = f"{node}: {state_text(entry)}: {entry['reason']}"
    else:
        cpu, memory = entry["cpu"], entry["memory"]
        parts = [
            f"load {cpu['load_percent']:.0f}%" if cpu else "load ?",
            f"memory {gib(memory)}" if memory else "memory ?",
            f"slots {fraction(entry['slots']) or '?'}",
            "waiting " + ("-" if entry["waiting"] is None else str(entry["waiting"])),
            *gpu_texts(entry["gpus"]),
        ]
        if entry["state"] != "up":
            parts.append(state_text(entry))
        first = f"{node}: " + " | ".join(parts)
    lines = [first, f"requests: {requests_text(entry['requests'], '') if entry['requests'] else 'no balancer tells'}"]
    reason = entry["reason"] if entry["engine"] and not entry["engine"]["healthy"] else ""
    unread = unread_texts(entry["unread"], entry["engine"] or {})
    lines += [f"engine not healthy: {reason}"] if reason else []
    return lines + [f"could not be read: {what}: {why}" for what, why in unread]


def requests_text(figures: Mapping[str, Any], lead: str = "requests ") -> str:
    """Return ``1243/min | mean 1.2 s | time-outs 0.3% | queue 4``; a dash is for what is unknown."""
    rate, mean, share = figures["per_minute"], figures["mean_seconds"], figures["timed_out_percent"]
    return " | ".join(
        (
            lead
            + ("-" if rate is None else f"{rate:.0f}/min" if rate >= 10 or rate == int(rate) else f"{rate:.1f}/min"),
            "mean -" if mean is None else f"mean {mean:.1f} s",
            "time-outs -" if share is None else f"time-outs {share:.1f}%",
            f"queue {figures['queue']}",
        )
    )


def fraction(slots: Mapping[str, int | None]) -> str | None:
    """Return ``3/4``; a dash for what isn't known, None if nothing is."""
    told = [None if slots[key] is None else str(slots[key]) for key in ("busy", "total")]
    return "/".join(part or "-" for part in told) if any(told) else None


def gib(memory: Mapping[str, int]) -> str:
    """Return ``14.2/32.0 GB``: in units of 1024³ bytes, as memory is sold."""
    return f"{memory['used'] / GIB:.1f}/{memory['total'] / GIB:.1f} GB"


def gpu_texts(gpus: Sequence[Mapping[str, Any]] | None) -> list[str]:
    """Return ``gpu 87% 12.0/24.0 GB``, of several the mean and the sums; nothing where there is none."""
    if gpus is None:
        return ["gpu ?"]
    if not gpus:
        return []
    loads = [gpu["utilization_percent"] for gpu in gpus if gpu["utilization_percent"] is not None]
    parts = ["gpu" if len(gpus) == 1 else f"{len(gpus)} gpus", f"{sum(loads) / len(loads):.0f}%" if loads else "-%"]
    sizes = {key: [gpu[f"memory_{key}"] for gpu in gpus] for key in ("used", "total")}
    if None not in sizes["used"] + sizes["total"]:
        parts.append(gib({key: sum(found) for key, found in sizes.items()}))
    return [" ".join(parts)]
