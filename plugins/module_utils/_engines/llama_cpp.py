# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""llama.cpp: one systemd instance per model, which serves the GGUF file behind its link in the store.

A switched link is served from the instance's next start on. Restarting it is left to the caller, who knows when the
node may be interrupted.
"""

from __future__ import annotations

import http.client
import os
import re
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _fetch, _transfer
from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    AnswerError,
    EngineError,
    Fetch,
    Found,
    Inspection,
    Look,
    ModelSpec,
    Settings,
    UploadNeededError,
    _gguf_store,
    base_url,
    call_engine,
    status_of,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines._progress import Progress
from ansible_collections.llm.cluster.plugins.module_utils._engines._prune import Pruned, Stock, line_of, surplus

_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "UnitFileState",
    "ExecMainStartTimestampMonotonic",
    "NRestarts",
    "MainPID",
    "EnvironmentFiles",
)
_REQUIRED_FILE = re.compile(r"^(/.*) \(ignore_errors=no\)$")
_MAPPED = re.compile(r"/sha256-([0-9a-f]{64})\.gguf( \(deleted\))?$", re.MULTILINE)
# Said of a digest in memory when the file of that name is another one by now: the one in memory may have been damaged.
REPLACED = " (replaced)"
# An instance that died so often while it was waited for won't come up.
CRASHES = 3


@dataclass(frozen=True)
class UnitState:
    """What systemd says about an instance; ``started`` in seconds of the monotonic clock.

    settings: the file without which it can't start, which role llama_cpp writes.
    """

    installed: bool = False
    active: bool = False
    failed: bool = False
    enabled: bool = False
    started: float = 0.0
    restarts: int = 0
    pid: int = 0
    settings: str = ""

    @property
    def set_up(self) -> bool:
        """Whether it could be started."""
        return self.installed and (not self.settings or os.path.exists(self.settings))


def service(unit: str) -> str:
    """Return the systemd unit that serves a model."""
    return f"llama-cpp@{unit}.service"


def parse_units(text: str) -> dict[str, UnitState]:
    """Read the answer of ``systemctl show`` for several units."""
    states = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        required = _REQUIRED_FILE.match(values.get("EnvironmentFiles", ""))
        if "Id" in values:
            states[values["Id"]] = UnitState(
                installed=values.get("LoadState") == "loaded",
                active=values.get("ActiveState") in ("active", "activating", "reloading"),
                failed=values.get("ActiveState") == "failed",
                enabled=values.get("UnitFileState") in ("enabled", "enabled-runtime"),
                started=int(values.get("ExecMainStartTimestampMonotonic") or 0) / 1e6,
                restarts=int(values.get("NRestarts") or 0),
                pid=int(values.get("MainPID") or 0),
                settings=required.group(1) if required else "",
            )
    return states


def unit_states(units: list[str]) -> dict[str, UnitState]:
    """Return the state of instances by unit name; none where there is no systemd to ask."""
    command = ["systemctl", "show", "--property=" + ",".join(_PROPERTIES), *(service(unit) for unit in units)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    states = parse_units(done.stdout.decode("utf-8", "replace"))
    return {unit: states[service(unit)] for unit in units if service(unit) in states}


def unit_needs(state: UnitState, current: str, switched: dict[str, Any], boot: str) -> str:
    """Return what an instance needs to serve what its link names: ``""``, ``install``, ``start`` or ``restart``.

    switched: when the link was switched last. Boot and monotonic clock decide, since the time of day may be set back.
    """
    if not state.installed:
        return "install"
    if not state.active:
        return "start"
    if switched:
        unfinished = "monotonic" not in switched or switched.get("digest") != current
        if unfinished or (switched.get("boot") == boot and state.started < switched["monotonic"]):
            return "restart"
    return "" if state.enabled else "start"


def mapped_digest(maps: str) -> tuple[str, bool]:
    """Return the digest of the model file in a process's memory map, ``""`` if none, and whether it was deleted."""
    found = _MAPPED.search(maps)
    return ("sha256:" + found.group(1), bool(found.group(2))) if found else ("", False)


def read_maps(pid: int) -> str:
    """Return a process's memory map, empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


class LlamaCpp:
    """The llama.cpp instances of one node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = _gguf_store.GgufStore(settings.models_dir, settings.partial_dir)

    def models(self) -> dict[str, str]:
        """Return the digest of every instance's link."""
        return self.store.units()

    def inspect(self, specs: list[ModelSpec], verify: bool) -> Inspection:
        """Return what the store holds and the instances have in memory."""
        links = self.store.units()
        wanted = {spec.unit: spec for spec in specs if spec.state != "absent"}
        sizes = self.store.versions()
        digests = {*sizes, *filter(None, links.values())}
        checked = {digest: self._checked(digest, verify) for digest in digests}
        held = {digest: sizes[digest] for digest, (status, _note) in checked.items() if status == "ok"}
        in_memory = self._in_memory([*wanted, *(unit for unit in links if unit not in wanted)])
        states = unit_states(list(wanted)) if wanted else {}
        models = []
        for unit in [*wanted, *(unit for unit in links if unit not in wanted)]:
            spec, digest = wanted.get(unit), links.get(unit, "")
            target = spec.digest if spec else ""
            note = checked[digest][1] if digest else ""
            if digest and checked[digest][0] == "missing":
                note = "the file that its link names is gone"
            set_up = unit not in states or states[unit].set_up
            if not set_up:
                note = f"{service(unit)} is not set up on this node: run site.yml"
            models.append(
                Found(
                    name=spec.name if spec else unit,
                    digest=digest,
                    wanted=target,
                    status=status_of(digest, target, digest in held),
                    have=self.store.have(target) if target and target not in held else 0,
                    size=sizes.get(digest),
                    held=bool(target) and target in held,
                    extra=spec is None,
                    unit=unit,
                    loaded=in_memory.get(unit, ""),
                    set_up=set_up,
                    note=note,
                )
            )
        return Inspection(models, held)

    def _checked(self, digest: str, verify: bool) -> tuple[str, str]:
        """Return whether a version's file is whole, and what is to be said about it."""
        if not verify:
            return self.store.glance(digest)
        status = self.store.check(digest, remember=not self.settings.read_only)
        return status, "the file in the store is damaged" if status == "corrupt" else ""

    def _in_memory(self, units: list[str]) -> dict[str, str]:
        """Return the digest that each running instance has in memory.

        Its memory map tells. Where the model isn't mapped, the instance has what its link named when it was started.
        """
        states = unit_states(units) if units else {}
        boot = _gguf_store.boot_id()
        found = {}
        for unit, state in states.items():
            if state.active and state.pid:
                current, switched = self.store.current(unit), self.store.switched(unit)
                stale = unit_needs(state, current, switched, boot) == "restart"
                before = (self.store.previous(unit) or [""])[0]
                mapped, deleted = mapped_digest(read_maps(state.pid))
                if deleted and self.store.glance(mapped)[0] != "missing":
                    mapped += REPLACED
                found[unit] = mapped or (before if stale else current)
        return found

    def look(self, spec: ModelSpec) -> Look:
        """Compare a wanted model with the store."""
        now = self.store.current(spec.unit)
        if spec.state == "absent":
            return Look(digest=now)
        if not spec.digest:
            raise EngineError(
                f"{spec.name}: a GGUF file is fetched by its digest only. Give the model in llm_models its digest "
                "(sha256:HEX, as sha256sum shows it)."
            )
        status = self.store.check(spec.digest, remember=not self.settings.read_only)
        if status == "corrupt" and not self.settings.read_only:
            self.store.discard(spec.digest)
        if status == "ok":
            return Look(now, spec.digest, held=True, active=now == spec.digest)
        note = "the file in the store is damaged" if status == "corrupt" else ""
        have = self.store.have(spec.digest)
        if not (spec.url or spec.file or spec.peers):
            raise EngineError(
                f"{spec.name}: {spec.digest} is not on this node, and the model has neither source.url nor source.file "
                "to get it from. Give it one in llm_models."
            )
        size = spec.size
        if size is None and spec.url and not spec.peers:
            size = _fetch.remote_size(spec.url, self.settings.http)
        upload = bool(spec.file) and not spec.peers and (size is None or have < size)
        return Look(now, spec.digest, size=size, have=have, upload=upload, note=note)

    def fetch(self, spec: ModelSpec, look: Look) -> Fetch:
        """Bring the file into the store."""
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            if self.store.check(spec.digest) == "ok":
                return Fetch()
            result = self._receive_file(spec, look)
            self.store.adopt(spec.digest)
            return result

    def _receive_file(self, spec: ModelSpec, look: Look) -> Fetch:
        """Have the whole and verified file where it grows."""
        partial = self.store.partial(spec.digest)
        if spec.file and look.size is not None and self.store.have(spec.digest) >= look.size:
            # The controller sent it.
            got = _fetch.sha256_file(partial)
            if got == spec.digest:
                return Fetch(moved=look.have)
            self.store.drop_partial(spec.digest)
            if not spec.peers:
                raise _fetch.WrongDigestError(spec.file, spec.digest, got)
        token = _transfer.read_token(self.settings.token_file) if spec.peers else ""
        sources = _transfer.peer_sources(spec.peers, spec.digest, token, spec.patience)
        if spec.url:
            sources.append(_transfer.Source(spec.url))
        options, rate = self.settings.http, self.settings.max_rate
        with Progress(self.settings.partial_dir, spec.name, look.size, lambda: self.store.have(spec.digest)):
            try:
                done = _transfer.fetch_blob(sources, partial, spec.digest, options, max_rate=rate, size=look.size)
            except _fetch.NoSpaceError:
                raise
            except _fetch.FetchError as error:
                if spec.file:
                    raise UploadNeededError(str(error)) from error
                raise
        return Fetch(done.size - done.resumed, done.resumed)

    def activate(self, spec: ModelSpec, look: Look) -> str:
        """Switch the instance's link to the file."""
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            self.store.switch(spec.unit, spec.digest)
        return spec.digest

    def receive(self, digest: str, offset: int, chunk: str, expected: str, size: int | None = None) -> int:
        """Append a chunk that came from the controller; return how much is there then. size: of the whole file."""
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            if size is not None:
                # Other nodes may fetch what is there meanwhile.
                _transfer.note_size(self.store.partial(digest), size)
            return self.store.append(digest, offset, chunk, expected)

    def kept(self, spec: ModelSpec) -> list[str]:
        """Return the model's versions that are here, whole, but not served."""
        now = self.store.current(spec.unit)
        known = dict.fromkeys([spec.digest, *self.store.previous(spec.unit)])
        return [digest for digest in known if digest not in ("", now) and self.store.glance(digest)[0] == "ok"]

    def remove(self, spec: ModelSpec) -> None:
        """Remove the link, and the files that only it serves or served."""
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            digests = {self.store.current(spec.unit), *self.store.previous(spec.unit)}
            self.store.unlink(spec.unit)
            links = self.store.units()
            needed = {*links.values(), *(digest for unit in links for digest in self.store.previous(unit))}
            for digest in digests - needed - {""}:
                self.store.discard(digest)

    def prune(self, specs: list[ModelSpec], keep: frozenset[str], keep_previous: int) -> Pruned:
        """Delete the links, files and files on their way that none of the wanted models needs.

        A link whose instance runs stays, and the answer says so: stopping instances is left to the caller.
        """
        if self.settings.read_only or not self.store.exists:
            return self._prune(specs, keep, keep_previous)
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            return self._prune(specs, keep, keep_previous)

    def _prune(self, specs: list[ModelSpec], keep: frozenset[str], keep_previous: int) -> Pruned:
        links, versions = self.store.units(), self.store.versions()
        wanted = {spec.unit: spec.digest for spec in specs if spec.state != "absent"}
        states = unit_states(list(links)) if links else {}
        extra = {unit: states.get(unit, UnitState()) for unit in links if unit not in wanted}
        stock = Stock(
            names=links,
            versions=versions,
            previous={unit: self.store.previous(unit) for unit in wanted},
            loaded=frozenset(self._in_memory(list(links)).values()),
            busy=frozenset(unit for unit, state in extra.items() if state.active),
        )
        plan = surplus(stock, wanted, keep, keep_previous)
        partials = {digest: size for digest, size in self.store.partials().items() if digest not in plan.needed}
        pruned = Pruned(units=sorted(unit for unit, state in extra.items() if state.active or state.enabled))
        for unit in plan.names:
            pruned.remove("name", name=unit, digest=links[unit])
        for digest in plan.versions:
            pruned.remove("version", digest=digest, freed=versions[digest])
        for digest, size in partials.items():
            pruned.remove("partial", digest=digest, freed=size)
        pruned.staying = [
            *(line_of("name", unit, digest) for unit, digest in links.items() if unit not in plan.names),
            *(line_of("version", "", digest) for digest in versions if digest not in plan.versions),
            *(line_of("partial", "", digest) for digest in self.store.partials() if digest not in partials),
        ]
        if not self.settings.read_only:
            for unit in plan.names:
                self.store.unlink(unit)
            for digest in plan.versions:
                self.store.discard(digest)
            for digest in partials:
                self.store.drop_partial(digest)
        return pruned

    def units(self, specs: list[ModelSpec]) -> dict[str, str]:
        """Return what the instances need to serve what their links name."""
        states = unit_states([spec.unit for spec in specs])
        boot = _gguf_store.boot_id()
        return {
            spec.unit: unit_needs(
                states[spec.unit], self.store.current(spec.unit), self.store.switched(spec.unit), boot
            )
            for spec in specs
            if spec.unit in states
        }

    def load(self, spec: ModelSpec) -> bool:
        """Wait until the instance is healthy, serves this model and completes a prompt."""
        deadline = time.monotonic() + self.settings.timeout
        self._wait_healthy(spec, deadline)
        self._require_version(spec)
        base = base_url(spec)
        try:
            served = [entry.get("id") for entry in call_engine(base, "GET", "/v1/models").get("data", [])]
            if spec.name not in served:
                raise EngineError(
                    f"{base} serves {', '.join(map(str, served))} instead of {spec.name}. Two models may have one "
                    "port: compare llm_node_port and the models' ports; " + self._journal(spec)
                )
            left = max(deadline - time.monotonic(), 5.0)
            prompt = {"model": spec.name, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
            answer = call_engine(base, "POST", "/v1/completions", prompt, left)
            if not answer.get("choices"):
                raise EngineError(f"{spec.name} gave no completion at {base}; {self._journal(spec)}")
        except (OSError, ValueError, http.client.HTTPException, AnswerError) as error:
            raise EngineError(
                f"{spec.name} is up at {base}, but fails a one-token prompt: {error}; {self._journal(spec)}"
            ) from error
        return False

    def _require_version(self, spec: ModelSpec) -> None:
        """Raise when the running instance has another version in memory than the wanted one."""
        got = self._in_memory([spec.unit]).get(spec.unit, "")
        wanted = spec.digest or self.store.current(spec.unit)
        if got and got != wanted:
            raise EngineError(
                f"{spec.name}: {service(spec.unit)} has {got} in memory instead of {wanted}. Restart it, "
                "then ask again."
            )

    def _wait_healthy(self, spec: ModelSpec, deadline: float) -> None:
        base = base_url(spec)
        pause = 0.1
        first: UnitState | None = None
        while True:
            try:
                call_engine(base, "GET", "/health", timeout=5)
                return
            except (OSError, ValueError, http.client.HTTPException, AnswerError) as error:
                last = error
            state = unit_states([spec.unit]).get(spec.unit, UnitState())
            first = first or state
            failed = state.failed or state.restarts - first.restarts >= CRASHES
            if failed or time.monotonic() + pause > deadline:
                why = "its instance dies" if failed else f"not healthy within {self.settings.timeout:.0f} s"
                raise EngineError(f"{spec.name} at {base}: {why} (last: {last}); {self._journal(spec)}") from last
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _journal(self, spec: ModelSpec) -> str:
        return f"look with: journalctl -u {service(spec.unit)} -n 50"

    def unload(self, spec: ModelSpec) -> None:
        """Refuse: an instance has its model in memory as long as it runs."""
        raise EngineError(f"llama.cpp holds {spec.name} as long as it runs: stop {service(spec.unit)} to unload it.")

    def loaded(self) -> dict[str, str]:
        """Return the digest that each running instance has in memory."""
        return self._in_memory(list(self.store.units()))
