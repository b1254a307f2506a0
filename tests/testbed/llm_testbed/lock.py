# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Locks between runs of this program on one machine: one per bed, one for what all beds share."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .shell import TestbedError


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock `name`; waits for whoever has it. Its file is gone when nobody holds the lock any more."""
    path = Path(tempfile.gettempdir()) / f"llm-testbed-{name}.lock"
    descriptor = _acquire(path)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise TestbedError(f"Another user is using the test bed ({path} is theirs). Wait for them.") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another run of the test bed ({path}) …", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever held it before has removed the file: then this lock is on a file that nobody else can see.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
