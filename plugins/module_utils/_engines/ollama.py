# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama: models by name and manifest digest.

Ollama itself pulls by tag only, and a tag that moved replaces what was served under it without a word. So a version is
fetched by its digest straight into Ollama's store, from other nodes or the registry, and waits there under a name of
our own until it gets the model's name. The version that was served before is kept in the same way. Only where the
registry wants Ollama's own login does Ollama pull; what came is compared then, and what was there before restored.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import urllib.error
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _fetch, _transfer
from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    EngineError,
    Fetch,
    Found,
    Inspection,
    Look,
    ModelSpec,
    Settings,
    status_of,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines._ollama_server import (
    OllamaServer,
    duration,
    stays,
    with_prefix,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines._ollama_store import (
    MANIFEST_AT_MOST,
    Manifest,
    OllamaStore,
    Reference,
    kept_reference,
    parse_reference,
    read_manifest,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines._progress import Progress
from ansible_collections.llm.cluster.plugins.module_utils._engines._prune import Pruned, Stock, line_of, surplus
from ansible_collections.llm.cluster.plugins.module_utils._topology import unit_name

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def in_memory(
    running: list[dict[str, Any]], name: str, version: Manifest | None, store: dict[Reference, Manifest]
) -> dict[str, Any]:
    """Return what /api/ps says about a model, with the digest that it has in memory.

    That is its own version, else another one under its name. Versions with the same weights share what is in memory,
    and only the one that was loaded first is shown: the others are in memory as well.
    """
    shown = {with_prefix(entry.get("digest") or ""): entry for entry in running}
    if version and version.digest in shown:
        return {**shown[version.digest], "digest": version.digest}
    for digest, entry in shown.items():
        if entry.get("name") == name:
            return {**entry, "digest": digest}
    sharing = {other.digest for other in store.values() if version and other.weights == version.weights != ""}
    entries = [entry for digest, entry in shown.items() if version and digest in sharing]
    return {**entries[0], "digest": version.digest} if version and entries else {}


def told(damage: dict[str, str]) -> str:
    """Return what is wrong with a version's blobs, for people."""
    return "; ".join(f"blob {digest} {problem}" for digest, problem in damage.items())


class Ollama:
    """The Ollama server of one node, and its store."""

    def __init__(self, settings: Settings, address: str, port: int) -> None:
        self.settings = settings
        self.server = OllamaServer(settings, address, port)
        self.store = OllamaStore(settings.models_dir, settings.partial_dir)
        # What a registry offered under a tag, until it is fetched; what was fetched for models without a digest.
        self._offered: dict[str, Manifest] = {}
        self._fetched: dict[str, str] = {}

    # What is there

    def models(self) -> dict[str, str]:
        """Return the digest under each name."""
        return {name.shown: manifest.digest for name, manifest in self.store.names().items() if not name.is_kept}

    def loaded(self) -> dict[str, str]:
        """Return name and digest of the models in memory."""
        return {entry["name"]: with_prefix(entry.get("digest") or "") for entry in self.server.running()}

    def kept(self, spec: ModelSpec) -> list[str]:
        """Return the versions of a model that are here, whole, but not served."""
        now = self.models().get(parse_reference(spec.name).shown, "")
        known = dict.fromkeys([spec.digest, *self.store.previous(spec.unit)])
        return [digest for digest in known if digest not in ("", now) and self.store.whole(digest)]

    def inspect(self, specs: list[ModelSpec], verify: bool) -> Inspection:
        """Return what the store holds, by its files, and what the server says is in memory, if it answers."""
        store = self.store.names()
        remember = verify and not self.settings.read_only
        versions = {manifest.digest: manifest for manifest in store.values()}
        damage = {digest: self.store.damage(manifest, verify, remember) for digest, manifest in versions.items()}
        held = {digest: versions[digest].size for digest, problems in damage.items() if not problems}
        running = self.server.running_if_up()
        wanted = {parse_reference(spec.name): spec for spec in specs if spec.state != "absent"}
        models = []
        for name in [*wanted, *(name for name in store if name not in wanted and not name.is_kept)]:
            spec, manifest = wanted.get(name), store.get(name)
            digest, target = manifest.digest if manifest else "", spec.digest if spec else ""
            entry = in_memory(running, name.shown, manifest, store)
            models.append(
                Found(
                    name=spec.name if spec else name.shown,
                    digest=digest,
                    wanted=target,
                    status=status_of(digest, target, digest in held),
                    have=self._have(target, verify) if target and target not in held else 0,
                    size=manifest.size if manifest else None,
                    held=bool(target) and target in held,
                    extra=spec is None,
                    loaded=str(entry.get("digest") or ""),
                    context=entry.get("context_length"),
                    expires=str(entry.get("expires_at") or ""),
                    note=told(damage.get(digest, {})),
                )
            )
        return Inspection(models, held)

    def _have(self, digest: str, verify: bool) -> int:
        """Return how many bytes of a version that isn't whole are there."""
        manifest = self.store.manifest(digest)
        return self.store.have(manifest, self.store.damage(manifest, verify)) if manifest else 0

    def look(self, spec: ModelSpec) -> Look:
        """Compare a wanted model with what is there, and ask the registry for what isn't."""
        target = parse_reference(spec.name)
        names = self.models()
        now = names.get(target.shown, "")
        note = "" if spec.state == "fetched" else self._compare_with_server(target, now)
        if spec.state == "absent":
            return Look(digest=now, note=note)
        wanted = spec.digest or now
        manifest = self.store.manifest(wanted) if wanted else None
        if manifest:
            damage = self.store.damage(manifest, verify=True, remember=not self.settings.read_only)
            if not damage and self.store.is_named(wanted):
                return Look(now, wanted, held=True, active=now == wanted)
            there = [digest for digest, problem in damage.items() if problem != "is missing"]
            for digest in there if not self.settings.read_only else []:
                self.store.discard(digest)
            note = told({digest: damage[digest] for digest in there}) or note
            return Look(now, wanted, size=manifest.size, have=self.store.have(manifest, damage), note=note)
        if spec.peers and wanted:
            # Another node may have what the registry no longer has: found out when it is fetched.
            return Look(now, wanted, size=spec.size, note=note)
        manifest = self._ask_registry(spec, now)
        if not manifest:
            return Look(now, wanted, size=spec.size, note=note)
        have = self.store.have(manifest, self.store.damage(manifest, verify=False))
        return Look(now, manifest.digest, size=manifest.size, have=have, note=note)

    def _compare_with_server(self, name: Reference, digest: str) -> str:
        """Return a note on a server that is down; raise EngineError where it is needed or has another store."""
        try:
            served = self.server.names().get(name.shown, "")
        except EngineError:
            if not self.settings.read_only:
                raise
            return "Ollama does not answer yet"
        # A version whose blobs are damaged may be on the disk without being shown.
        if served and served != digest:
            raise EngineError(
                f"Ollama has {served} under {name.shown}, and the store in {self.settings.models_dir} has "
                f"{digest or 'nothing'}: it is not that server's store. Correct models_dir (ollama_models_path)."
            )
        return ""

    def _ask_registry(self, spec: ModelSpec, now: str) -> Manifest | None:
        """Return what a registry has for a tag, None if it wants Ollama's login; raise EngineError for a moved tag."""
        source = parse_reference(spec.registry or spec.name)
        url = source.manifest_url(spec.insecure)
        try:
            with contextlib.closing(
                _fetch.open_url(url, self.settings.http, headers={"Accept": MANIFEST_TYPE})
            ) as response:
                manifest = read_manifest(response.read(MANIFEST_AT_MOST))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                return None
            raise _fetch.explain(url, error, "source.registry") from error
        except (OSError, http.client.HTTPException) as error:
            raise _fetch.explain(url, error, "source.registry") from error
        if spec.digest and manifest.digest != spec.digest:
            raise EngineError(
                f"{spec.name}: the tag {source.shown} has moved: wanted {spec.digest}, the registry has "
                f"{manifest.digest}. Nothing was fetched; "
                f"{'the node keeps ' + now if now else 'the node has no version of it'}. To accept the new version "
                "change the digest in llm_models or the lock; else name a registry or a node that has the wanted one."
            )
        self._offered[manifest.digest] = manifest
        return manifest

    # Changing it

    def fetch(self, spec: ModelSpec, look: Look) -> Fetch:
        """Bring a version into the store, under a name of our own."""
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            token = _transfer.read_token(self.settings.token_file) if spec.peers else ""
            manifest = self._find_manifest(spec, look, token)
            if manifest:
                fetched = self._fetch_blobs(spec, manifest, token)
            else:
                fetched, manifest = self._fetch_by_pull(spec)
            if not self.store.is_named(manifest.digest):
                self.store.keep(spec.unit, manifest)
            self._fetched[spec.name] = manifest.digest
            return fetched

    def _find_manifest(self, spec: ModelSpec, look: Look, token: str) -> Manifest | None:
        """Return the wanted manifest from this node, another one or the registry; None if that wants Ollama's login."""
        wanted = spec.digest or look.wanted
        manifest = self._offered.get(wanted) or (self.store.manifest(wanted) if wanted else None)
        if manifest or not (wanted and spec.peers):
            return manifest or self._ask_registry(spec, look.digest)
        path = self.store.partial(wanted)
        sources = _transfer.peer_sources(spec.peers, wanted, token, spec.patience)
        try:
            _transfer.fetch_blob(sources, path, wanted, self.settings.http)
            with open(path, "rb") as stream:
                manifest = read_manifest(stream.read(MANIFEST_AT_MOST))
        except _fetch.NoSpaceError:
            raise
        except _fetch.FetchError as error:
            try:
                return self._ask_registry(spec, look.digest)
            except (EngineError, _fetch.FetchError) as second:
                raise EngineError(f"{second} The other nodes: {error}") from error
        finally:
            self.store.drop_partial(wanted)
        return manifest

    def _fetch_blobs(self, spec: ModelSpec, manifest: Manifest, token: str) -> Fetch:
        self.store.share(manifest)
        missing = self.store.damage(manifest, verify=True, remember=True)
        have = self.store.have(manifest, missing)
        _fetch.require_space(self.settings.models_dir, manifest.size - have, spec.name)
        source = parse_reference(spec.registry or spec.name)
        moved = resumed = 0
        with Progress(self.settings.partial_dir, spec.name, manifest.size, lambda: self.store.have(manifest, missing)):
            for digest in list(missing):
                done = _transfer.fetch_blob(
                    [
                        *_transfer.peer_sources(spec.peers, digest, token, spec.patience),
                        _transfer.Source(source.blob_url(spec.insecure, digest)),
                    ],
                    self.store.partial(digest),
                    digest,
                    self.settings.http,
                    max_rate=self.settings.max_rate,
                    size=manifest.sizes[digest],
                )
                self.store.adopt(digest)
                del missing[digest]
                moved, resumed = moved + done.size - done.resumed, resumed + done.resumed
        return Fetch(moved, resumed)

    def _fetch_by_pull(self, spec: ModelSpec) -> tuple[Fetch, Manifest]:
        """Have Ollama pull with its login, keep what came, and give the name that it pulled back to what had it."""
        source = parse_reference(spec.registry or spec.name)
        before = self.store.names().get(source)
        if before:
            self.store.keep(spec.unit, before)
        try:
            fetched = self.server.pull(source.shown, spec.insecure)
            got = self.store.names().get(source)
            if not got or (spec.digest and got.digest != spec.digest):
                raise _fetch.WrongDigestError(source.shown, spec.digest or "a model", got.digest if got else "none")
            self.store.keep(spec.unit, got)
        except BaseException as error:
            try:
                self._restore(source, before, spec.unit)
            except EngineError as second:
                raise EngineError(f"{error} What was there before could not be brought back: {second}") from error
            raise
        self._restore(source, before, spec.unit)
        return fetched, got

    def _restore(self, name: Reference, before: Manifest | None, unit: str) -> None:
        """Undo a pull: the name gets back what it had."""
        now = self.store.names().get(name)
        if before and (not now or now.digest != before.digest):
            self.server.copy(kept_reference(unit, before.digest).shown, name.shown)
        elif now and not before:
            self.server.delete(name.shown)
        if before and name in self.store.names():
            self.store.unname(kept_reference(unit, before.digest))

    def activate(self, spec: ModelSpec, look: Look) -> str:
        """Give the wanted version the model's name; the one that had it is kept."""
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            target = parse_reference(spec.name)
            wanted = spec.digest or self._fetched.get(spec.name, look.wanted)
            store = self.store.names()
            before = store.get(target)
            if before and before.digest == wanted:
                # Its blobs were damaged and have been fetched anew: what is in memory may be from the damaged ones.
                if in_memory(self.server.running_if_up(), target.shown, before, store):
                    self.server.unload(target.shown, wanted)
            else:
                self._switch(spec, target, before, wanted)
            self.store.unname(kept_reference(spec.unit, wanted))
            return wanted

    def _switch(self, spec: ModelSpec, target: Reference, before: Manifest | None, wanted: str) -> None:
        if before:
            self.store.keep(spec.unit, before)
            self.store.replaced(spec.unit, before.digest, wanted)
        try:
            self.server.copy(self._name_of(wanted), target.shown)
            got = self.server.names().get(target.shown, "")
            if got != wanted:
                raise EngineError(f"{spec.name}: Ollama has {got or 'no version'} under this name, wanted {wanted}.")
        except EngineError as error:
            now = self.store.names().get(target)
            if before and now and now.digest != before.digest:
                with contextlib.suppress(EngineError):
                    self.server.copy(kept_reference(spec.unit, before.digest).shown, target.shown)
            raise EngineError(f"{error} The node has {before.digest if before else 'no version'} as before.") from error
        if before:
            # Ollama would hold it until it needs the room, and the new version beside it.
            self._drop([before.digest], [target], self.store.names())

    def _name_of(self, digest: str) -> str:
        """Return a name that has the version, one of our own if there is one."""
        names = [name for name, manifest in self.store.names().items() if manifest.digest == digest]
        if not names:
            raise EngineError(f"{digest} is no longer in {self.settings.models_dir}. Run again to fetch it.")
        return min(names, key=lambda name: (not name.is_kept, name.shown)).shown

    def remove(self, spec: ModelSpec) -> None:
        """Delete the name and its kept versions, and the blobs that no other one needs (Ollama does)."""
        target, kept = parse_reference(spec.name), kept_reference(spec.unit, "")
        store = self.store.names()
        names = [target, *(name for name in store if name.is_kept and name.model == kept.model)]
        # Without a name nobody could drop it later; a damaged model may have none that Ollama knows.
        with contextlib.suppress(EngineError):
            self._drop([store[name].digest for name in names if name in store], names, store)
        for name in names:
            self.server.delete(name.shown)
        self.store.forget(spec.unit)

    def prune(self, specs: list[ModelSpec], keep: frozenset[str], keep_previous: int) -> Pruned:
        """Delete the names, versions and blobs that none of the wanted models needs."""
        if self.settings.read_only or not self.store.exists:
            return self._prune(specs, keep, keep_previous)
        self.store.prepare()
        with self.store.lock(self.settings.lock_timeout):
            return self._prune(specs, keep, keep_previous)

    def _prune(self, specs: list[ModelSpec], keep: frozenset[str], keep_previous: int) -> Pruned:
        store = self.store.names()
        wanted = {parse_reference(spec.name).shown: spec for spec in specs if spec.state != "absent"}
        running = self.server.running_if_up()
        stock = Stock(
            names={name.shown: manifest.digest for name, manifest in store.items() if not name.is_kept},
            versions={manifest.digest: manifest.size for manifest in store.values()},
            previous={name: self.store.previous(spec.unit) for name, spec in wanted.items()},
            loaded=frozenset(with_prefix(entry.get("digest") or "") for entry in running),
        )
        targets = {name: spec.digest for name, spec in wanted.items()}
        plan = surplus(stock, targets, keep, keep_previous)
        extra = [name for name in store if not name.is_kept and name.shown in plan.names]
        gone = [name for name, manifest in store.items() if manifest.digest in plan.versions]
        left = {blob for manifest in store.values() if manifest.digest in plan.needed for blob in manifest.sizes}
        partials, blobs = self._surplus_files(plan.needed)

        pruned = Pruned()
        for name in extra:
            pruned.remove("name", name=name.shown, digest=store[name].digest)
        for digest in plan.versions:
            sizes = next(manifest.sizes for manifest in store.values() if manifest.digest == digest)
            freed = {blob: size for blob, size in sizes.items() if blob not in left}
            left.update(freed)
            pruned.remove("version", digest=digest, freed=sum(freed.values()))
        for kind, sizes in (("partial", partials), ("blob", blobs)):
            for digest, size in sizes.items():
                pruned.remove(kind, digest=digest, freed=size)
        pruned.staying = [
            *(line_of("name", name, digest) for name, digest in stock.names.items() if name not in plan.names),
            *(line_of("version", "", digest) for digest in stock.versions if digest not in plan.versions),
            *(line_of("partial", "", digest) for digest in self.store.partials() if digest not in partials),
        ]
        if not self.settings.read_only:
            self._remove_surplus(extra, gone, store, stock.loaded, plan.needed)
            for digest in partials:
                self.store.drop_partial(digest)
            for digest in blobs:
                self.store.discard(digest)
        return pruned

    def _surplus_files(self, needed: frozenset[str]) -> tuple[dict[str, int], dict[str, int]]:
        """Return the files on their way and the nameless blobs that no needed version has."""
        manifests = {digest: self.store.manifest(digest) for digest in needed}
        partials, orphans = self.store.partials(), self.store.orphans()
        if not all(manifests.values()):
            # Nobody knows which blobs that version has.
            return {}, {}
        blobs = {blob for manifest in manifests.values() if manifest for blob in manifest.sizes}
        return (
            {digest: size for digest, size in partials.items() if digest not in blobs},
            {digest: size for digest, size in orphans.items() if digest not in blobs},
        )

    def _remove_surplus(
        self,
        extra: list[Reference],
        gone: list[Reference],
        store: dict[Reference, Manifest],
        loaded: frozenset[str],
        needed: frozenset[str],
    ) -> None:
        staying = {manifest.digest for name, manifest in store.items() if name not in (*extra, *gone)}
        for name in extra:
            if store[name].digest in needed - staying:
                self.store.keep(unit_name(name.shown), store[name])
        leaving = [store[name].digest for name in extra if store[name].digest in loaded - needed]
        if leaving:
            # A damaged one may have no name that Ollama knows.
            with contextlib.suppress(EngineError):
                self._drop(leaving, extra, store)
        self.store.delete([*extra, *gone])
        self.store.tidy(needed)

    def units(self, specs: list[ModelSpec]) -> dict[str, str]:
        """Return nothing: one server has all models."""
        return {}

    def load(self, spec: ModelSpec) -> bool:
        """Have the model in memory in the version that its name has now, and no other one."""
        name = parse_reference(spec.name)
        store = self.store.names()
        version = store.get(name)
        if not version:
            raise EngineError(f"{spec.name} is not on this node. Bring it there first (state: present).")
        keep = duration(spec.keep_alive)
        # First: to make room for one more, Ollama drops any model that is idle, another one perhaps.
        changed = self._unload_others(name, version, store)
        if not self._is_loaded(name, version, store, keep):
            changed = True
            self.server.load(name.shown, keep)
            got = in_memory(self.server.running(), name.shown, version, store).get("digest")
            if got != version.digest:
                # Versions with the same weights share what is in memory, and the older one's digest is shown.
                if not self.server.unload(name.shown, str(got)):
                    raise EngineError(
                        f"{spec.name}: requests still run on its former version {got}, which leaves the memory when "
                        "they are done. Drain the node, or wait, and run again."
                    )
                self.server.load(name.shown, keep)
                got = in_memory(self.server.running(), name.shown, version, store).get("digest")
            if got != version.digest:
                raise EngineError(
                    f"{spec.name}: Ollama loaded {got or 'nothing'} instead of {version.digest}. Look with: journalctl "
                    "-u ollama -n 50"
                )
        return changed

    def _is_loaded(self, name: Reference, version: Manifest, store: dict[Reference, Manifest], keep: int | str) -> bool:
        entry = in_memory(self.server.running(), name.shown, version, store)
        forever = isinstance(keep, int) and keep < 0
        now = datetime.datetime.now(datetime.timezone.utc)
        return entry.get("digest") == version.digest and (not forever or stays(str(entry.get("expires_at", "")), now))

    def _unload_others(self, name: Reference, version: Manifest, store: dict[Reference, Manifest]) -> bool:
        """Drop older versions of the model out of memory, which Ollama holds on to under its name."""
        entries = [entry for entry in self.server.running() if entry.get("name") == name.shown]
        digests = [with_prefix(entry.get("digest") or "") for entry in entries]
        return self._drop([digest for digest in digests if digest != version.digest], [name], store)

    def _drop(self, digests: list[str], leaving: list[Reference], store: dict[Reference, Manifest]) -> bool:
        """Drop versions out of memory, but none whose weights a name serves that isn't leaving; return whether any was.

        Ollama takes a request to drop one only under a name that has its weights.
        """
        served = {manifest.weights for name, manifest in store.items() if not (name.is_kept or name in leaving)} - {""}
        loaded = {with_prefix(entry.get("digest") or "") for entry in self.server.running()}
        done = False
        for digest in dict.fromkeys(digests):
            names = [name.shown for name, manifest in store.items() if manifest.digest == digest]
            shared = any(manifest.digest == digest and manifest.weights in served for manifest in store.values())
            if digest in loaded and names and not shared:
                done = self.server.unload(names[0], digest) or done
        return done

    def unload(self, spec: ModelSpec) -> None:
        """Drop the model out of memory."""
        self.server.load(parse_reference(spec.name).shown, 0)
