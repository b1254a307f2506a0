# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's store on the disk, and our folder beside it.

    MODELS/manifests/HOST/NAMESPACE/MODEL/TAG   what a name is: the digests of its blobs. Its SHA-256 is the version.
    MODELS/blobs/sha256-HEX                     the blobs
    PARTIAL/sha256-HEX.part                     a blob on its way
    PARTIAL/sha256-HEX.part.size                how large it will be, for other nodes that fetch it meanwhile
    PARTIAL/manifests/sha256-HEX                manifests by digest, for other nodes
    PARTIAL/verified/sha256-HEX.json            a blob's size, mtime and inode when it was hashed
    PARTIAL/previous/UNIT.json                  which versions a model had before, newest first

Ollama reads its store anew for each request. So a version can be brought there while it serves: blobs first, each by
a rename when it is whole and verified, and the manifest last. It waits under a name of our own, which no client asks
for, until it gets the model's name. Nothing of ours is ever in the folder of the blobs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from typing import Collection, Iterable, Iterator

from ansible_collections.llm.cluster.plugins.module_utils._engines import EngineError, _files
from ansible_collections.llm.cluster.plugins.module_utils._fetch import sha256_file

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
# Under this namespace versions wait that are not served: fetched ones, and former ones for the way back.
KEPT = "llm-cluster-kept"
# How many former versions of a model are remembered by digest, whether they are still there or not.
HISTORY = 20
# A manifest is some hundred bytes; more than this is none.
MANIFEST_AT_MOST = 4 * 1024 * 1024

# Ollama's own pull of a large model over a slow line may take a day, and names its blobs at the end only.
ORPHAN_SECONDS = 2 * 86400

BLOB = re.compile(r"^sha256-([0-9a-f]{64})$")
PART = re.compile(r"^sha256-([0-9a-f]{64})\.part$")
NOTE = re.compile(r"^sha256-([0-9a-f]{64})\.json$")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


@dataclass(frozen=True)
class Reference:
    """A model's whole name."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def shown(self) -> str:
        """The name as Ollama shows it: without what is the default."""
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        if self.namespace != DEFAULT_NAMESPACE:
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def is_kept(self) -> bool:
        """Whether it is one of our own names, which is no model to anybody else."""
        return self.host == DEFAULT_HOST and self.namespace == KEPT

    def repository_url(self, insecure: bool) -> str:
        """Where the registry has its manifests and blobs."""
        scheme = "http" if insecure else "https"
        return f"{scheme}://{self.host}/v2/{self.namespace}/{self.model}"

    def manifest_url(self, insecure: bool) -> str:
        """Where the registry has its manifest."""
        return f"{self.repository_url(insecure)}/manifests/{self.tag}"

    def blob_url(self, insecure: bool, digest: str) -> str:
        """Where the registry has one of its blobs."""
        return f"{self.repository_url(insecure)}/blobs/{digest}"


def parse_reference(text: str) -> Reference:
    """Read ``[host[:port]/][namespace/]model[:tag]`` as Ollama does."""
    rest = text.split("://", 1)[-1]
    tag = "latest"
    if rest.rfind(":") > rest.rfind("/"):
        rest, _colon, tag = rest.rpartition(":")
    rest, _slash, model = rest.rpartition("/")
    host, _slash, namespace = rest.rpartition("/")
    if not model or not tag:
        raise EngineError(f"{text!r} is not a model's name. Write MODEL:TAG or HOST:PORT/NAMESPACE/MODEL:TAG.")
    return Reference(host or DEFAULT_HOST, namespace or DEFAULT_NAMESPACE, model, tag)


def kept_reference(unit: str, digest: str) -> Reference:
    """Return the name under which a version of a model waits."""
    return Reference(DEFAULT_HOST, KEPT, unit[:80], digest.rpartition(":")[2][:12])


@dataclass(frozen=True)
class Manifest:
    """One version of a model: its digest, the sizes of its blobs by digest, and which of them is the model itself."""

    raw: bytes
    digest: str
    sizes: dict[str, int]
    weights: str = ""

    @property
    def size(self) -> int:
        """Bytes of all blobs."""
        return sum(self.sizes.values())


def read_manifest(raw: bytes) -> Manifest:
    """Read a manifest; raise EngineError if it is none."""
    try:
        manifest = json.loads(raw.decode("utf-8"))
        parts = [*manifest["layers"], manifest.get("config") or {}]
        sizes = {str(part["digest"]): int(part["size"]) for part in parts if part.get("digest")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"The registry's answer is not a manifest ({error!r}). Check source.registry.") from error
    bad = [digest for digest in sizes if not _DIGEST.match(digest)]
    if bad or not sizes:
        raise EngineError(f"The manifest names {bad or 'no blobs'} instead of SHA-256 digests. Check source.registry.")
    weights = [part["digest"] for part in parts if str(part.get("mediaType", "")).endswith(".image.model")]
    return Manifest(raw, "sha256:" + hashlib.sha256(raw).hexdigest(), sizes, weights[0] if weights else "")


def file_name(digest: str) -> str:
    """Return a digest as it stands in a file's name."""
    return digest.replace(":", "-", 1)


class OllamaStore:
    """The store of one node."""

    def __init__(self, models_dir: str, partial_dir: str) -> None:
        self.models_dir = models_dir
        self.partial_dir = partial_dir

    def blob(self, digest: str) -> str:
        """Path of a whole blob."""
        return os.path.join(self.models_dir, "blobs", file_name(digest))

    def partial(self, digest: str) -> str:
        """Path of a blob on its way."""
        return os.path.join(self.partial_dir, file_name(digest) + ".part")

    def shared_manifest(self, digest: str) -> str:
        """Path where other nodes find a manifest by its digest."""
        return os.path.join(self.partial_dir, "manifests", file_name(digest))

    def _path(self, name: Reference) -> str:
        return os.path.join(self.models_dir, "manifests", name.host, name.namespace, name.model, name.tag)

    def _verified(self, digest: str) -> str:
        return os.path.join(self.partial_dir, "verified", file_name(digest) + ".json")

    def _previous(self, unit: str) -> str:
        return os.path.join(self.partial_dir, "previous", unit + ".json")

    # Reading

    def names(self) -> dict[Reference, Manifest]:
        """Return every name in the store and its version; what is no manifest is passed over, as Ollama does."""
        found = {}
        for name in self._references():
            manifest = self._read(self._path(name))
            if manifest:
                found[name] = manifest
        return found

    def _references(self) -> Iterator[Reference]:
        root = os.path.join(self.models_dir, "manifests")
        for host in _entries(root):
            for namespace in _entries(root, host):
                for model in _entries(root, host, namespace):
                    for tag in _entries(root, host, namespace, model):
                        yield Reference(host, namespace, model, tag)

    @staticmethod
    def _read(path: str) -> Manifest | None:
        try:
            with open(path, "rb") as stream:
                return read_manifest(stream.read(MANIFEST_AT_MOST))
        except (OSError, EngineError):
            return None

    def manifest(self, digest: str) -> Manifest | None:
        """Return a version's manifest if the node has it, whether or not its blobs are there."""
        for manifest in self.names().values():
            if manifest.digest == digest:
                return manifest
        shared = self._read(self.shared_manifest(digest))
        return shared if shared and shared.digest == digest else None

    def damage(self, manifest: Manifest, verify: bool, remember: bool = False) -> dict[str, str]:
        """Return what is wrong with which blobs of a version.

        Sizes are compared always. With verify a blob is hashed too if it isn't the very file that was hashed before.
        """
        found = {}
        for digest, size in manifest.sizes.items():
            problem = self._blob_problem(digest, size, verify, remember)
            if problem:
                found[digest] = problem
        return found

    def _blob_problem(self, digest: str, size: int, verify: bool, remember: bool) -> str:
        try:
            before = _files.identity(self.blob(digest))
        except OSError:
            return "is missing"
        if before["size"] != size:
            return f"has {before['size']} bytes instead of {size}"
        if not verify or _files.read_json(self._verified(digest)) == before:
            return ""
        if sha256_file(self.blob(digest)) != digest:
            return "has other bytes than its name says"
        if remember and _files.identity(self.blob(digest)) == before:
            self._note(digest)
        return ""

    def have(self, manifest: Manifest, damage: Collection[str]) -> int:
        """Return how many bytes of a version are there, in whole blobs and in those on their way."""
        return sum(
            min(_files.size_of(self.partial(digest)) or 0, size) if digest in damage else size
            for digest, size in manifest.sizes.items()
        )

    def whole(self, digest: str) -> bool:
        """Whether all blobs of a version that has a name here are there, by their sizes."""
        manifest = next((each for each in self.names().values() if each.digest == digest), None)
        return manifest is not None and not self.damage(manifest, verify=False)

    def previous(self, unit: str) -> list[str]:
        """Return the versions that a model had before, newest first."""
        noted = _files.read_json(self._previous(unit))
        return [str(digest) for digest in noted] if isinstance(noted, list) else []

    @property
    def exists(self) -> bool:
        """Whether there is a store yet."""
        return os.path.isdir(self.models_dir)

    def blobs(self) -> dict[str, int]:
        """Return digest and size of every whole blob."""
        return _files.digests_in(os.path.join(self.models_dir, "blobs"), BLOB)

    def partials(self) -> dict[str, int]:
        """Return digest and size of every file on its way."""
        return _files.digests_in(self.partial_dir, PART)

    def orphans(self) -> dict[str, int]:
        """Return the blobs that belong to no name, and came so long ago that no pull can still be at work on theirs."""
        named = {digest for manifest in self.names().values() for digest in manifest.sizes}
        old = time.time() - ORPHAN_SECONDS
        return {
            digest: size
            for digest, size in self.blobs().items()
            if digest not in named and os.stat(self.blob(digest)).st_mtime < old
        }

    def is_named(self, digest: str) -> bool:
        """Whether a version has any name here, so that Ollama has it."""
        return any(manifest.digest == digest for manifest in self.names().values())

    # Writing

    def prepare(self) -> None:
        """Create our folders, and check that a rename can go from there into the store."""
        if not self.exists:
            raise EngineError(
                f"There is no store of Ollama in {self.models_dir}. Install Ollama first (role llm.cluster.ollama), or "
                "correct models_dir (ollama_models_path)."
            )
        for name in ("", "manifests", "verified", "previous"):
            os.makedirs(os.path.join(self.partial_dir, name), mode=0o755, exist_ok=True)
        for name in ("blobs", "manifests"):
            self._make_folder(os.path.join(self.models_dir, name))
        _files.require_one_filesystem(self.models_dir, self.partial_dir)

    def _make_folder(self, path: str) -> None:
        """Create a folder in the store as Ollama would: its owner, its mode."""
        if os.path.isdir(path):
            return
        self._make_folder(os.path.dirname(path))
        os.mkdir(path)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            stat = os.stat(self.models_dir)
            _files.give(handle, stat.st_mode & 0o777, (stat.st_uid, stat.st_gid))
        finally:
            os.close(handle)

    def _ownership(self) -> tuple[int, tuple[int, int]]:
        """Return mode and owner of a file in the store: readable for those who may enter it."""
        stat = os.stat(self.models_dir)
        return (stat.st_mode & 0o044) | 0o600, (stat.st_uid, stat.st_gid)

    def lock(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Keep other runs out of the store."""
        return _files.store_lock(self.models_dir, self.partial_dir, timeout)

    def share(self, manifest: Manifest) -> None:
        """Put a manifest where other nodes find it by its digest."""
        path = self.shared_manifest(manifest.digest)
        if self._read(path) != manifest:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            _files.write_bytes(path, manifest.raw)

    def share_all(self) -> None:
        """Put the manifests of all versions where other nodes find them, also of those that Ollama pulled itself."""
        for manifest in self.names().values():
            self.share(manifest)

    def adopt(self, digest: str) -> None:
        """Move a whole and verified partial file into the store."""
        source = self.partial(digest)
        with open(source, "rb") as stream:
            _files.give(stream.fileno(), *self._ownership())
            os.fsync(stream.fileno())
        os.rename(source, self.blob(digest))
        _files.sync_folder(os.path.dirname(self.blob(digest)))
        self._note(digest)

    def discard(self, digest: str) -> None:
        """Delete a blob and what is noted about it."""
        _files.remove(self._verified(digest))
        _files.remove(self.blob(digest))

    def drop_partial(self, digest: str) -> None:
        """Delete what came of a file."""
        for path in (self.partial(digest), self.partial(digest) + ".size"):
            _files.remove(path)

    def keep(self, unit: str, manifest: Manifest) -> None:
        """Have a version wait under a name of our own; its blobs are there."""
        path = self._path(kept_reference(unit, manifest.digest))
        if self._read(path) == manifest:
            return
        mode, owner = self._ownership()
        # Written elsewhere first: in the store's folder Ollama would take it for another name.
        new = os.path.join(self.partial_dir, "manifest.new")
        try:
            self._make_folder(os.path.dirname(path))
            _files.write_bytes(path, manifest.raw, mode, owner, new)
        except FileNotFoundError:
            # Ollama, when it deletes a model, removes every folder that is empty then.
            self._make_folder(os.path.dirname(path))
            _files.write_bytes(path, manifest.raw, mode, owner, new)

    def replaced(self, unit: str, old: str, new: str) -> None:
        """Note that a model's version gave way to another one."""
        history = [digest for digest in dict.fromkeys([old, *self.previous(unit)]) if digest not in ("", new)]
        _files.write_json(self._previous(unit), history[:HISTORY])

    def forget(self, unit: str) -> None:
        """Delete what is noted about a model's former versions."""
        _files.remove(self._previous(unit))

    def unname(self, name: Reference) -> None:
        """Remove a name; its blobs stay."""
        path = self._path(name)
        _files.remove(path)
        for _level in range(3):
            path = os.path.dirname(path)
            try:
                os.rmdir(path)
            except OSError:
                return

    def delete(self, names: Iterable[Reference]) -> None:
        """Remove names and the blobs that no other name needs, and the notes about these."""
        store = self.names()
        gone = [(name, store[name]) for name in names if name in store]
        for name, _manifest in gone:
            self.unname(name)
        needed = {digest for manifest in self.names().values() for digest in manifest.sizes}
        for digest in {digest for _name, manifest in gone for digest in manifest.sizes} - needed:
            self.discard(digest)

    def tidy(self, needed: Collection[str]) -> None:
        """Delete manifests for other nodes of versions that are neither here nor needed, and notes about blobs gone."""
        staying = {*needed, *(manifest.digest for manifest in self.names().values())}
        for digest in _files.digests_in(os.path.join(self.partial_dir, "manifests"), BLOB):
            if digest not in staying:
                _files.remove(self.shared_manifest(digest))
        blobs = self.blobs()
        for digest in _files.digests_in(os.path.join(self.partial_dir, "verified"), NOTE):
            if digest not in blobs:
                _files.remove(self._verified(digest))

    def _note(self, digest: str) -> None:
        os.makedirs(os.path.dirname(self._verified(digest)), mode=0o755, exist_ok=True)
        _files.write_json(self._verified(digest), _files.identity(self.blob(digest)))


def _entries(*parts: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(os.path.join(*parts)) if not name.startswith("."))
    except OSError:
        return []
