# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's HTTP API, as far as models are brought, loaded and removed through it."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import time
from typing import Any, Iterator

from ansible_collections.llm.cluster.plugins.module_utils import _fetch
from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    AnswerError,
    EngineError,
    Fetch,
    Settings,
    call_engine,
    error_text,
)

# While Ollama hashes what it pulled it says nothing; a large model on a slow disk takes its time.
QUIET_STEPS = 1800.0
PULL_TRIES = 3
# An answer without any work comes at once; a server that hangs must not hold up who only looks.
PATIENCE = 3.0
# How long what was dropped out of memory may take to leave it.
LEAVING = 10.0


class MissingError(EngineError):
    """Ollama has no such model."""


def with_prefix(digest: str) -> str:
    """Return a digest as ``sha256:hex``; /api/tags shows it bare."""
    return digest if not digest or digest.startswith("sha256:") else "sha256:" + digest


def stays(expires: str, now: datetime.datetime) -> bool:
    """Whether a model's expiry means for ever: Ollama shows that as a date centuries away, or none."""
    year = expires[:4]
    return not year.isdigit() or int(year) <= 1 or int(year) > now.year + 50


def duration(keep_alive: str) -> int | str:
    """Return keep_alive as Ollama takes it: a number of seconds, or a text with a unit."""
    try:
        return int(keep_alive)
    except ValueError:
        return keep_alive


class PullProgress:
    """What a pull's stream of messages adds up to."""

    def __init__(self, clock: Any = time.monotonic) -> None:
        self.first: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.status = ""
        self.succeeded = False
        self._clock = clock
        self._moved_at = clock()

    def feed(self, line: bytes) -> None:
        """Take in one message; raise EngineError for an error in it."""
        try:
            message = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise EngineError(f"Ollama answered the pull with {line[:200]!r} instead of JSON.") from error
        if message.get("error"):
            raise EngineError(f"Ollama could not pull: {message['error']}.")
        status = str(message.get("status", ""))
        part, completed = message.get("digest"), int(message.get("completed") or 0)
        if part:
            self.first.setdefault(part, completed)
        if status != self.status or (part and completed > self.last.get(part, -1)):
            self._moved_at = self._clock()
        self.status = status
        if part:
            self.last[part] = completed
        self.succeeded = status == "success"

    @property
    def still_for(self) -> float:
        """Seconds since anything moved."""
        return self._clock() - self._moved_at

    @property
    def transfers(self) -> bool:
        """Whether the step is one in which bytes should move."""
        return not self.status.startswith(("verifying", "writing", "removing"))

    @property
    def fetched(self) -> Fetch:
        """Bytes that were moved, and that were there already."""
        resumed = sum(self.first.values())
        return Fetch(max(sum(self.last.values()) - resumed, 0), resumed)


class StalledError(Exception):
    """A pull stopped moving or broke off; trying again goes on from there."""


class OllamaServer:
    """The server of one node."""

    def __init__(self, settings: Settings, address: str, port: int) -> None:
        self.settings = settings
        self.host = f"[{address}]" if ":" in address else address
        self.port = port
        self.base = f"http://{self.host}:{port}"

    # Talking to the server

    def _call(self, method: str, path: str, body: Any = None, timeout: float = 30.0) -> Any:
        try:
            return call_engine(self.base, method, path, body, timeout)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise EngineError(
                f"Ollama gives no answer to {method} {self.base}{path}: {getattr(error, 'reason', error)}. Look with: "
                "systemctl status ollama; journalctl -u ollama -n 50"
            ) from error

    def _listed(self, path: str) -> list[dict[str, Any]]:
        try:
            return list((self._call("GET", path) or {}).get("models") or [])
        except AnswerError as error:
            raise EngineError(
                f"Ollama answered GET {path} with {error}. Look with: journalctl -u ollama -n 50"
            ) from error

    def copy(self, source: str, target: str) -> None:
        """Give a version another name."""
        self._change("POST", "/api/copy", {"source": source, "destination": target})

    def delete(self, name: str) -> None:
        """Remove a name, and the blobs that no other one needs (Ollama does)."""
        with contextlib.suppress(MissingError):
            self._change("DELETE", "/api/delete", {"model": name})

    def _change(self, method: str, path: str, body: dict[str, str]) -> None:
        try:
            self._call(method, path, body)
        except AnswerError as error:
            kind = MissingError if error.status == 404 else EngineError
            raise kind(f"Ollama answered {method} {path} {body} with {error}.") from error

    def names(self) -> dict[str, str]:
        """Return the digest under each name."""
        return {entry["name"]: with_prefix(entry.get("digest") or "") for entry in self._listed("/api/tags")}

    def running(self) -> list[dict[str, Any]]:
        """Return what is in memory."""
        return self._listed("/api/ps")

    def running_if_up(self) -> list[dict[str, Any]]:
        """Return what is in memory; nothing while the server is down or hangs."""
        try:
            return list((call_engine(self.base, "GET", "/api/ps", timeout=PATIENCE) or {}).get("models") or [])
        except (OSError, ValueError, AttributeError, http.client.HTTPException, AnswerError):
            return []

    def pull(self, name: str, insecure: bool) -> Fetch:
        """Have Ollama fetch a name from its registry, with its own login."""
        moved = 0
        for attempt in range(1, PULL_TRIES + 1):
            progress = PullProgress()
            try:
                for line in self._pull_lines(name, insecure, progress):
                    progress.feed(line)
                if not progress.succeeded:
                    raise StalledError(f"Ollama's answer ended at {progress.status!r}, without success")
                return Fetch(moved + progress.fetched.moved, max(progress.fetched.resumed - moved, 0))
            except StalledError as error:
                moved += progress.fetched.moved
                if attempt == PULL_TRIES:
                    raise _fetch.BrokenTransferError(
                        f"The pull of {name} failed {PULL_TRIES} times, last: {error}. Ollama keeps what came; run "
                        "again to go on. Look with: journalctl -u ollama -n 50"
                    ) from error
            time.sleep(self.settings.http.pause * attempt)
        raise AssertionError("not reached")

    def _pull_lines(self, name: str, insecure: bool, progress: PullProgress) -> Iterator[bytes]:
        """Yield a pull's messages; raise StalledError when they or the bytes cease."""
        stall = self.settings.http.timeout
        connection = http.client.HTTPConnection(self.host, self.port, timeout=stall)
        try:
            body = json.dumps({"model": name, "insecure": insecure, "stream": True})
            connection.request("POST", "/api/pull", body, {"Content-Type": "application/json"})
            # Kept, because a response that ends with its connection takes it away.
            wire = connection.sock
            response = connection.getresponse()
            if response.status != 200:
                text = response.read(2000).decode("utf-8", "replace")
                raise EngineError(f"Ollama answered the pull of {name} with {response.status}: {error_text(text)}.")
            while True:
                wire.settimeout(stall if progress.transfers else QUIET_STEPS)
                line = response.readline()
                if not line:
                    return
                if line.strip():
                    yield line
                if progress.transfers and progress.still_for > stall:
                    raise StalledError(f"nothing moved for {stall:.0f} s at {progress.status!r}")
        except (OSError, http.client.HTTPException) as error:
            raise StalledError(f"{error!r} at {progress.status!r}") from error
        finally:
            connection.close()

    def load(self, name: str, keep_alive: int | str) -> None:
        """Have a version in memory for so long; 0 drops it."""
        body = {"model": name, "keep_alive": keep_alive, "stream": False}
        try:
            try:
                self._call("POST", "/api/generate", body, self.settings.timeout)
            except AnswerError as error:
                if "does not support generate" not in error.message:
                    raise
                if "completion" in self._capabilities(name):
                    raise EngineError(
                        f"Ollama refuses to generate with {name}, although the model can: it looked at it while the "
                        "weights were missing, and remembers that. Restart it: systemctl restart ollama"
                    ) from error
                # An embedding model.
                embed = {"model": name, "keep_alive": keep_alive, "input": ""}
                self._call("POST", "/api/embed", embed, self.settings.timeout)
        except AnswerError as error:
            raise EngineError(
                f"{name} could not be loaded: Ollama answered {error}. Look with: journalctl -u ollama -n 50"
            ) from error

    def _capabilities(self, name: str) -> list[str]:
        return list((self._call("POST", "/api/show", {"model": name}) or {}).get("capabilities") or [])

    def unload(self, name: str, digest: str) -> bool:
        """Drop a version out of memory under any name of it; return whether it is gone."""
        self.load(name, 0)
        deadline = time.monotonic() + LEAVING
        while any(with_prefix(entry.get("digest") or "") == digest for entry in self.running()):
            # Requests that it still works on are ended first.
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True
