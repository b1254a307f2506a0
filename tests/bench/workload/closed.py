# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Users who ask again as soon as they have their answer: for what a system gets through at most."""

from __future__ import annotations

from collections.abc import Callable

from load.client import Ask


def users(count: int, each: int, make: Callable[[str], Ask], pause: float = 0.0) -> list[Ask]:
    """This many users with up to so many questions; stop the load after a while. Names are u0.0, u0.1 …

    pause: seconds that one waits whose question failed, before the next.
    """
    asks = []
    for user in range(count):
        before: Ask | None = None
        for turn in range(each):
            ask = make(f"u{user}.{turn}")
            ask.after, ask.pause = before, pause
            asks.append(ask)
            before = ask
    return asks
