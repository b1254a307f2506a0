# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Containers' arguments and addresses."""

from __future__ import annotations

import io
import json
import tarfile
from itertools import pairwise

import pytest
from llm_testbed.bed import (
    Host,
    Wanted,
    assign_addresses,
    container_name,
    create_arguments,
    render_hosts_json,
    root_key_archive,
)

FORCE_LEGACY = "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"


def host(name: str, address: str) -> Host:
    return Host(name, container_name("demo", name), "debian-13", "nodes:13", address, "spec", "running")


@pytest.mark.parametrize(("cgroups", "forced"), [(1, True), (2, False)])
def test_arguments_by_cgroup_version(cgroups: int, forced: bool) -> None:
    arguments = create_arguments("demo", Wanted("node1", "debian-13"), "nodes:13", "10.173.0.11", cgroups)
    assert (FORCE_LEGACY in arguments) is forced
    assert "--privileged" not in arguments
    assert arguments[arguments.index("--name") + 1] == "llm-demo-node1"
    assert arguments[arguments.index("--ip") + 1] == "10.173.0.11"
    assert arguments[-1] == "nodes:13"


def test_ports_are_published_on_loopback_only() -> None:
    wanted = Wanted("balancer", "debian-13", ((18080, 80), (18443, 443)))
    arguments = create_arguments("demo", wanted, "nodes:13", "10.173.0.14", 2)
    published = [value for option, value in pairwise(arguments) if option == "--publish"]
    assert published == ["127.0.0.1:18080:80", "127.0.0.1:18443:443"]


@pytest.mark.parametrize(
    ("names", "present", "expected"),
    [
        (["a", "b"], {}, {"a": ".11", "b": ".13"}),
        (["a", "b"], {"b": host("b", ".12")}, {"a": ".11", "b": ".12"}),
        (["b"], {"a": host("a", ".12")}, {"b": ".11"}),
    ],
)
def test_hosts_keep_their_addresses(names: list[str], present: dict[str, Host], expected: dict[str, str]) -> None:
    assert assign_addresses(names, present, [".11", ".13", ".14"]) == expected


def test_hosts_json() -> None:
    assert json.loads(render_hosts_json({"node1": host("node1", "10.173.0.11")})) == {
        "node1": {
            "address": "10.173.0.11",
            "system": "debian-13",
            "image": "nodes:13",
            "container": "llm-demo-node1",
        }
    }


def test_key_archive_is_what_sshd_accepts() -> None:
    with tarfile.open(fileobj=io.BytesIO(root_key_archive("ssh-ed25519 AAAA\n"))) as archive:
        folder, file = archive.getmembers()
        stream = archive.extractfile(file)
        content = stream.read() if stream else b""
    assert (folder.name, folder.isdir(), folder.mode, folder.uid) == ("root/.ssh", True, 0o700, 0)
    assert (file.name, file.mode, file.uid) == ("root/.ssh/authorized_keys", 0o600, 0)
    assert content == b"ssh-ed25519 AAAA\n"
