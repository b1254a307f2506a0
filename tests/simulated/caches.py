# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated engine remembers of earlier prompts, in blocks of characters.

A request begins with what its prompt finds (``begin``) and gives its place back when it has ended (``end``).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Protocol

BLOCK = 256  # characters
SIMILAR = 0.1  # of a prompt a slot must hold, so that llama.cpp prefers it (--slot-prompt-similarity)


class Cache(Protocol):
    def begin(self, text: str) -> tuple[int, int]:
        """Return a place, and how many leading characters were held; all whole blocks are, afterwards."""

    def end(self, place: int) -> None:
        """The request that had this place is done."""


class SharedCache:
    """One cache for all slots: the least recently used blocks of conversations go first.

    So it is with llama.cpp, which keeps in memory what its slots held before (--cache-ram). A block is known by the
    hash of all text up to its end.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[bytes, None] = OrderedDict()

    def begin(self, text: str) -> tuple[int, int]:
        if not self.capacity:
            return 0, 0
        chain = hashlib.blake2b(digest_size=16)
        held, miss = 0, False
        keys = []
        for start in range(0, len(text) - BLOCK + 1, BLOCK):
            chain.update(text[start : start + BLOCK].encode())
            key = chain.digest()
            keys.append(key)
            miss = miss or key not in self.blocks
            held += 0 if miss else BLOCK
        for key in reversed(keys):  # the deepest is the oldest: a conversation is forgotten from its end
            self.blocks[key] = None
            self.blocks.move_to_end(key)
        while len(self.blocks) > self.capacity:
            self.blocks.popitem(last=False)
        return 0, held

    def end(self, place: int) -> None:
        """All places are the same here."""


class SlotCache:
    """Each slot holds the last prompt that it worked on, up to its share of the capacity, and nothing else.

    A request takes the free slot that holds the longest beginning of it; of equals the first. llama.cpp does so only if
    that is more than ``SIMILAR`` of the prompt, and else takes the slot that was taken longest ago; Ollama (without
    OLLAMA_MULTIUSER_CACHE) always does.
    """

    def __init__(self, capacity: int, slots: int, similar: float) -> None:
        """similar: the share of a prompt that a slot must hold to be preferred; below 0: any will do."""
        self.share = capacity // slots * BLOCK  # characters
        self.similar = similar
        self.held = [""] * slots
        self.taken = [0] * slots  # when, by count
        self.free = set(range(slots))
        self.count = 0

    def begin(self, text: str) -> tuple[int, int]:
        if not self.free:  # the engine was given more slots while it ran
            self.free.add(len(self.held))
            self.held.append("")
            self.taken.append(0)
        found = {place: common(self.held[place], text) for place in sorted(self.free)}
        place = max(found, key=lambda each: found[each])
        if found[place] <= self.similar * len(text):
            place = min(found, key=lambda each: self.taken[each])
        self.count += 1
        self.free.remove(place)
        self.taken[place] = self.count
        self.held[place] = text[: self.share]
        return place, found[place]

    def end(self, place: int) -> None:
        self.free.add(place)


def common(one: str, other: str) -> int:
    """Characters of the whole blocks that both begin with."""
    most = min(len(one), len(other)) // BLOCK * BLOCK
    return next((at for at in range(0, most, BLOCK) if one[at : at + BLOCK] != other[at : at + BLOCK]), most)
