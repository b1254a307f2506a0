# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder of GGUF files named by their SHA-256, and the links through which llama.cpp serves them.

    MODELS/sha256-HEX.gguf                 a whole, verified file
    MODELS/sha256-HEX.gguf.verified.json   its size, mtime and inode when it was hashed
    MODELS/current/UNIT.gguf               the link that instance UNIT serves
    MODELS/current/UNIT.json               when that link was last switched, to know whether the instance came later,
                                           and which versions it had before, newest first
    PARTIAL/sha256-HEX.gguf.part           a file on its way
    PARTIAL/sha256-HEX.gguf.part.size      how large it will be, for other nodes that fetch it meanwhile

A file gets into MODELS by a rename when it is whole and on the disk, and a link is replaced by a rename, so that
being interrupted at any moment leaves either the old state or the new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils._engines import EngineError, _files
from ansible_collections.llm.cluster.plugins.module_utils._fetch import sha256_file

# How many former versions of a model are remembered by digest, whether they are still there or not.
HISTORY = 20
BLOB = re.compile(r"^sha256-([0-9a-f]{64})\.gguf$")
PART = re.compile(r"^sha256-([0-9a-f]{64})\.gguf\.part$")


class GgufStore:
    """The store of one node."""

    def __init__(self, models_dir: str, partial_dir: str) -> None:
        self.models_dir = models_dir
        self.partial_dir = partial_dir

    def blob(self, digest: str) -> str:
        """Path of a whole file."""
        return os.path.join(self.models_dir, _file_name(digest))

    def partial(self, digest: str) -> str:
        """Path of a file on its way."""
        return os.path.join(self.partial_dir, _file_name(digest) + ".part")

    def link(self, unit: str) -> str:
        """Path that a unit serves."""
        return os.path.join(self.models_dir, "current", unit + ".gguf")

    def _verified(self, digest: str) -> str:
        return self.blob(digest) + ".verified.json"

    def _switched(self, unit: str) -> str:
        return os.path.join(self.models_dir, "current", unit + ".json")

    # Reading

    @property
    def exists(self) -> bool:
        """Whether there is a store yet."""
        return os.path.isdir(self.models_dir)

    def current(self, unit: str) -> str:
        """Return the digest that a unit's link names, or ``""``."""
        try:
            target = os.readlink(self.link(unit))
        except OSError:
            return ""
        found = BLOB.match(os.path.basename(target))
        return "sha256:" + found.group(1) if found else ""

    def units(self) -> dict[str, str]:
        """Return the digest of every unit's link."""
        with contextlib.suppress(FileNotFoundError):
            names = sorted(os.listdir(os.path.join(self.models_dir, "current")))
            units = [name[: -len(".gguf")] for name in names if name.endswith(".gguf")]
            return {unit: self.current(unit) for unit in units}
        return {}

    def have(self, digest: str) -> int:
        """Return how many bytes of a file on its way are there."""
        try:
            return os.path.getsize(self.partial(digest))
        except OSError:
            return 0

    def check(self, digest: str, remember: bool = True) -> str:
        """Return whether a file is ``ok``, ``missing`` or ``corrupt``.

        It is hashed only if it isn't the very file (size, mtime, inode) that was hashed before.
        """
        try:
            before = _files.identity(self.blob(digest))
        except FileNotFoundError:
            return "missing"
        if _files.read_json(self._verified(digest)) == before:
            return "ok"
        if sha256_file(self.blob(digest)) != digest:
            return "corrupt"
        if remember and _files.identity(self.blob(digest)) == before:
            _files.write_json(self._verified(digest), before)
        return "ok"

    def glance(self, digest: str) -> tuple[str, str]:
        """Return what check() would, without hashing, and what is uncertain about it."""
        try:
            now = _files.identity(self.blob(digest))
        except FileNotFoundError:
            return "missing", ""
        noted = _files.read_json(self._verified(digest))
        if noted == now:
            return "ok", ""
        if isinstance(noted, dict) and noted.get("size") != now["size"]:
            return "corrupt", f"the file has {now['size']} bytes instead of {noted.get('size')}"
        return "ok", "the file was not hashed since it changed"

    def versions(self) -> dict[str, int]:
        """Return digest and size of every file that bears a whole one's name."""
        return _files.digests_in(self.models_dir, BLOB)

    def partials(self) -> dict[str, int]:
        """Return digest and size of every file on its way."""
        return _files.digests_in(self.partial_dir, PART)

    def previous(self, unit: str) -> list[str]:
        """Return the versions that a unit served before, newest first."""
        return [str(digest) for digest in self.switched(unit).get("previous") or []]

    def switched(self, unit: str) -> dict[str, Any]:
        """Return what was noted when the unit's link was last switched."""
        noted = _files.read_json(self._switched(unit))
        return noted if isinstance(noted, dict) else {}

    # Writing

    def prepare(self) -> None:
        """Create the folders and check that a rename can go from one to the other."""
        for path in (self.models_dir, os.path.join(self.models_dir, "current"), self.partial_dir):
            os.makedirs(path, mode=0o755, exist_ok=True)
        _files.require_one_filesystem(self.models_dir, self.partial_dir)

    def lock(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Keep other runs out of the store."""
        return _files.store_lock(self.models_dir, self.partial_dir, timeout)

    def adopt(self, digest: str) -> None:
        """Move a whole and verified partial file into the store."""
        source = self.partial(digest)
        with open(source, "rb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.rename(source, self.blob(digest))
        _files.remove(source + ".size")
        _files.sync_folder(self.models_dir)
        _files.write_json(self._verified(digest), _files.identity(self.blob(digest)))

    def drop_partial(self, digest: str) -> None:
        """Delete what came of a file."""
        for path in (self.partial(digest), self.partial(digest) + ".size"):
            _files.remove(path)

    def discard(self, digest: str) -> None:
        """Delete a file and what is noted about it."""
        for path in (self._verified(digest), self.blob(digest)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        _files.sync_folder(self.models_dir)

    def switch(self, unit: str, digest: str) -> None:
        """Point a unit's link to a file."""
        # First noted as begun, so that being interrupted in between asks for a restart too.
        before = [self.current(unit), *self.previous(unit)]
        previous = [old for old in dict.fromkeys(before) if old not in ("", digest)][:HISTORY]
        note: dict[str, Any] = {"digest": digest, "previous": previous}
        _files.write_json(self._switched(unit), note)
        link = self.link(unit)
        new = link + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        os.symlink(os.path.join("..", _file_name(digest)), new)
        os.rename(new, link)
        _files.sync_folder(os.path.dirname(link))
        note.update(boot=boot_id(), monotonic=time.clock_gettime(_MONOTONIC))
        _files.write_json(self._switched(unit), note)

    def unlink(self, unit: str) -> None:
        """Remove a unit's link."""
        for path in (self.link(unit), self._switched(unit)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        _files.sync_folder(os.path.join(self.models_dir, "current"))

    def append(self, digest: str, offset: int, chunk: str, expected: str) -> int:
        """Append a chunk to a file on its way and return how much of that is there then.

        Nothing is appended when the chunk is damaged or doesn't begin where the file ends.
        """
        got = sha256_file(chunk)
        if got != expected:
            raise EngineError(f"A chunk was damaged on its way: expected {expected}, got {got}. Run again to go on.")
        path = self.partial(digest)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(path, flags, 0o600), "r+b") as target, open(chunk, "rb") as source:
            size = target.seek(0, os.SEEK_END)
            if size < offset:
                raise EngineError(
                    f"{path} holds {size} bytes where {offset} were expected: another run is at work on it. Run again."
                )
            # What is beyond the offset came with a try that broke.
            target.truncate(offset)
            target.seek(offset)
            while True:
                block = source.read(1024 * 1024)
                if not block:
                    break
                target.write(block)
            target.flush()
            os.fsync(target.fileno())
            return target.tell()


_MONOTONIC = time.CLOCK_MONOTONIC


def boot_id() -> str:
    """Return what tells this boot of the machine from others."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def _file_name(digest: str) -> str:
    return digest.replace(":", "-", 1) + ".gguf"
