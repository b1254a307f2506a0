# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saying how far a long fetch got, while it runs: ``PARTIAL/progress.json``.

    {"model": "gemma3:270m", "bytes": 104857600, "total": 291554930, "pid": 4711}

It is gone when nothing is fetched. A run that was killed leaves it behind: its pid tells.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from typing import Any, Callable

from ansible_collections.llm.cluster.plugins.module_utils._engines import _files

# Written at most so often, in seconds.
PERIOD = 1.0


class Progress:
    """Writes the file as long as its block runs; ``have`` tells how many bytes of ``total`` are there."""

    def __init__(self, partial_dir: str, model: str, total: int | None, have: Callable[[], int]) -> None:
        self.path = os.path.join(partial_dir, "progress.json")
        self._fixed = {"model": model, "total": total, "pid": os.getpid()}
        self._have = have
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._end.set()
        self._thread.join()
        _files.remove(self.path)

    def _run(self) -> None:
        while not self._end.is_set():
            # Nobody needs it so much that a fetch should fail for it.
            with contextlib.suppress(OSError):
                new = self.path + ".new"
                with open(new, "w", encoding="utf-8") as stream:
                    json.dump({**self._fixed, "bytes": self._have()}, stream)
                os.replace(new, self.path)
            self._end.wait(PERIOD)
