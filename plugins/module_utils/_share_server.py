# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Serves a node's model files to the other nodes while a distribution runs. Module model_share starts it on the node.

A program of its own, with nothing but the standard library.
"""

from __future__ import annotations

import threading
import time


class Bucket:
    """Bounds how many bytes pass in a second; 0 for no bound. Several threads may share one."""

    # Seconds' worth that may pass at once after a pause.
    BURST = 0.1

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._free_at = time.monotonic()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Wait until so many bytes may pass."""
        if not self.rate or not count:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - self.BURST) + count / self.rate
            pause = self._free_at - now
        if pause > 0:
            time.sleep(pause)
