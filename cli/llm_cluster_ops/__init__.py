# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a cluster of LLM servers: ``llm cluster …`` on the command line, ``Cluster`` in Python.

Every ``llm`` call imports this package, so nothing is imported here until it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._errors import ClusterError, RunFailedError
    from .cluster import Cluster

__all__ = ["Cluster", "ClusterError", "RunFailedError"]


def __getattr__(name: str) -> Any:
    if name == "Cluster":
        from .cluster import Cluster

        return Cluster
    if name in __all__:
        from . import _errors

        return getattr(_errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
