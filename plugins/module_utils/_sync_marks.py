# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How syncs on several controllers keep out of each other's way: a drain mark says whose turn it is, and until when.

``sync RUN until TIME: why``, where RUN is ``TIME-CONTROLLER`` and TIME is like ``20261123T122508Z``. A mark without
``until`` belongs to no sync that is at work. Of one controller's syncs only one is at work, see _sync_runs, so what
another one of it left behind is free at once; what another controller left behind is free after that time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

OWNER = "sync"  # of the drain marks

TIME = "%Y%m%dT%H%M%SZ"  # in UTC, so that later ones sort behind earlier ones
TURN = re.compile(r"sync (?P<run>\S+-(?P<controller>\S+)) until (?P<until>\d{8}T\d{6}Z): ")

Info = Mapping[str, Any]  # what module balancer_info says


def stamp(seconds: float) -> str:
    """Return a time, given in seconds since the epoch, as marks have it."""
    return time.strftime(TIME, time.gmtime(seconds))


def turn(run: str, until: float) -> str:
    """Return the beginning of the mark of a run that is at work on a node until then (seconds since the epoch)."""
    return f"sync {run} until {stamp(until)}: "


def controller(run: str) -> str:
    """Return which controller a run is on."""
    return run.rpartition("-")[2]


def others(infos: Iterable[Info], run: str, now: float) -> list[str]:
    """Return where syncs of other controllers are at work, a sentence each."""
    found: dict[str, str] = {}
    for info in infos:
        for mark in info.get("drains") or []:
            seen = TURN.match(mark["reason"]) if mark["owner"] == OWNER else None
            if seen and seen["controller"] != controller(run) and seen["until"] > stamp(now):
                found[mark["name"]] = (
                    f"Sync {seen['run']}, of another controller, is at work on {mark['name']}, until {seen['until']} "
                    "at the latest. Wait until it has ended. If you know that it was stopped, run sync.yml again with "
                    "-e sync_take_over=true."
                )
    return [found[name] for name in sorted(found)]


def holds(infos: Iterable[Info], node: str, run: str) -> bool:
    """Whether a run's own mark is on the node at all these balancers."""
    return all(
        any(
            mark["owner"] == OWNER and mark["name"] == node and mark["reason"].startswith(f"sync {run} ")
            for mark in info.get("drains") or []
        )
        for info in infos
    )
