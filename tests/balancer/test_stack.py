# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fault of older LuaJITs, as Debian 12's: what runs on a small stack may lose a value."""

from __future__ import annotations

import re
from pathlib import Path

from balancer.harness import MakeBalancer

PROBE = Path(__file__).parents[1] / "lua" / "stack_probe.lua"


def test_what_has_room_loses_nothing(own_balancer: MakeBalancer) -> None:
    found = own_balancer(workers=1).probe(PROBE)
    assert (found["roomy"], found["threads"]) == (0, 0), found
    if not re.match(r"LuaJIT 2\.1\.\d{4}", found["version"]):
        assert found["bare"] > 0, f"the probe does not see the fault: {found}"
