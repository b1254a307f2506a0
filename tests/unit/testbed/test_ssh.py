# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files for ssh."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from llm_testbed.ssh import remove_state, render_known_hosts, render_ssh_config, write_whole

ADDRESSES = {"node1": "10.173.0.11", "balancer": "10.173.0.14"}


def test_known_hosts_ties_names_and_addresses_to_keys() -> None:
    keys = {"node1": ["ssh-ed25519 AAAA root@node1", "ssh-rsa BBBB root@node1"], "balancer": ["ssh-ed25519 CCCC x"]}
    assert render_known_hosts(ADDRESSES, keys).splitlines() == [
        "node1,10.173.0.11 ssh-ed25519 AAAA",
        "node1,10.173.0.11 ssh-rsa BBBB",
        "balancer,10.173.0.14 ssh-ed25519 CCCC",
    ]


def test_ssh_itself_reads_the_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "state of demo"
    folder.mkdir()
    config = folder / "ssh_config"
    config.write_text(render_ssh_config(folder, ADDRESSES))
    output = subprocess.run(
        ["ssh", "-G", "-F", str(config), "node1"], capture_output=True, text=True, check=True
    ).stdout
    lines = output.splitlines()
    assert "hostname 10.173.0.11" in lines
    assert "user root" in lines
    assert f"identityfile {folder / 'id_ed25519'}" in lines
    assert f"userknownhostsfile {folder / 'known_hosts'}" in lines
    assert {"stricthostkeychecking true", "stricthostkeychecking yes"} & set(lines)


@pytest.mark.parametrize("foreign", [[], ["notes.txt"]])
def test_only_own_files_are_removed(tmp_path: Path, foreign: list[str]) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    for name in ("id_ed25519", "ssh_config", "hosts.json"):
        write_whole(folder / name, "x")
    for name in foreign:
        (folder / name).write_text("x")
    assert remove_state(folder) == foreign
    assert folder.is_dir() is bool(foreign)


def test_removing_nothing_is_harmless(tmp_path: Path) -> None:
    assert remove_state(tmp_path / "never-made") == []
