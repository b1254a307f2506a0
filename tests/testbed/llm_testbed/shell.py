# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running commands, waiting, doing things side by side, and the one kind of error that users see."""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

# Set on Ctrl-C, so that waiting threads stop at once instead of at their deadline.
_interrupted = threading.Event()


class TestbedError(Exception):
    """Something is wrong that the user can act on; its text says what, and what to do next."""

    __test__ = False  # the name begins with Test, which pytest would take for a test class


def attempt(
    command: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it said, whether it worked or not.

    `timeout` is in seconds; a command that takes longer is killed and counts as failed (return code 124).
    A missing program counts as failed too (return code 127).
    """
    try:
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=env,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: not found")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"no answer within {timeout:g} s")
    return subprocess.CompletedProcess(
        command, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


def run(
    command: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Run a command that has to work and return its standard output without the surrounding white space.

    Raises TestbedError with the last lines that the command printed.
    """
    done = attempt(command, stdin=stdin, env=env, timeout=timeout)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "it printed nothing").splitlines()
        raise TestbedError(
            f"`{shlex.join(command)}` failed (exit code {done.returncode}):\n  " + "\n  ".join(said[-15:])
        )
    return done.stdout.strip()


def wait_until(ready: Callable[[], bool], seconds: float, every: float = 0.25) -> bool:
    """Ask `ready` every `every` seconds; true as soon as it is, false after `seconds` seconds."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() >= deadline or _interrupted.wait(every):
            return False
    return True


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Call `function` for all items at the same time; the results keep the items' order.

    Raises the first item's error once all calls have ended.
    """
    with ThreadPoolExecutor(max_workers=16) as pool:
        try:
            return list(pool.map(function, items))
        except KeyboardInterrupt:
            _interrupted.set()
            raise
