# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where it was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return ""
    return (done.stdout or done.stderr).strip()


def installed(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def system() -> str:
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip('"')
    return platform.system()


def machine() -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return {
        "processor": f"{os.cpu_count()} cores of {processor()}",
        "memory": f"{memory:.0f} GiB",
        "system": f"{system()}, Linux {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "ansible-core": installed("ansible-core"),
        "docker": said("docker", "--version").removeprefix("Docker version ").partition(",")[0],
        "wrk": said("wrk", "-v").split("[")[0].strip().splitlines()[0] if said("wrk", "-v") else "",
    }


def revision() -> str:
    """Of the checkout; a mark if something in it was changed."""
    changed = said("git", "status", "--porcelain", "--untracked-files=no", "--", "roles", "tests", "plugins")
    return said("git", "rev-parse", "--short", "HEAD") + ("+" if changed else "")
