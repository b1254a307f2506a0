# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of a bed of their own, on which packages, llm and the engine's release are installed already.

Only the installing is spared, which other suites see on bare hosts; the roles still look, and do all the rest. The
first run on a machine prepares one host and makes an image of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cli.conftest import ROOT

BED = "cli"
SYSTEM = "debian-13"
STATE = ROOT / ".testbed" / BED
PREPARE = Path(__file__).with_name("prepare.yml")
# What prepare.yml installs is known by these roles' files.
ROLES = ("packages", "llm_cli", "firewall", "llama_cpp")


def bed(*arguments: str, **environment: str) -> None:
    """Run a command of the test bed."""
    argv = [sys.executable, str(ROOT / "tests/testbed"), *arguments]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, env={**os.environ, **environment})


def prepared() -> str:
    """Have a snapshot of a host with what takes long; returns its key."""
    files = [
        PREPARE,
        *(file for role in ROLES for file in sorted((ROOT / "roles" / role).rglob("*")) if file.is_file()),
    ]
    key = hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    playbook = [str(Path(sys.executable).with_name("ansible-playbook")), "--inventory=seed,", str(PREPARE)]
    playbook += ["--user=root", f"--ssh-common-args=-F {STATE / 'ssh_config'}"]
    arguments = [f"--name={BED}", f"--host=seed={SYSTEM}", f"--snapshot={key}", "--", *playbook]
    # The connection to the seed ends with the playbook: the host is gone then.
    ssh = "-o ControlMaster=auto -o ControlPersist=5"
    bed("prepare", *arguments, ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"), ANSIBLE_SSH_ARGS=ssh)
    return key


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[None]:
    """Have hosts; STATE / "ssh_config" tells ssh how to reach them."""
    try:
        key = prepared()
        bed("up", f"--name={BED}", f"--snapshot={key}", *(f"--host={name}={SYSTEM}" for name in names))
        yield
    finally:
        bed("down", f"--name={BED}")


def on(host: str, command: str) -> str:
    """Run a command on a host of the bed."""
    argv = ["ssh", "-F", str(STATE / "ssh_config"), host, command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
