# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""wrk, for rates that a client in Python cannot reach."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from pathlib import Path

SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"m","messages":[{"role":"user","content":"' .. string.rep("a ", SIZE / 2) .. '"}]}'
done = function(summary, latency)
    local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.timeout
    io.write(string.format("FIGURES %f %f %f %d %d\\n", summary.requests / summary.duration * 1e6,
        latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, bad, summary.requests))
end
"""


@dataclasses.dataclass(frozen=True)
class Measured:
    rate: float  # requests per second
    half: float  # p50 of the latency, ms
    most: float  # p99 of the latency, ms
    bad: int
    requests: int


def missing() -> str:
    return "" if shutil.which("wrk") else "wrk is not installed: apt install wrk"


def warm_up(place: tuple[str, int], folder: Path, tries: int = 5) -> None:
    """Seconds that are not measured: some load what they need with their first requests only.

    :raises RuntimeError: when in none of them all requests were answered
    """
    for _ in range(tries):
        seen = wrk(place, folder, 1024, 1, 1)
        if seen.requests and not seen.bad:
            return
    raise RuntimeError(f"nothing answers as it should: {seen.bad} of {seen.requests} requests failed")


def wrk(place: tuple[str, int], folder: Path, size: int, connections: int, seconds: float) -> Measured:
    """Ask chat completions of this many bytes at (address, port), as fast as the answers come."""
    script = folder / f"{size}.lua"
    script.write_text(SCRIPT.replace("SIZE", str(size)))
    command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{max(1, round(seconds))}s"]
    command += ["--latency", "--timeout", "20s", "--script", str(script)]
    command += [f"http://{place[0]}:{place[1]}/v1/chat/completions"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"FIGURES (\S+) (\S+) (\S+) (\d+) (\d+)", output)
    assert found, output
    return Measured(float(found[1]), float(found[2]), float(found[3]), int(found[4]), int(found[5]))
