# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder of GGUF files named by their SHA-256, and the links through which llama.cpp serves them.

    MODELS/sha256-HEX.gguf                 a whole, verified file
    MODELS/sha256-HEX.gguf.verified.json   its size, mtime and inode when it was hashed
    MODELS/current/UNIT.gguf               the link that instance UNIT serves
    MODELS/current/UNIT.json               when that link was last switched, to know whether the instance came later
    PARTIAL/sha256-HEX.gguf.part           a file on its way

A file gets into MODELS by a rename when it is whole and on the disk, and a link is replaced by a rename, so that
being interrupted at any moment leaves either the old state or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from typing import Any, Iterator

from ansible_collections.llm.cluster.plugins.module_utils._engines import EngineError
from ansible_collections.llm.cluster.plugins.module_utils._fetch import sha256_file

BLOB = re.compile(r"^sha256-([0-9a-f]{64})\.gguf$")


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
            before = _identity(self.blob(digest))
        except FileNotFoundError:
            return "missing"
        if _read_json(self._verified(digest)) == before:
            return "ok"
        if sha256_file(self.blob(digest)) != digest:
            return "corrupt"
        if remember and _identity(self.blob(digest)) == before:
            _write_json(self._verified(digest), before)
        return "ok"

    def switched(self, unit: str) -> dict[str, Any]:
        """Return what was noted when the unit's link was last switched."""
        noted = _read_json(self._switched(unit))
        return noted if isinstance(noted, dict) else {}

    # Writing

    def prepare(self) -> None:
        """Create the folders and check that a rename can go from one to the other."""
        for path in (self.models_dir, os.path.join(self.models_dir, "current"), self.partial_dir):
            os.makedirs(path, mode=0o755, exist_ok=True)
        if os.stat(self.models_dir).st_dev != os.stat(self.partial_dir).st_dev:
            raise EngineError(
                f"{self.partial_dir} is on another filesystem than {self.models_dir}: files could not be moved into "
                "place at once. Put both on one (partial_dir)."
            )

    @contextlib.contextmanager
    def lock(self, timeout: float) -> Iterator[None]:
        """Keep other runs out of the store."""
        path = os.path.join(self.partial_dir, ".lock")
        deadline = time.monotonic() + timeout
        with open(path, "a+", encoding="utf-8") as stream:
            pause = 0.05
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        stream.seek(0)
                        holder = stream.read(20).strip() or "unknown"
                        raise EngineError(
                            f"Another run (process {holder}) has worked on {self.models_dir} for more than "
                            f"{timeout:.0f} s. Wait for it, or end it, then run again."
                        ) from error
                    time.sleep(pause)
                    pause = min(pause * 2, 1.0)
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield

    def adopt(self, digest: str) -> None:
        """Move a whole and verified partial file into the store."""
        source = self.partial(digest)
        with open(source, "rb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.rename(source, self.blob(digest))
        _sync_folder(self.models_dir)
        _write_json(self._verified(digest), _identity(self.blob(digest)))

    def discard(self, digest: str) -> None:
        """Delete a file and what is noted about it."""
        for path in (self._verified(digest), self.blob(digest)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        _sync_folder(self.models_dir)

    def switch(self, unit: str, digest: str) -> None:
        """Point a unit's link to a file."""
        # First noted as begun, so that being interrupted in between asks for a restart too.
        _write_json(self._switched(unit), {"digest": digest})
        link = self.link(unit)
        new = link + ".new"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        os.symlink(os.path.join("..", _file_name(digest)), new)
        os.rename(new, link)
        _sync_folder(os.path.dirname(link))
        _write_json(
            self._switched(unit), {"digest": digest, "boot": boot_id(), "monotonic": time.clock_gettime(_MONOTONIC)}
        )

    def unlink(self, unit: str) -> None:
        """Remove a unit's link."""
        for path in (self.link(unit), self._switched(unit)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        _sync_folder(os.path.join(self.models_dir, "current"))

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


def _identity(path: str) -> dict[str, int]:
    stat = os.stat(path)
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def _read_json(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def _write_json(path: str, value: Any) -> None:
    new = path + ".new"
    with open(new, "w", encoding="utf-8") as stream:
        json.dump(value, stream, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(new, path)
    _sync_folder(os.path.dirname(path))


def _sync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: str) -> None:
    """Delete a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
