# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where requests wait in Ollama before they wait for a slot: until their model is in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class BusyError(Exception):
    """No more requests may wait; the text is Ollama's."""

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


class Loading:
    """Ollama with one model in memory at a time (OLLAMA_MAX_LOADED_MODELS=1).

    Requests are looked at one after the other, in the order in which they came. One for the model in memory goes on at
    once. Before one of another model all that went on must have ended, then its own is loaded; meanwhile all that came
    later wait behind it, whatever they are for, and no more than OLLAMA_MAX_QUEUE of them.
    """

    def __init__(self) -> None:
        self.model: str | None = None  # in memory
        self.users = 0  # requests that went on and have not ended
        self.pending = 0  # requests behind the one that is looked at
        self.turn = asyncio.Lock()  # handed on in the order in which it was asked for
        self.idle = asyncio.Event()
        self.idle.set()

    @contextlib.asynccontextmanager
    async def loaded(self, model: str, most: int, seconds: float) -> AsyncIterator[None]:
        """The model is in memory inside of this.

        most: requests that may be pending, 1 at least; seconds: that loading takes

        :raises BusyError: when as many are pending already
        """
        if self.pending >= most:
            raise BusyError
        self.pending += 1
        try:
            await self.turn.acquire()
        finally:
            self.pending -= 1
        try:
            if model != self.model:
                await self.idle.wait()
                self.model = None
                await asyncio.sleep(seconds)
                self.model = model
            self.users += 1
            self.idle.clear()
        finally:
            self.turn.release()
        try:
            yield
        finally:
            self.users -= 1
            if not self.users:
                self.idle.set()
