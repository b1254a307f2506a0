# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, said so that one knows what to do; with the exit code that the command line gives it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._runner import Run

DONE, FAILED, USAGE, DRIFT, UNREACHABLE = range(5)


class ClusterError(Exception):
    """Something that the operator can mend; the message says how."""

    exit_code = FAILED


class UsageError(ClusterError):
    """What was asked for makes no sense here; nothing was changed."""

    exit_code = USAGE


class RunFailedError(ClusterError):
    """A playbook did not end well. ``run`` says which host failed where, and why."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.summary())
        self.run = run
        self.exit_code = run.exit_code

    def add(self, standing: str) -> RunFailedError:
        """Say how things stand after work of several playbooks, and how to go on."""
        self.args = (f"{self.args[0]}\n{standing}",)
        return self


def near(name: str, known: Iterable[str], what: str) -> str:
    """Return a sentence with the names that somebody may have meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"The {what}s are {', '.join(known)}." if known else f"There is no {what} yet."
