# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Parts that hang or fail take nothing away from the others."""

from __future__ import annotations

import time

from ansible_collections.llm.cluster.plugins.module_utils._stats import Part, UnreadableError, read_parts


def fail() -> None:
    raise UnreadableError("no driver")


def test_all_parts_are_read_at_the_same_time() -> None:
    began = time.monotonic()
    read, failed = read_parts({str(number): Part(lambda: time.sleep(0.2), 5) for number in range(10)})
    assert time.monotonic() - began < 1
    assert (len(read), failed) == (10, {})


def test_what_fails_or_hangs_is_told_and_the_rest_is_there() -> None:
    began = time.monotonic()
    read, failed = read_parts(
        {
            "hangs": Part(lambda: time.sleep(30), 0.3),
            "hangs too": Part(lambda: time.sleep(30), 0.3),
            "fails": Part(fail, 5),
            "breaks": Part(lambda: int("x"), 5),
            "reads": Part(lambda: None, 5),
        }
    )
    assert time.monotonic() - began < 2, "two that hang are waited for at the same time"
    assert read == {"reads": None}
    assert failed == {
        "hangs": "no answer within 0.3 s",
        "hangs too": "no answer within 0.3 s",
        "fails": "no driver",
        "breaks": "invalid literal for int() with base 10: 'x'",
    }
