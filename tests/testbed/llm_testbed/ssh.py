# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How to log in to a bed's hosts: a throw-away key, the hosts' real keys, and a configuration for ssh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .shell import TestbedError, attempt, run

_OWN_FILES = ("id_ed25519", "id_ed25519.pub", "known_hosts", "ssh_config", "hosts.json")


def ensure_key(folder: Path) -> str:
    """Have a key pair in the bed's state folder; returns the public key."""
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "id_ed25519"
    if not key.is_file():
        if attempt(["ssh", "-V"]).returncode == 127:
            raise TestbedError("The OpenSSH client is missing on this machine (package openssh-client). Install it.")
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "llm test bed", "-f", str(key)])
    return key.with_suffix(".pub").read_text()


def write_ssh_files(folder: Path, addresses: Mapping[str, str], host_keys: Mapping[str, Sequence[str]]) -> None:
    """Write known_hosts and ssh_config for hosts (name → address, name → public host keys)."""
    write_whole(folder / "known_hosts", render_known_hosts(addresses, host_keys))
    write_whole(folder / "ssh_config", render_ssh_config(folder, addresses))


def logs_in(folder: Path, host: str) -> bool:
    """Whether ssh with the bed's configuration reaches a host as root."""
    command = ["ssh", "-F", str(folder / "ssh_config"), "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", host, "true"]
    return attempt(command, timeout=15).returncode == 0


def render_known_hosts(addresses: Mapping[str, str], host_keys: Mapping[str, Sequence[str]]) -> str:
    """Lines that tie each host's name and address to its public keys (`TYPE KEY COMMENT`)."""
    lines = []
    for host, address in addresses.items():
        for key in host_keys[host]:
            kind, value = key.split()[:2]
            lines.append(f"{host},{address} {kind} {value}\n")
    return "".join(lines)


def render_ssh_config(folder: Path, addresses: Mapping[str, str]) -> str:
    """A configuration for `ssh -F`, which ignores the user's own: one entry for each host, then what they share."""
    entries = [f"Host {host}\n    HostName {address}\n" for host, address in addresses.items()]
    shared = (
        "Host *\n"
        "    User root\n"
        f'    IdentityFile "{folder / "id_ed25519"}"\n'
        "    IdentitiesOnly yes\n"
        f'    UserKnownHostsFile "{folder / "known_hosts"}"\n'
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
    )
    return "\n".join([*entries, shared])


def write_whole(path: Path, text: str) -> None:
    """Replace a file at once, so that a reader never sees half of it."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def remove_state(folder: Path) -> list[str]:
    """Remove a bed's state folder; returns the names of files that are not ours, which stay there."""
    if not folder.is_dir():
        return []
    for name in _OWN_FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / f".{name}.new").unlink(missing_ok=True)
    left = sorted(path.name for path in folder.iterdir())
    if not left:
        folder.rmdir()
    return left
