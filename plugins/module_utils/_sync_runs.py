# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One sync at a time on a controller: a file there says which process is at work, and nothing has to be tidied up.

Whether a process still runs is asked, not noted, so a sync that was killed is in nobody's way.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import subprocess
import uuid
from typing import Any


class AtWorkError(Exception):
    """Another sync is at work."""

    def __init__(self, run: str, process: int) -> None:
        super().__init__(f"{run}, process {process}")
        self.run = run
        self.process = process


def birth(process: int) -> str:
    """Return what tells a process from a later one of the same number; empty if it has ended."""
    if os.path.isdir("/proc/self"):
        with contextlib.suppress(OSError):
            with open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as stream:
                fields = stream.read().rpartition(")")[2].split()
            return "" if fields[0] in "ZX" else fields[19]
        return ""
    said = subprocess.run(
        ["ps", "-o", "stat=", "-o", "lstart=", "-p", str(process)], capture_output=True, text=True, check=False
    ).stdout.split(maxsplit=1)
    return "" if len(said) < 2 or said[0].startswith("Z") else said[1].strip()


def note_of(lock_file: str, folder: str) -> str:
    """Return where a controller notes the syncs to a lock file; homes may be shared by several controllers."""
    name = f"{socket.gethostname()}:{os.path.realpath(lock_file)}"
    return os.path.join(folder, hashlib.sha256(name.encode()).hexdigest()[:32] + ".json")


def begin(note: str, process: int, began: str, *, look: bool = False) -> str:
    """Note that this process has begun a sync, and return what the run is called: ``BEGAN-CONTROLLER``.

    look: note nothing, only tell the name. Raises AtWorkError if another sync is at work. Where nothing can be noted
    the run counts as one of a controller of its own.
    """
    try:
        os.makedirs(os.path.dirname(note), mode=0o700, exist_ok=True)
        stream = open(note, "a+", encoding="utf-8")  # noqa: SIM115 (closed below; may fail on its own)
    except OSError:
        return f"{began}-{_new_controller()}"
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.seek(0)
        noted = _read(stream.read())
        controller = str(noted.get("controller") or _new_controller())
        run = f"{began}-{controller}"
        if look:
            return run
        other = int(noted.get("process") or 0)
        if other not in (0, process) and birth(other) == noted["birth"] != "":
            raise AtWorkError(str(noted["run"]), other)
        stream.truncate(0)
        json.dump({"controller": controller, "run": run, "process": process, "birth": birth(process)}, stream)
    return run


def _new_controller() -> str:
    return uuid.uuid4().hex[:8]


def _read(text: str) -> dict[str, Any]:
    """Return what was noted; nothing if a full disk say cut it off."""
    try:
        noted = json.loads(text)
    except ValueError:
        return {}
    return noted if isinstance(noted, dict) and {"controller", "run", "process", "birth"} <= set(noted) else {}
