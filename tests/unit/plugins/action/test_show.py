# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Played as Ansible plays it: what is printed must be there to cut out, whatever callback shows results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
DOCUMENT = {"nodes": {"node1": {"note": "a: 'b' \"c\"", "lines": ["| x", "y: z"]}}}
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - llm.cluster.show:
        text: "{{ document | to_nice_json(indent=2) }}"
"""


@pytest.mark.parametrize(
    "settings", [{}, {"ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}, {"ANSIBLE_STDOUT_CALLBACK": "minimal"}]
)
def test_text_stands_there_as_it_is(tmp_path: Path, settings: dict[str, str]) -> None:
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "vars.json").write_text(json.dumps({"document": DOCUMENT}))
    done = subprocess.run(
        [str(Path(sys.executable).with_name("ansible-playbook")), "play.yml", "--check", "-e", "@vars.json"],
        cwd=tmp_path,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    document = "\n".join(lines[lines.index("{") : lines.index("}") + 1])
    assert json.loads(document) == DOCUMENT
