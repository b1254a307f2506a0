# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role models: from a node's peers to the option ``models`` of the module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

SOURCES = ("url", "file", "registry")


def module_models(peers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what the module llm.cluster.model takes for the models of a node's peers."""
    return [
        {
            "name": model["name"],
            "address": peer["address"],
            "port": peer["port"],
            "digest": model.get("digest") or None,
            "size": model.get("size"),
            "source": {kind: model["source"][kind] for kind in SOURCES if (model.get("source") or {}).get(kind)},
            "insecure": bool(model.get("insecure")),
            "unit": model["unit"],
        }
        for peer in peers
        for model in peer["models"]
    ]


def preloaded_models(peers: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the same for the models that are to be in memory before the first request."""
    return module_models(
        {**peer, "models": [model for model in peer["models"] if model.get("preload", True)]} for peer in peers
    )


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"module_models": module_models, "preloaded_models": preloaded_models}
