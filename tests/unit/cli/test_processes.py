# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes of sessions of their own, as Ansible's workers are, are found and ended."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from llm_cluster_ops import _processes

# A worker in a session of its own, with a program below it; both refuse to end if they are to.
TREE = """
import os, signal, subprocess, sys
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not os.fork():
    os.setsid()
    child = subprocess.Popen(["sleep", "60"])
    open(sys.argv[1], "w").write("ready")
    child.wait()
signal.pause()
"""


@pytest.mark.parametrize("stubborn", [False, True])
def test_all_below_a_process_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubborn: bool) -> None:
    monkeypatch.setattr(_processes, "PATIENCE", 1.0)
    ready = tmp_path / "ready"
    root = subprocess.Popen([sys.executable, "-c", TREE.format(stubborn=stubborn), str(ready)])
    deadline = time.monotonic() + 20
    while not ready.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    found = _processes.below(root.pid)
    assert len(found) == 3
    assert len({group for _process, group in found}) == 2
    # Without its parent nothing leads to the worker any more.
    root.kill()
    root.wait()
    _processes.end(found)
    assert not found & _processes.all_processes().keys()


def test_a_process_that_is_gone_has_none_below() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert _processes.below(gone.pid) == set()
    _processes.end({(gone.pid, gone.pid)})
