# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Played as Ansible plays it: which process is noted shows only there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[4]
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - llm.cluster.sync_run:
        lock_file: models.lock.yml
      register: begun
    - llm.cluster.show:
        text: "{{ begun.run }}"
    - wait_for:
        path: end
        sleep: 1
"""


def play(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("ansible-playbook")), "play.yml", *arguments],
        cwd=folder,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", "HOME": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_one_at_a_time_until_it_is_killed(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    first = play(tmp_path)
    try:
        deadline = time.monotonic() + 60
        while not [note for note in tmp_path.glob(".cache/llm-cluster/syncs/*") if note.stat().st_size]:
            assert time.monotonic() < deadline, "the first does not begin"
            time.sleep(0.1)
        second = play(tmp_path)
        said = " ".join(second.communicate(timeout=60)[0].split())
        assert second.returncode != 0
        assert "Another sync is at work on this controller: 20" in said, said
        assert f"process {first.pid}." in said
    finally:
        os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    (tmp_path / "end").touch()
    third = play(tmp_path)
    said = third.communicate(timeout=60)[0]
    assert third.returncode == 0, said
