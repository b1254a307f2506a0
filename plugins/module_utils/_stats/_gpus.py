# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Graphics processors: NVIDIA's as nvidia-smi tells them, AMD's as the kernel does."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.llm.cluster.plugins.module_utils._stats import UnreadableError

MIB = 1 << 20
# One with less memory of its own is part of a processor.
LEAST_AMD = 2 << 30


@dataclass(frozen=True)
class Gpu:
    """One graphics processor: bytes of its memory and how busy it is, None for what it doesn't tell."""

    vendor: str
    name: str
    memory_used: int | None
    memory_total: int | None
    utilization_percent: float | None


def ask_nvidia(command: str, fields: tuple[str, ...], seconds: float) -> list[list[str]]:
    """Return what nvidia-smi says of these fields of each GPU; a driver that hangs is given up."""
    try:
        done = subprocess.run(
            [command, "--query-gpu=" + ",".join(fields), "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise UnreadableError(f"nvidia-smi: timed out after {seconds:g} s") from error
    except OSError as error:
        raise UnreadableError(f"nvidia-smi: {error}") from error
    if "No devices were found" in done.stdout:
        return []
    if done.returncode != 0:
        raise UnreadableError(f"nvidia-smi: {' '.join(done.stdout.split())}")
    return [[cell.strip() for cell in line.split(",", len(fields) - 1)] for line in done.stdout.splitlines()]


def number(text: str) -> float | None:
    """Return a number; None where the driver says that there is none, such as [N/A] or [Not Supported]."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _bytes(mebibytes: str) -> int | None:
    size = number(mebibytes)
    return None if size is None else int(size * MIB)


def nvidia_gpus(command: str, seconds: float) -> list[Gpu]:
    """Return NVIDIA's GPUs."""
    rows = ask_nvidia(command, ("memory.used", "memory.total", "utilization.gpu", "name"), seconds)
    return [
        Gpu("nvidia", name, _bytes(used), _bytes(total), number(utilization))
        for used, total, utilization, name in (row for row in rows if len(row) == 4)
    ]


def _text(file: Path) -> str:
    """Return what a file of the kernel says; nothing where the driver doesn't have it or is asleep."""
    try:
        return file.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def amd_gpus(drm: Path) -> list[Gpu]:
    """Return AMD's GPUs, from the folder /sys/class/drm."""
    gpus = []
    for total in sorted(drm.glob("card[0-9]*/device/mem_info_vram_total")):
        device, size = total.parent, int(total.read_text(encoding="ascii"))
        if size < LEAST_AMD:
            continue
        used = number(_text(device / "mem_info_vram_used"))
        name = _text(device / "product_name") or "AMD " + (_text(device / "device") or "GPU")
        busy = number(_text(device / "gpu_busy_percent"))
        gpus.append(Gpu("amd", name, None if used is None else int(used), size, busy))
    return gpus


def read_gpus(nvidia_smi: str | None, seconds: float, drm: Path = Path("/sys/class/drm")) -> list[Gpu]:
    """Return NVIDIA's GPUs, or where there are none AMD's."""
    return (nvidia_gpus(nvidia_smi, seconds) if nvidia_smi else []) or amd_gpus(drm)
