# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which code measures and is measured: figures of one run are of one such code."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.measure.machine import ROOT

PARTS = (
    *("tests/bench", "tests/load", "tests/simulated", "tests/balancer/harness.py"),
    *("roles/balancer/files", "roles/balancer/templates"),
)
# What these measure besides.
MORE = {
    "provisioning": ("site.yml", "playbooks", "plugins", "roles"),
    "real_engine": ("roles/llama_cpp",),
}
# What only shows figures or tests the benchmark changes none.
WITHOUT = ("tests/bench/report/", "tests/bench/test_", "__pycache__")


def files(root: Path = ROOT, names: Iterable[str] = ()) -> Iterator[Path]:
    for part in (*PARTS, *(more for name in names for more in MORE.get(name, ()))):
        place = root / part
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            name = file.relative_to(root).as_posix()
            if file.is_file() and not any(each in name for each in WITHOUT):
                yield file


def fingerprint(root: Path = ROOT, names: Iterable[str] = ()) -> str:
    """Of all that these files hold, changed and not committed ones as well. names: of the scenarios."""
    seen = hashlib.sha256()
    for file in files(root, names):
        seen.update(f"{file.relative_to(root).as_posix()}\0".encode())
        seen.update(hashlib.sha256(file.read_bytes()).digest())
    return seen.hexdigest()[:12]
