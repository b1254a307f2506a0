# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the simulated engines' time relates to real time, so that a run fits into minutes. The page says so, too."""

from __future__ import annotations

CHARACTERS = 4  # of a token of a prompt
ANSWER = 8  # tokens of a trace's answer that one simulated token stands for
PREFILL = 0.02  # seconds per 1,000 characters that the cache doesn't hold: 12,500 tokens per second
GAP = 0.025  # seconds between simulated tokens: 320 of the trace's tokens per second


def service(characters: float, tokens: float, prefill: float = PREFILL, gap: float = GAP) -> float:
    """Seconds that a request of this size takes on an engine of speed 1 with nothing in its cache.

    prefill: that engine's seconds per 1,000 characters. gap: its seconds between tokens.
    """
    return prefill * characters / 1000 + gap * (tokens - 1)
