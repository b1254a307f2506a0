# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What module model does on a node: fetch a file from peers and origin, then move it into the store.

Run by path with a JSON file. It prints "ready", begins at a line on its input, and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from ansible_collections.llm.cluster.plugins.module_utils._fetch import FetchError, HttpOptions
from ansible_collections.llm.cluster.plugins.module_utils._transfer import Source, fetch_blob, peer_sources

asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
sources = peer_sources(asked["peers"], asked["digest"], asked["token"], asked["patience"])
if asked["origin"]:
    sources.append(Source(asked["origin"]))
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
answer = {"ok": True, "error": "", "kind": ""}
try:
    fetched = fetch_blob(
        sources, asked["part"], asked["digest"], HttpOptions(timeout=20, pause=0.2), max_rate=asked["max_rate"]
    )
    answer.update(size=fetched.size, resumed=fetched.resumed)
    Path(asked["part"]).rename(asked["blob"])
except FetchError as error:
    answer.update(ok=False, error=str(error), kind=type(error).__name__)
print(json.dumps({**answer, "seconds": time.monotonic() - began}), flush=True)
