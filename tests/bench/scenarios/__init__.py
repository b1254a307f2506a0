# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured, a module each, found by its name. A scenario has:

    TITLE: str                                         its heading on the page
    points(full: bool, systems: list[str]) -> list[Point]
                                                       what the short or the full form measures, for those systems that
                                                       it is meant for; plan.py puts the systems in turns
    run(point, system, folder) -> Figures              measures one; starts and stops the engines and the system, which
                                                       it gets new and not started; may write files to the folder
    section(rows: list[Row]) -> str                    Markdown below the heading: how it was measured, a table, plots
                                                       by name (report/plots.py); rows may be few, never none

A scenario that needs something that is missing here raises MissingError in run, with a line that says what to install.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from bench.systems import REGISTRY


class MissingError(Exception):
    """It cannot be measured on this machine; the text says why and what to install."""


# The order on the page and in a run; others that are there follow by name.
ORDER = (
    *("client", "overhead", "streams", "sweep", "multi_turn", "no_reuse", "scale_out", "waiting", "many_peers"),
    *("failover", "real_engine"),
)


def balancers(systems: list[str]) -> list[str]:
    """All but direct and what is made for caches, for what needs several peers without any."""
    return [name for name in keepers(systems) if not REGISTRY[name].for_caches]


def keepers(systems: list[str]) -> list[str]:
    """All but direct, for what needs several peers with caches."""
    return [name for name in systems if name != "direct"]


def names() -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(__path__)}
    return [name for name in ORDER if name in found] + sorted(found.difference(ORDER))


def load(name: str) -> ModuleType:
    return importlib.import_module(f"bench.scenarios.{name}")
