# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The llama.cpp instances of a node now: each has an address and port of its own, and one model."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

from ansible_collections.llm.cluster.plugins.module_utils._engines import call_engine, open_engine
from ansible_collections.llm.cluster.plugins.module_utils._stats import Part, UnreadableError
from ansible_collections.llm.cluster.plugins.module_utils._stats._engine import EngineState, asked

DEFERRED = re.compile(r"^llamacpp:requests_deferred\s+(\d+)", re.MULTILINE)
# What a server says that was built outside its repository, such as that of the wheel.
NO_BUILD = "b0-"
RELEASE = re.compile(r"/releases/(?:wheel|archive)-([^/\0]+)/")


@dataclass(frozen=True)
class Instance:
    """One instance: its model's name, its URL and the name of its systemd unit's instance."""

    model: str
    base: str
    unit: str


@dataclass(frozen=True)
class Props:
    """What an instance says of itself: its version, empty if it doesn't, and the context of each slot in tokens."""

    version: str
    context: int | None


def busy_and_total(slots: Any) -> tuple[int, int]:
    """Return how many slots are at work, and all, from the answer of /slots."""
    if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
        raise UnreadableError("the answer to /slots is not a list of slots")
    return sum(bool(slot.get("is_processing")) for slot in slots), len(slots)


def deferred(metrics: str) -> int:
    """Return how many requests wait for a slot, from the text of /metrics."""
    found = DEFERRED.search(metrics)
    if not found:
        raise UnreadableError("/metrics doesn't say how many requests wait")
    return int(found.group(1))


def release_of(command: str) -> str | None:
    """Return the version of the release that a command runs, as role llama_cpp names its folder."""
    found = RELEASE.search(command)
    return found.group(1) if found else None


def running_release(unit: str, seconds: float) -> str | None:
    """Return the version of the release that an instance's process runs, where its path tells."""
    command = ["systemctl", "show", "--property=MainPID", "--value", f"llama-cpp@{unit}.service"]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    process = f"/proc/{done.stdout.decode().strip()}/"
    with contextlib.suppress(OSError), open(process + "cmdline", encoding="utf-8", errors="replace") as stream:
        found = release_of(stream.read())
        # A program of its own was started by the name that is the same for all releases.
        return found or release_of(os.readlink(process + "exe"))
    return None


def parts(instances: Sequence[Instance], timeout: float) -> dict[str, Part]:
    """Return what has to be asked, all instances at the same time."""
    asked_for = {"health": _health, "version": _props, "slots": _slots, "waiting": _waiting}
    return {
        f"{what} {instance.base}": Part(lambda read=read, instance=instance: read(instance, timeout), timeout)
        for instance in instances
        for what, read in asked_for.items()
    }


def _get(instance: Instance, path: str, timeout: float) -> Any:
    return asked(lambda: call_engine(instance.base, "GET", path, timeout=timeout), timeout)


def _health(instance: Instance, timeout: float) -> bool:
    _get(instance, "/health", timeout)
    return True


def _props(instance: Instance, timeout: float) -> Props:
    answer = _get(instance, "/props", timeout)
    if not isinstance(answer, dict):
        raise UnreadableError("the answer to /props is not an object")
    build = str(answer.get("build_info") or "")
    context = (answer.get("default_generation_settings") or {}).get("n_ctx")
    if not build or build.startswith(NO_BUILD):
        build = running_release(instance.unit, timeout) or build
    return Props(build, int(context) if context else None)


def _slots(instance: Instance, timeout: float) -> tuple[int, int]:
    return busy_and_total(_get(instance, "/slots", timeout))


def _waiting(instance: Instance, timeout: float) -> int:
    def ask() -> str:
        with open_engine(instance.base, "GET", "/metrics", timeout=timeout) as response:
            return str(response.read().decode("utf-8", "replace"))

    return deferred(asked(ask, timeout))


def state(
    instances: Sequence[Instance], read: Mapping[str, Any], failed: Mapping[str, str], slots: int | None
) -> EngineState:
    """Return the instances' state together from the answers, and from the reasons for those that didn't come.

    Slots in use and waiting requests are those of the instances that told.
    """
    if not instances:
        return EngineState("llama_cpp", None, False, "no model is meant for this node", None, slots, None)

    def told(what: str) -> list[Any]:
        return [read[key] for key in (f"{what} {instance.base}" for instance in instances) if key in read]

    def reasons(what: str) -> str:
        keys = {instance.model: f"{what} {instance.base}" for instance in instances}
        return "; ".join(f"{model}: {failed[key]}" for model, key in keys.items() if key in failed)

    counted, deferrals = told("slots"), told("waiting")
    whole = len(counted) == len(instances)
    return EngineState(
        "llama_cpp",
        ", ".join(sorted({props.version for props in told("version") if props.version})) or None,
        not reasons("health"),
        reasons("health"),
        sum(busy for busy, _total in counted) if counted else None,
        sum(total for _busy, total in counted) if whole else slots,
        sum(deferrals) if deferrals else None,
        {what: reasons(what) for what in ("version", "slots", "waiting") if reasons(what)},
    )


def contexts(instances: Sequence[Instance], read: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the context that each instance gives a request, by unit."""
    keys = {instance.unit: f"version {instance.base}" for instance in instances}
    return {unit: read[key].context for unit, key in keys.items() if key in read}
