# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Virtual environments of rivals from PyPI: below .build/bench, made on first use, never part of the project's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HOME = ROOT / ".build" / "bench"
PINS = ROOT / "tests" / "bench" / "rivals.txt"
SECONDS = 900  # that an installation may take

# What a rival is started without: no proxy stands between it and the peers, and Python finds nothing of the caller's.
BESIDE = ("http_proxy", "https_proxy", "all_proxy", "pythonpath", "virtual_env")


def variables(**more: str) -> dict[str, str]:
    """Environment variables for a rival's program."""
    return {name: value for name, value in os.environ.items() if name.lower() not in BESIDE} | more


class Environment:
    """One virtual environment with one requirement, all versions from rivals.txt."""

    def __init__(self, name: str, requirement: str, home: Path = HOME) -> None:
        self.folder = home / name
        self.requirement = requirement
        self.stamp = self.folder / "installed"

    def path(self, program: str) -> str:
        return str(self.folder / "bin" / program)

    def wanted(self) -> str:
        """What the stamp says once all is installed; a changed pin makes the environment anew."""
        return f"{self.requirement}\n{PINS.read_text()}"

    def ready(self) -> bool:
        return self.stamp.exists() and self.stamp.read_text() == self.wanted()

    def make(self) -> str:
        """Install it if it is not there; return one line that says why it cannot be, or nothing."""
        if self.ready():
            return ""
        shutil.rmtree(self.folder, ignore_errors=True)
        print(f"Installing {self.requirement} into {self.folder}", flush=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]
        steps = [
            [sys.executable, "-m", "venv", str(self.folder)],
            [self.path("python"), *install, "--constraint", str(PINS), self.requirement],
        ]
        for step in steps:
            try:
                # pip itself needs the proxy, if there is one.
                done = subprocess.run(step, capture_output=True, text=True, timeout=SECONDS, check=False)
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"{self.requirement} cannot be installed: {error}"
            if done.returncode != 0:
                lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                return f"{self.requirement} cannot be installed: {lines[-1] if lines else 'pip failed'}"
        self.stamp.write_text(self.wanted())
        return ""

    def installed_version(self, package: str) -> str:
        code = f"import importlib.metadata as m; print(m.version({package!r}))"
        return subprocess.run(
            [self.path("python"), "-c", code], capture_output=True, text=True, check=True, env=variables()
        ).stdout.strip()
