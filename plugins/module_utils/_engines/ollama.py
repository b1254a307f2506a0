# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama: models by name and manifest digest, through its HTTP API.

Ollama pulls by tag only, and a tag that moved replaces what was served under it without a word. So the registry is
asked for the tag's digest before a pull; the version that is there is kept under another name while one is pulled over
it; and what came is compared again. A tag that gives another version than the wanted one never stays.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import time
import urllib.error
from typing import Any, Iterable, Iterator

from ansible_collections.llm.cluster.plugins.module_utils import _fetch
from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    AnswerError,
    EngineError,
    Fetch,
    Found,
    Inspection,
    Look,
    ModelSpec,
    Settings,
    _files,
    call_engine,
    error_text,
    status_of,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines._ollama_store import (
    OllamaStore,
    Reference,
    parse_reference,
    read_manifest,
)

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
# While Ollama hashes what it pulled it says nothing; a large model on a slow disk takes its time.
QUIET_STEPS = 1800.0
PULL_TRIES = 3
# An answer without any work comes at once; a server that hangs must not hold up who only looks.
PATIENCE = 3.0


def with_prefix(digest: str) -> str:
    """Return a digest as ``sha256:hex``; /api/tags shows it bare."""
    return digest if not digest or digest.startswith("sha256:") else "sha256:" + digest


def stays(expires: str, now: datetime.datetime) -> bool:
    """Whether a model's expiry means for ever: Ollama shows that as a date centuries away, or none."""
    year = expires[:4]
    return not year.isdigit() or int(year) <= 1 or int(year) > now.year + 50


def entry_of(running: list[dict[str, Any]], name: str, digest: str) -> dict[str, Any]:
    """Return what /api/ps says about a model: its version in memory, else another one under its name.

    Names of one version share what is in memory, and only the one that loaded it is shown.
    """
    for entry in running:
        if digest and with_prefix(entry.get("digest") or "") == digest:
            return entry
    return next((entry for entry in running if entry.get("name") == name), {})


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


class Ollama:
    """The Ollama server of one node."""

    def __init__(self, settings: Settings, address: str, port: int) -> None:
        self.settings = settings
        self.host = f"[{address}]" if ":" in address else address
        self.port = port
        self.base = f"http://{self.host}:{port}"
        self.store = OllamaStore(settings.models_dir, settings.partial_dir)
        self._pulled: set[str] = set()

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

    def _copy(self, source: str, target: str) -> None:
        self._change("POST", "/api/copy", {"source": source, "destination": target})

    def _delete(self, name: str) -> None:
        with contextlib.suppress(MissingError):
            self._change("DELETE", "/api/delete", {"model": name})

    def _change(self, method: str, path: str, body: dict[str, str]) -> None:
        try:
            self._call(method, path, body)
        except AnswerError as error:
            kind = MissingError if error.status == 404 else EngineError
            raise kind(f"Ollama answered {method} {path} {body} with {error}.") from error

    # What is there

    def models(self) -> dict[str, str]:
        """Return the digest under each name."""
        return {entry["name"]: with_prefix(entry.get("digest") or "") for entry in self._listed("/api/tags")}

    def loaded(self) -> dict[str, str]:
        """Return name and digest of the models in memory."""
        return {entry["name"]: with_prefix(entry.get("digest") or "") for entry in self._listed("/api/ps")}

    def inspect(self, specs: list[ModelSpec], verify: bool) -> Inspection:
        """Return what the store holds, by its files, and what the server says is in memory, if it answers."""
        store = self.store.names()
        remember = verify and not self.settings.read_only
        versions = {manifest.digest: manifest for manifest in store.values()}
        damage = {digest: self.store.damage(manifest, verify, remember) for digest, manifest in versions.items()}
        held = {digest: versions[digest].size for digest, problems in damage.items() if not problems}
        running = self._running_if_up()
        wanted = {parse_reference(spec.name): spec for spec in specs if spec.state != "absent"}
        models = []
        for name in [*wanted, *(name for name in store if name not in wanted and not name.is_kept)]:
            spec, manifest = wanted.get(name), store.get(name)
            digest, target = manifest.digest if manifest else "", spec.digest if spec else ""
            entry = entry_of(running, name.shown, digest)
            models.append(
                Found(
                    name=spec.name if spec else name.shown,
                    digest=digest,
                    wanted=target,
                    status=status_of(digest, target, digest in held),
                    have=self._have(target) if target and target not in held else 0,
                    size=manifest.size if manifest else None,
                    held=bool(target) and target in held,
                    extra=spec is None,
                    loaded=with_prefix(entry.get("digest") or ""),
                    context=entry.get("context_length"),
                    expires=str(entry.get("expires_at") or ""),
                    note="; ".join(f"blob {blob} {problem}" for blob, problem in damage.get(digest, {}).items()),
                )
            )
        return Inspection(models, held)

    def _running_if_up(self) -> list[dict[str, Any]]:
        """Return what is in memory; nothing while the server is down or hangs."""
        try:
            return list((call_engine(self.base, "GET", "/api/ps", timeout=PATIENCE) or {}).get("models") or [])
        except (OSError, ValueError, AttributeError, http.client.HTTPException, AnswerError):
            return []

    def _have(self, digest: str) -> int:
        """Return how many bytes of a version that isn't whole are there."""
        manifest = self.store.manifest(digest)
        return self.store.have(manifest) if manifest else 0

    def look(self, spec: ModelSpec) -> Look:
        """Compare a wanted model with what is there, and ask the registry when it has to be pulled."""
        target = parse_reference(spec.name)
        note = ""
        try:
            names = self.models()
        except EngineError:
            if not self.settings.read_only:
                raise
            names, note = {}, "Ollama does not answer yet"
        now = names.get(target.shown, "")
        if spec.state == "absent":
            return Look(digest=now, note=note)
        if now and spec.digest in ("", now):
            if target.kept in names and not self.settings.read_only:
                self._delete(target.kept)
            return Look(now, now, held=True, active=True)
        if spec.digest and spec.digest in names.values():
            return Look(now, spec.digest, held=True)
        source = parse_reference(spec.registry or spec.name)
        offered, sizes = self._ask_registry(source, spec)
        if spec.digest and offered and offered != spec.digest:
            raise EngineError(
                f"{spec.name}: the tag {source.shown} has moved: wanted {spec.digest}, the registry has {offered}. "
                f"Nothing was pulled; {'the node keeps ' + now if now else 'the node has no version of it'}. To accept "
                "the new version change the digest in llm_models; else name a registry that has the wanted one."
            )
        size = sum(sizes.values()) if sizes else None
        have = sum(size for digest, size in sizes.items() if self._has_blob(digest))
        return Look(now, spec.digest or offered, size=size, have=have, note=note)

    def _ask_registry(self, source: Reference, spec: ModelSpec) -> tuple[str, dict[str, int]]:
        """Return the digest and the parts' sizes that a registry has for a tag; nothing if it wants Ollama's login."""
        url = source.manifest_url(spec.insecure)
        try:
            with contextlib.closing(
                _fetch.open_url(url, self.settings.http, headers={"Accept": MANIFEST_TYPE})
            ) as response:
                manifest = read_manifest(response.read())
                return manifest.digest, manifest.sizes
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return "", {}
            raise _fetch.explain(url, error, "source.registry") from error
        except (OSError, http.client.HTTPException) as error:
            raise _fetch.explain(url, error, "source.registry") from error

    def _has_blob(self, digest: str) -> bool:
        return _files.size_of(self.store.blob(digest)) is not None

    # Changing it

    def fetch(self, spec: ModelSpec, look: Look) -> Fetch:
        """Pull a model; if what came isn't the wanted version, restore what was there."""
        target, source = parse_reference(spec.name), parse_reference(spec.registry or spec.name)
        names = self.models()
        over = source.shown in names
        if over and source.kept not in names:
            self._copy(source.shown, source.kept)
        try:
            fetched = self._pull(source.shown, spec.insecure)
            got = self.models().get(source.shown, "")
            if not got or (spec.digest and got != spec.digest):
                raise _fetch.WrongDigestError(source.shown, spec.digest or "a model", got or "none")
        except BaseException as error:
            try:
                self._restore(source)
            except EngineError as second:
                raise EngineError(f"{error} What was there before could not be brought back: {second}") from error
            raise
        if over:
            self._delete(source.kept)
        elif source != target:
            self._pulled.add(source.shown)
        return fetched

    def _restore(self, source: Reference) -> None:
        """Undo a pull: what waited comes back under its name; without any, a wrong version goes."""
        names = self.models()
        if source.kept in names:
            if names[source.kept] != names.get(source.shown):
                self._copy(source.kept, source.shown)
            self._delete(source.kept)
        elif source.shown in names:
            self._delete(source.shown)

    def _pull(self, name: str, insecure: bool) -> Fetch:
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

    def activate(self, spec: ModelSpec, look: Look) -> str:
        """Give the wanted version its name."""
        target = parse_reference(spec.name)
        names = self.models()
        wanted = spec.digest or look.wanted
        source = self._name_of(wanted, target.shown, parse_reference(spec.registry or spec.name).shown, names)
        if source != target.shown:
            self._copy(source, target.shown)
            if source in self._pulled:
                self._delete(source)
            names = self.models()
        got = names.get(target.shown, "")
        if not got or (spec.digest and got != spec.digest):
            raise EngineError(f"{spec.name}: Ollama has {got or 'no version'} under this name, wanted {wanted}.")
        return got

    @staticmethod
    def _name_of(wanted: str, target: str, source: str, names: dict[str, str]) -> str:
        """Return a name that has the wanted version: its own, that in the registry, else any."""
        for name in (target, source, *sorted(names)):
            if names.get(name) == wanted:
                return name
        # The tag moved between question and pull, and any version will do.
        return source

    def remove(self, spec: ModelSpec) -> None:
        """Delete the name, and the blobs that no other one needs (Ollama does)."""
        self._delete(parse_reference(spec.name).shown)

    def units(self, specs: list[ModelSpec]) -> dict[str, str]:
        """Return nothing: one server has all models."""
        return {}

    def load(self, spec: ModelSpec) -> bool:
        """Have the model in memory in the version that its name has now."""
        name = parse_reference(spec.name).shown
        wanted = self.models().get(name, "")
        keep = duration(spec.keep_alive)
        forever = isinstance(keep, int) and keep < 0
        now = datetime.datetime.now(datetime.timezone.utc)
        if any(
            with_prefix(entry.get("digest") or "") == wanted
            and (not forever or stays(str(entry.get("expires_at", "")), now))
            for entry in self._running(name)
        ):
            return False
        self._ask_to_load(name, keep)
        got = [with_prefix(entry.get("digest") or "") for entry in self._running(name)]
        if wanted not in got:
            raise EngineError(
                f"{name}: Ollama loaded {', '.join(got) or 'nothing'} instead of {wanted}. Look with: journalctl -u "
                "ollama -n 50"
            )
        return True

    def _running(self, name: str) -> Iterable[dict[str, Any]]:
        return [entry for entry in self._listed("/api/ps") if entry.get("name") == name]

    def _ask_to_load(self, name: str, keep_alive: int | str) -> None:
        body = {"model": name, "keep_alive": keep_alive, "stream": False}
        try:
            try:
                self._call("POST", "/api/generate", body, self.settings.timeout)
            except AnswerError as error:
                if "does not support generate" not in error.message:
                    raise
                # An embedding model.
                embed = {"model": name, "keep_alive": keep_alive, "input": ""}
                self._call("POST", "/api/embed", embed, self.settings.timeout)
        except AnswerError as error:
            raise EngineError(
                f"{name} could not be loaded: Ollama answered {error}. Look with: journalctl -u ollama -n 50"
            ) from error

    def unload(self, spec: ModelSpec) -> None:
        """Drop the model out of memory."""
        self._ask_to_load(parse_reference(spec.name).shown, 0)


class MissingError(EngineError):
    """Ollama has no such model."""
