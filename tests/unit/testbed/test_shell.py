# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running, waiting, locking."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

import pytest
from llm_testbed.engine import parse_pid, process_start
from llm_testbed.lock import locked
from llm_testbed.shell import TestbedError, attempt, run, side_by_side, wait_until


def test_failure_says_command_and_last_words() -> None:
    with pytest.raises(TestbedError, match=r"(?s)`sh -c .*exit code 3.*the reason"):
        run(["sh", "-c", "echo the reason >&2; exit 3"])


@pytest.mark.parametrize(("command", "code"), [(["no-such-program-here"], 127), (["sleep", "5"], 124), (["true"], 0)])
def test_attempt_never_raises(command: list[str], code: int) -> None:
    assert attempt(command, timeout=0.5).returncode == code


def test_wait_until_gives_up() -> None:
    start = time.monotonic()
    assert not wait_until(lambda: False, seconds=0.2, every=0.05)
    assert time.monotonic() - start < 2


def test_side_by_side_runs_at_once_and_keeps_the_order() -> None:
    together = threading.Barrier(3, timeout=5)

    def meet(number: int) -> int:
        together.wait()
        return number * 10

    assert side_by_side(meet, [1, 2, 3]) == [10, 20, 30]


def test_lock_is_exclusive_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    order: list[str] = []

    def hold(name: str) -> None:
        # Coming back at once is the hard case: the file is new then, while others still wait for the removed one.
        for _ in range(5):
            with locked("bed-x"):
                order.append(f"{name} in")
                time.sleep(0.01)
                order.append(f"{name} out")

    side_by_side(hold, ["a", "b", "c", "d"])
    assert [entry.split()[1] for entry in order] == ["in", "out"] * 20
    assert not list(tmp_path.iterdir())


def test_process_start_tells_processes_apart() -> None:
    assert process_start(os.getpid()) is not None
    assert process_start(2**22 + 1) is None


@pytest.mark.parametrize(("text", "expected"), [("123\n", 123), ("", None), ("x", None)])
def test_parse_pid(text: str, expected: int | None) -> None:
    assert parse_pid(text) == expected
