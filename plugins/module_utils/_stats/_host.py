# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The host under the engine: processors, memory, disk, address."""

from __future__ import annotations

import os
import re
import socket
import time
from pathlib import Path
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils._stats import UnreadableError

CPU_SAMPLE = 0.25
# The columns idle and iowait of /proc/stat. guest and guest_nice (from column 8 on) are in user and nice already.
IDLE = (3, 4)
COUNTED = 8


def cpu_times(text: str) -> tuple[int, int]:
    """Return busy and all ticks of all processors together, from the text of /proc/stat."""
    found = re.search(r"^cpu\s+([\d ]+)$", text, re.MULTILINE)
    ticks = [int(column) for column in found.group(1).split()[:COUNTED]] if found else []
    if len(ticks) <= max(IDLE):
        raise UnreadableError("/proc/stat doesn't say how busy the processors are")
    return sum(ticks) - sum(ticks[column] for column in IDLE), sum(ticks)


def load_percent(before: tuple[int, int], after: tuple[int, int], own_ticks: float = 0.0) -> float:
    """Return how busy the processors were between two moments, without what looking at it took itself."""
    busy, passed = after[0] - before[0] - own_ticks, after[1] - before[1]
    return round(100 * min(max(busy / passed, 0.0), 1.0), 1) if passed > 0 else 0.0


def own_ticks() -> float:
    """Return the ticks that this process has used."""
    times = os.times()
    return (times.user + times.system) * os.sysconf("SC_CLK_TCK")


def read_cpu(root: Path = Path("/"), seconds: float = CPU_SAMPLE) -> dict[str, Any]:
    """Return the load over a moment, and the number of processors."""
    stat = root / "proc/stat"
    before, own_before = cpu_times(stat.read_text(encoding="ascii")), own_ticks()
    time.sleep(seconds)
    after, own_after = cpu_times(stat.read_text(encoding="ascii")), own_ticks()
    return {"load_percent": load_percent(before, after, own_after - own_before), "cpus": os.cpu_count() or 0}


def memory_of(meminfo: str) -> dict[str, int]:
    """Return the bytes of memory, and those that are not to be had, from the text of /proc/meminfo."""
    found = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}
    if "MemTotal" not in found or "MemAvailable" not in found:
        raise UnreadableError("/proc/meminfo doesn't say how much memory there is")
    return {"used": found["MemTotal"] - found["MemAvailable"], "total": found["MemTotal"]}


def read_memory(root: Path = Path("/")) -> dict[str, int]:
    """Return the bytes of memory that are used, and of all."""
    return memory_of((root / "proc/meminfo").read_text(encoding="ascii"))


def read_disk(path: str) -> dict[str, Any]:
    """Return the bytes of the filesystem that a folder is on, or will be on once it is made."""
    there = Path(path)
    while not there.exists() and there != there.parent:
        there = there.parent
    found = os.statvfs(there)
    return {"path": path, "free": found.f_bavail * found.f_frsize, "total": found.f_blocks * found.f_frsize}


def _sends_from(family: socket.AddressFamily, outside: str) -> str:
    """Return the address that packets to the outside would come from. None is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((outside, 9))
        return str(sock.getsockname()[0])


def is_own(address: str) -> bool:
    """Whether the host has this address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((address, 0))
    except OSError:
        return False
    return True


def own_address(wanted: str | None) -> str:
    """Return the wanted address if the host has it, else that of its default route, as llm_address does by default."""
    if wanted and is_own(wanted):
        return wanted
    # Addresses for documentation: nobody has them, so the default route leads there.
    for family, outside in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            return _sends_from(family, outside)
        except OSError:
            continue
    return wanted or "127.0.0.1"
