# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What both engines' files answer, and how they put into words what the network did."""

from __future__ import annotations

import http.client
import socket
import urllib.error
from dataclasses import dataclass, field
from typing import Any, Callable

from ansible_collections.llm.cluster.plugins.module_utils._engines import AnswerError
from ansible_collections.llm.cluster.plugins.module_utils._stats import UnreadableError


@dataclass(frozen=True)
class EngineState:
    """An engine now. None is what it doesn't tell; ``unread`` what should have been told, and why it wasn't."""

    kind: str
    version: str | None
    healthy: bool
    reason: str
    busy: int | None
    slots: int | None
    waiting: int | None
    unread: dict[str, str] = field(default_factory=dict)


def asked(ask: Callable[[], Any], timeout: float) -> Any:
    """Return the answer; UnreadableError with a short reason where there is none."""
    try:
        return ask()
    except AnswerError as error:
        raise UnreadableError(f"HTTP {error}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreadableError(network_reason(error, timeout)) from error


def network_reason(error: Exception, timeout: float) -> str:
    """Say in words why there was no answer."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused"
    if isinstance(cause, (socket.timeout, TimeoutError)):
        return f"no answer within {timeout:g} s"
    if isinstance(cause, ValueError):
        return "the answer is not JSON"
    return str(cause) or type(cause).__name__
