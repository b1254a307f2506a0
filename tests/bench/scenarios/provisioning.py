# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What provisioning takes. No system is started: the hosts are containers, and what is measured is Ansible.

The sizes are 3 and 10 nodes; what 100 and 1,000 would take is worked out from them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.point import Figures, Point, Row
from bench.provisioning.hosts import ROOT
from bench.provisioning.measure import measure
from bench.provisioning.section import section as section_of
from bench.scenarios import MissingError

TITLE = "Provisioning"
SIZES = (3, 10)
# Beds are found again by their folder, so that what an interrupted run left is removed by the next one.
BEDS = ROOT / ".build" / "bench" / "provisioning"


def points(full: bool, systems: list[str]) -> list[Point]:
    """Both sizes in both forms, for one alone says nothing about more."""
    del full, systems
    return [Point.of("provisioning", "direct", nodes=nodes) for nodes in SIZES]


def run(point: Point, system: object, folder: Path) -> Figures:
    """Measure one size: all steps with fresh hosts."""
    del system, folder
    for program in ("docker", "ssh", "ansible-playbook"):
        if not shutil.which(program):
            raise MissingError(f"{program} is missing: the hosts are containers that Ansible reaches over SSH")
    return measure(int(point.get("nodes")), BEDS)


def section(rows: list[Row]) -> str:
    return section_of({int(row.get("nodes")): row.figures for row in rows}, rows[0].get("cores"))
