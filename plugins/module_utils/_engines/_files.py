# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are whole or not there, and the lock by which only one run at a time works on a store."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from typing import Any, Iterator

from ansible_collections.llm.cluster.plugins.module_utils._engines import EngineError


def identity(path: str) -> dict[str, int]:
    """Return what tells that a file is the very one that was hashed before."""
    stat = os.stat(path)
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}


def size_of(path: str) -> int | None:
    """Return a file's size, None if it isn't there."""
    try:
        return os.path.getsize(path)
    except OSError:
        return None


def digests_in(folder: str, pattern: re.Pattern[str]) -> dict[str, int]:
    """Return digest and size of the files in a folder whose names match; the pattern has one group, the HEX."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            match = pattern.match(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                found["sha256:" + match.group(1)] = entry.stat().st_size
    return found


def read_json(path: str) -> Any:
    """Return what a file holds, None if it cannot be read."""
    try:
        with open(path, encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return None


def write_json(path: str, value: Any) -> None:
    """Replace a file at once."""
    write_bytes(path, json.dumps(value, sort_keys=True).encode())


def write_bytes(
    path: str, content: bytes, mode: int = 0o644, owner: tuple[int, int] | None = None, new: str = ""
) -> None:
    """Replace a file at once; it is on the disk then. new: where it is written first, default beside it."""
    new = new or f"{path}.new"
    remove(new)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(content)
        give(stream.fileno(), mode, owner)
        stream.flush()
        os.fsync(stream.fileno())
    os.rename(new, path)
    sync_folder(os.path.dirname(path))


def give(handle: int, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Set an open file's mode, and its owner if one is given and isn't it yet."""
    os.fchmod(handle, mode)
    if owner is not None:
        stat = os.fstat(handle)
        if (stat.st_uid, stat.st_gid) != owner:
            os.fchown(handle, *owner)


def sync_folder(path: str) -> None:
    """Wait until the disk has a folder's names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: str) -> None:
    """Delete a file if it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def require_one_filesystem(models_dir: str, partial_dir: str) -> None:
    """Raise when a rename cannot go from one folder to the other."""
    if os.stat(models_dir).st_dev != os.stat(partial_dir).st_dev:
        raise EngineError(
            f"{partial_dir} is on another filesystem than {models_dir}: files could not be moved into place at once. "
            "Put both on one (partial_dir)."
        )


@contextlib.contextmanager
def store_lock(models_dir: str, partial_dir: str, timeout: float) -> Iterator[None]:
    """Keep other runs out of a store."""
    path = os.path.join(partial_dir, ".lock")
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
                        f"Another run (process {holder}) has worked on {models_dir} for more than {timeout:.0f} s. "
                        "Wait for it, or end it, then run again."
                    ) from error
                time.sleep(pause)
                pause = min(pause * 2, 1.0)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
