# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wait until the engine works on no request, so that stopping it cuts nobody off.

The unit calls it before it sends the stop signal. It never fails: an engine that does not answer has nothing to lose.
Usage: llama-wait-idle SECONDS, with LLAMA_ARG_HOST and LLAMA_ARG_PORT in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request

PAUSE = 0.25
TIMEOUT = 2.0


def is_busy(slots: object) -> bool:
    """Say whether the answer of /slots names a slot at work."""
    return isinstance(slots, list) and any(isinstance(slot, dict) and slot.get("is_processing") for slot in slots)


def read_slots(url: str) -> object:
    """Return the decoded answer of /slots."""
    # The engine is on this host: a proxy from the environment must not come between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=TIMEOUT) as answer:
        return json.load(answer)


def wait(url: str, seconds: float) -> bool:
    """Return whether the engine is idle, or gone, before the time is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if not is_busy(read_slots(url)):
                return True
        except TimeoutError:
            pass  # busy enough not to answer
        except (OSError, ValueError) as error:
            if not isinstance(getattr(error, "reason", None), TimeoutError):
                return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE)


def main() -> None:
    """Wait for the engine of this unit."""
    host = os.environ.get("LLAMA_ARG_HOST", "127.0.0.1")
    url = "http://{}:{}/slots".format(f"[{host}]" if ":" in host else host, os.environ.get("LLAMA_ARG_PORT", "8080"))
    if not wait(url, float(sys.argv[1])):
        print(f"still busy after {sys.argv[1]} s: stopping all the same", file=sys.stderr)


if __name__ == "__main__":
    main()
