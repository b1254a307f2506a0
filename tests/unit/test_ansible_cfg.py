# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""ansible.cfg, with which the playbooks are run from a checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_written_beside_an_inventory_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("llm_nodes: {hosts: {node1: }}\n")
    (tmp_path / "models.lock.yml").write_text("models:\n  gemma3:270m:\n    ollama: {digest: none}\n")
    (tmp_path / "result.json").write_text('{"schema": 1, "ok": true, "nodes": {"node1": {"state": "ok"}}}\n')
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-inventory", "-i", tmp_path, "--list"],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "WARNING" not in done.stderr, done.stderr
    assert json.loads(done.stdout)["all"]["children"] == ["ungrouped", "llm_nodes"]
