# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around the lock file. The logic is in module_utils/_lock and _lock_plan."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llm.cluster.plugins.filter.topology import HostVars, cluster_defaults
from ansible_collections.llm.cluster.plugins.module_utils import _lock, _lock_plan


@lru_cache(maxsize=8)
def _read(path: str, _version: tuple[int, int, int]) -> tuple[str, dict[str, Any]]:
    """Return text and lock of a file in one version of it: every host's variables ask for it again and again."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return text, _lock.read_lock(text)
    except _lock.LockError as error:
        raise AnsibleFilterError(f"{path}, {error}") from error
    except UnicodeDecodeError as error:
        raise AnsibleFilterError(f"{path} is no text ({error}). Restore it from your version control.") from error


def _text_and_lock(path: str) -> tuple[str, dict[str, Any]]:
    path = os.path.expanduser(str(path))
    try:
        stat = os.stat(path)
        return _read(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except FileNotFoundError:
        return "", {}
    except OSError as error:
        raise AnsibleFilterError(f"The lock file {path} cannot be read: {error}. Correct llm_lock_file.") from error


def read_lock(path: str) -> dict[str, Any]:
    """Return what is locked; nothing if there is no file."""
    return _text_and_lock(path)[1]


def unlocked_models(nodes: list[str], hostvars: HostVars, lock: Mapping[str, Any]) -> list[str]:
    """Return the models whose version the lock doesn't settle, or llm_models otherwise, as ``NAME (ENGINE)``."""
    wanted, _problems = _lock_plan.wants(hostvars, nodes, cluster_defaults())
    return [f"{want.name} ({want.engine})" for want in wanted.values() if not _lock_plan.settled(want, lock)]


def lock_plan(
    path: str, nodes: list[str], hostvars: HostVars, request: Mapping[str, Any], reached: list[str]
) -> dict[str, Any]:
    """Return who is to ask for what: ``asks`` by host, ``nodes_needed``, and ``problems`` that stop everything.

    :param request: ``update`` (names or all) and ``node`` (from which versions are taken)
    """
    lock = read_lock(path)
    wanted, problems = _lock_plan.wants(hostvars, nodes, cluster_defaults())
    names = _lock_plan.update_names(request["update"])
    problems += _lock_plan.update_problems(wanted, names)
    node = request["node"]
    if node and node not in nodes:
        problems.append(f"lock_from names {node}, which is no node; there are {', '.join(nodes)}.")
    asked = _lock_plan.to_ask(wanted, lock, names)
    if node and not problems:
        asked = [want for want in asked if want.engine != _engine(node, hostvars)]
    doubtful = [want.name for want in wanted.values() if not want.nodes]
    return {
        "asks": _lock_plan.askers(asked, reached),
        "nodes_needed": bool(doubtful) or any(not want.on_controller for want in asked),
        "problems": problems,
    }


def lock_result(
    path: str, nodes: list[str], hostvars: HostVars, request: Mapping[str, Any], answers: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the new ``text`` of the lock file, if it ``differs``, and ``lines`` and ``problems`` to be said."""
    text, lock = _text_and_lock(path)
    wanted, _problems = _lock_plan.wants(hostvars, nodes, cluster_defaults())
    asked = _lock_plan.to_ask(wanted, lock, _lock_plan.update_names(request["update"]))
    node = request["node"]
    if node:
        served = _lock_plan.served_answers(asked, node, _engine(node, hostvars), request["served"])
        answers = [*answers, *served]
    new, problems = _lock_plan.new_lock(wanted, lock, asked, answers)
    written = _lock.write_lock(text, new) if text or new else ""
    return {
        "text": written,
        "differs": written != text,
        "lines": _lock_plan.changes(lock, new),
        "problems": problems,
    }


def _engine(node: str, hostvars: HostVars) -> str:
    return str(hostvars[node].get("llm_engine") or cluster_defaults()["llm_engine"])


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {
            "lock_plan": lock_plan,
            "lock_result": lock_result,
            "read_lock": read_lock,
            "unlocked_models": unlocked_models,
        }
