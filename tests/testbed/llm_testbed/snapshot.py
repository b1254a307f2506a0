# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots: images of hosts on which something was installed already, so that other hosts begin there."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from .engine import docker
from .image import image_exists, image_id
from .shell import attempt

_REPOSITORY = "llm-testbed-snapshot"
# What makes a host that host, and what only its past needs. systemd and sshd make the first anew when they start.
_FORGET = (
    "rm -rf /etc/ssh/ssh_host_* /root/.ssh /root/.ansible /root/.cache /var/cache/apt/archives/*.deb "
    "/var/log/journal/* /var/lib/systemd/random-seed /var/lib/dbus/machine-id && : > /etc/machine-id"
)


def snapshot_tag(system: str, base: str, key: str) -> str:
    """The tag of a snapshot: it changes with the image (its id) that the host began with, and with the caller's key."""
    return f"{_REPOSITORY}:{system}-{hashlib.sha256(f'{base} {key}'.encode()).hexdigest()[:12]}"


def wanted_snapshots(tags: Mapping[str, str], key: str) -> dict[str, str]:
    """System → tag of its snapshot by this key, for systems → tags of their bare images."""
    return {system: snapshot_tag(system, image_id(tag), key) for system, tag in tags.items()}


def snapshots(tags: Mapping[str, str], key: str) -> dict[str, str]:
    """The same, for the snapshots that there are."""
    return {system: tag for system, tag in wanted_snapshots(tags, key).items() if image_exists(tag)}


def take_snapshot(container: str, system: str, tag: str) -> None:
    """Make an image of a host, which ends with that; the system's older snapshots go."""
    older = docker("image", "ls", "--quiet", "--no-trunc", "--filter", f"reference={_REPOSITORY}:{system}-*").split()
    docker("exec", container, "sh", "-c", _FORGET)
    docker("stop", container)
    docker("commit", container, tag)
    docker("rm", "--volumes", container)
    for image in set(older) - {image_id(tag)}:
        attempt(["docker", "image", "rm", image])  # refused, rightly, while a container uses it
