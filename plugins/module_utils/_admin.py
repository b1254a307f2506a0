# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The balancer's admin API: JSON over HTTP over a Unix socket.

Standard library only, no Ansible import, so that modules, the command line and tests can all use it.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

DEFAULT_SOCKET = "/run/llm-cluster/admin.sock"
# The argument spec that goes with doc fragment admin_socket.
ADMIN_OPTIONS: dict[str, dict[str, Any]] = {
    "socket": {"type": "path", "default": DEFAULT_SOCKET},
    "answer_timeout": {"type": "float", "default": 10},
}

_LOOK = "Look with: systemctl status nginx; journalctl -u nginx -n 50"


class AdminError(Exception):
    """The admin API gave no usable answer; the message says what to do next."""


class UnreachableError(AdminError):
    """Nothing answers at the socket."""


class RefusedError(AdminError):
    """The balancer understood the request and refused it."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class _UnixConnection(http.client.HTTPConnection):
    """An HTTP connection whose other end is a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


class AdminClient:
    """Requests to one balancer's admin API. Each uses a connection of its own."""

    def __init__(self, path: str = DEFAULT_SOCKET, timeout: float = 10.0) -> None:
        self.path = path
        self.timeout = timeout

    def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object at the path."""
        return self.request("GET", path)

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Put a JSON object at the path and return the answer."""
        return self.request("PUT", path, body)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post a JSON object to the path and return the answer."""
        return self.request("POST", path, body)

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send one request and return the JSON object of its answer.

        Raises UnreachableError when nothing answers, RefusedError on a 4xx answer, AdminError on any other failure.
        """
        data = None if body is None else json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
        headers = {"Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection = _UnixConnection(self.path, self.timeout)
        try:
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(self.path, self.timeout, error) from error
        finally:
            connection.close()
        return read_answer(method + " " + path, response.status, raw)


def read_answer(request: str, status: int, raw: bytes) -> dict[str, Any]:
    """Return the JSON object of a successful answer, else raise what the answer means."""
    try:
        answer = json.loads(raw.decode("utf-8"))
    except ValueError:
        answer = None
    if status >= 400:
        reason = error_message(answer) or raw[:200].decode("utf-8", "replace").strip() or "no reason given"
        message = f"The balancer answered {request} with {status}: {reason}"
        if status < 500:
            raise RefusedError(message, status, reason)
        raise AdminError(f"{message}. {_LOOK}")
    if not 200 <= status < 300 or not isinstance(answer, dict):
        raise AdminError(
            f"{request} was answered with status {status} and not with a JSON object: what listens there is not this "
            f"collection's balancer, or of another version. Run site.yml for this host, then try again. {_LOOK}"
        )
    return answer


def error_message(answer: Any) -> str | None:
    """Return the message of an error answer ``{"error": {"message": …}}``, or None if it isn't one."""
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) and error else None


def _unreachable(path: str, timeout: float, error: Exception) -> AdminError:
    """Return the error that says why nothing answers at the socket and what to do."""
    if isinstance(error, FileNotFoundError):
        return UnreachableError(
            f"There is no admin socket {path}: nginx isn't running with this collection's configuration, or the host "
            f"is not a balancer. {_LOOK}"
        )
    if isinstance(error, ConnectionRefusedError):
        return UnreachableError(f"Nobody listens on the admin socket {path}: nginx has stopped. {_LOOK}")
    if isinstance(error, PermissionError):
        return UnreachableError(
            f"Access to the admin socket {path} is denied: only root may use it (set become: true)."
        )
    if isinstance(error, (socket.timeout, TimeoutError)):
        return UnreachableError(f"The admin socket {path} gave no answer within {timeout:g} s. {_LOOK}")
    detail = str(error) or type(error).__name__
    return UnreachableError(f"The exchange over the admin socket {path} broke off: {detail}. {_LOOK}")
