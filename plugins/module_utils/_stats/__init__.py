# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does now, read in parts at the same time. Standard library only, no Ansible import.

No part is waited for longer than it was given, and one that can't be read takes nothing away from the others: a GPU
driver or a file system that hangs is what an operator wants to be told of.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Mapping


class UnreadableError(Exception):
    """A part is there, or should be, and could not be read; the text says why."""


@dataclass(frozen=True)
class Part:
    """One part: what reads it, and the most seconds that it may take."""

    read: Callable[[], Any]
    seconds: float


def read_parts(parts: Mapping[str, Part]) -> tuple[dict[str, Any], dict[str, str]]:
    """Read all parts at once; return what was read, and the reasons for what was not, by the parts' names.

    The threads are daemons: one that hangs in the kernel doesn't keep the program from ending.
    """
    values: dict[str, Any] = {}
    reasons: dict[str, str] = {}

    def run(name: str, part: Part) -> None:
        try:
            values[name] = part.read()
        except Exception as error:  # whatever it is, the other parts are wanted
            reasons[name] = str(error) or type(error).__name__

    began = time.monotonic()
    threads = {name: threading.Thread(target=run, args=(name, part), daemon=True) for name, part in parts.items()}
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(began + parts[name].seconds - time.monotonic(), 0))
    # Copies: a thread that was given up may still write into the others.
    read, failed = dict(values), dict(reasons)
    for name, part in parts.items():
        if name not in read and name not in failed:
            failed[name] = f"no answer within {part.seconds:g} s"
    return read, failed
