# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A fault of older LuaJITs, as Debian 12's: what runs on a small stack may lose a value."""

from __future__ import annotations

import http.client
import json
import re
import shutil
from pathlib import Path
from typing import Any

from balancer.harness import MakeBalancer, free_port

PROBE = Path(__file__).parents[1] / "lua" / "stack_probe.lua"


def ask(own_balancer: MakeBalancer) -> Any:
    """What the probe found, in a worker of a balancer."""
    balancer, port = own_balancer(workers=1), free_port()
    shutil.copy(PROBE, balancer.dir)  # where nginx's user may read it
    location = f"location / {{ content_by_lua_file {balancer.dir}/{PROBE.name}; }}"
    (balancer.dir / "conf.d" / "probe.conf").write_text(f"server {{ listen 127.0.0.1:{port}; {location} }}\n")
    balancer.reload()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    return json.loads(connection.getresponse().read())


def test_what_has_room_loses_nothing(own_balancer: MakeBalancer) -> None:
    found = ask(own_balancer)
    assert (found["roomy"], found["threads"]) == (0, 0), found
    if not re.match(r"LuaJIT 2\.1\.\d{4}", found["version"]):
        assert found["bare"] > 0, f"the probe does not see the fault: {found}"
