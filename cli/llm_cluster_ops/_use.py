# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up the ``llm`` of whoever calls it for a cluster's endpoint, as role client does it for users of the hosts."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import llm

from . import _folder
from ._errors import ClusterError


def client_module() -> ModuleType:
    """Return the collection's module llm_client, which knows how llm's files are edited."""
    path = _folder.collection() / "plugins" / "modules" / "llm_client.py"
    spec = importlib.util.spec_from_file_location("llm_cluster_ops_client", path)
    if spec is None or spec.loader is None:
        raise ClusterError(f"{path} is missing. Install again: llm install -U llm-cluster-ops")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def key_name(cluster: str) -> str:
    """Return the name of the cluster's key in llm's key store; it also marks the entries that are ours."""
    return f"llm-cluster-{cluster}"


def set_up(cluster: str, endpoint: dict[str, Any]) -> list[str]:
    """Write the endpoint's models and key. Returns the models' names."""
    client, name, folder = client_module(), key_name(cluster), llm.user_dir()
    base = client.api_base(endpoint["url"])
    wanted = [
        client.plan_file(
            str(folder / client.MODELS_FILE),
            0o644,
            lambda text: client.merge_models(text or "", name, endpoint["models"], base, name),
        )
    ]
    if endpoint["key"]:
        wanted.append(
            client.plan_file(
                str(folder / client.KEYS_FILE),
                0o600,
                lambda text: client.merge_key(text, name, endpoint["key"]),
                close=True,
            )
        )
    apply(client, wanted)
    return [str(model["model_id"]) for model in endpoint["models"]]


def undo(cluster: str) -> list[Path]:
    """Take out what set_up put in, and nothing else. Returns the files that changed."""
    client, name, folder = client_module(), key_name(cluster), llm.user_dir()
    wanted = [
        client.plan_file(
            str(folder / client.MODELS_FILE), 0o644, lambda text: text and client.remove_models(text, name)
        ),
        client.plan_file(str(folder / client.KEYS_FILE), 0o600, lambda text: client.remove_key(text, name)),
    ]
    return apply(client, wanted)


def apply(client: ModuleType, changes: list[Any]) -> list[Path]:
    """Make the changes that are needed; all were planned before the first is made."""
    needed = [change for change in changes if change.needed]
    for change in needed:
        client.apply_change(change)
    return [Path(change.path) for change in needed]
