# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes below another one. Ansible's workers lead sessions of their own: no signal to a group reaches them all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time

# A process and its group: its number alone may be another one's by now.
Process = tuple[int, int]
# How long a process has to end by itself, in seconds.
PATIENCE = 5.0


def all_processes() -> dict[Process, int]:
    """Return every living process with its parent's number."""
    argv = ["ps", "-A", "-o", "pid=", "-o", "pgid=", "-o", "ppid=", "-o", "stat="]
    listed = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    rows = (line.split() for line in listed.splitlines())
    return {(int(row[0]), int(row[1])): int(row[2]) for row in rows if len(row) == 4 and not row[3].startswith("Z")}


def below(root: int) -> set[Process]:
    """Return a process and all below it."""
    known = all_processes()
    found = {process for process in known if process[0] == root}
    while True:
        numbers = {number for number, _group in found}
        more = {process for process, parent in known.items() if parent in numbers} - found
        if not more:
            return found
        found |= more


def end(processes: set[Process]) -> None:
    """End processes, and wait until none is left: asked first, killed when that does not help."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = processes & all_processes().keys()
        for process, _group in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, number)
        deadline = time.monotonic() + PATIENCE
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left &= all_processes().keys()
        if not left:
            return
