# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The model of what more hosts take, the page's part, and that a playbook's costs are counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from bench.provisioning.hosts import Hosts
from bench.provisioning.measure import STEPS
from bench.provisioning.model import Line, extrapolate, line
from bench.provisioning.runs import Run, run_playbook
from bench.provisioning.section import section


def test_a_line_goes_through_both_points() -> None:
    assert line({3: 16.0, 10: 30.0}) == Line(fixed=10.0, each=2.0)
    assert line({3: 16.0, 10: 30.0}).at(100) == 210


def test_noise_makes_nothing_cheaper_than_free() -> None:
    assert line({3: 9.0, 10: 8.0}) == Line(fixed=9.0, each=0.0)
    assert line({3: 2.0, 10: 30.0}).fixed == 0


@pytest.mark.parametrize("points", [{}, {3: 1.0}, {1: 1.0, 2: 2.0, 3: 3.0}])
def test_a_line_takes_two_points(points: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="two points"):
        line(points)


def run(nodes: int) -> dict[str, Any]:
    """A run with a known model: 10 s and 4 s a node; 6 s and 2 s a node of the controller; tasks 5 and 20 a node."""
    costs = Run(10 + 4 * nodes, 6 + 2 * nodes, 0.5 * nodes, 30.0, 20, 5, 5 + 20 * nodes, 0)
    return costs.figures()


def test_extrapolation_bounds_the_time_from_both_sides() -> None:
    found = extrapolate({3: run(3), 10: run(10)}, cores=4, sizes=(100,))
    assert found["measured_line_100_s"] == 410
    assert found["controller_bound_100_s"] == pytest.approx((6 + 200) / 4)
    assert found["remote_tasks_100"] == 2005
    # With many cores the one thread of the main process decides.
    assert extrapolate({3: run(3), 10: run(10)}, cores=64, sizes=(100,))["controller_bound_100_s"] == 50


def test_the_page_shows_what_was_measured() -> None:
    runs = {n: {f"{step}_{name}": value for step in STEPS for name, value in run(n).items()} for n in (3, 10)}
    text = section(runs, cores=2)
    assert "| `site.yml` on bare hosts | 3 | 22.0 s | 12.0 s | 1.5 s | 30.0 s | 20 | 0 |" in text
    assert "| `site.yml` again | 6.0 s | 2.00 s | 103 s to 7 min | 2005 | 17 min to 67 min | 20005 |" in text
    assert "extrapolates" not in section({3: runs[3]}, cores=2)
    assert "should not" not in text
    assert "should not: Load" in section({3: {**runs[3], "second_changes": "Load"}}, cores=2)


class ThisMachine(Hosts):
    """No containers: what is tested is the counting."""

    def __init__(self, folder: Path) -> None:
        super().__init__(1, folder, folder)
        self.folder.mkdir()
        variables = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        self.inventory.write_text(json.dumps({"all": {"hosts": {self.nodes[0]: variables}}}))

    def processor_seconds(self) -> float:
        return 0.0


PLAY = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.command: {argv: [/bin/true]}
    - ansible.builtin.assert: {that: "%s"}
"""


def test_a_run_is_counted(tmp_path: Path) -> None:
    hosts = ThisMachine(tmp_path)
    playbook = tmp_path / "play.yml"
    playbook.write_text(PLAY % "true")
    seen = run_playbook(hosts, str(playbook))
    assert 0 < seen.main < seen.controller
    assert seen.wall > 0
    assert (seen.changed, seen.changes) == (1, "ansible.builtin.command")


def test_a_playbook_that_fails_says_so(tmp_path: Path) -> None:
    hosts = ThisMachine(tmp_path)
    playbook = tmp_path / "play.yml"
    playbook.write_text(PLAY % "false")
    with pytest.raises(RuntimeError, match="Assertion failed"):
        run_playbook(hosts, str(playbook))


def test_a_playbook_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    """Ctrl-C reaches us alone: the playbook has a session of its own."""
    hosts = ThisMachine(tmp_path)
    playbook = tmp_path / "play.yml"
    playbook.write_text("- hosts: all\n  gather_facts: false\n  tasks: [{ansible.builtin.pause: {seconds: 60}}]\n")
    interrupt = threading.Timer(4, signal.raise_signal, [signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        run_playbook(hosts, str(playbook))
    running = subprocess.run(["pgrep", "-r", "R,S,D", "-f", str(playbook)], capture_output=True, text=True, check=False)
    assert not running.stdout, "Ansible's workers have sessions of their own"
