# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the unit is started with. That it starts, answers and goes is seen on real hosts (tests/e2e)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.modules import model_share
from ansible_collections.llm.cluster.plugins.modules.model_share import ShareError

PARAMS: dict[str, Any] = {
    "address": "192.0.2.1",
    "port": 8090,
    "token": "not-a-secret-token-0123",
    "allowed": ["192.0.2.2", "2001:db8::3"],
    "models_dir": "/var/lib/llama-cpp/models",
    "partial_dir": "/var/lib/llama-cpp/partial",
    "runtime_max": 600,
    "max_rate": 0,
}


def started(**changes: Any) -> list[str]:
    return model_share.command({**PARAMS, **changes}, "/usr/bin/python3", ["/etc", "/run"], "CAP_DAC_READ_SEARCH")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token": None, "allowed": []}, "token, allowed are missing"),
        ({"token": "short"}, "at least 16"),
        ({"token": "with spaces in the middle"}, "at least 16"),
        ({"port": 0}, "port 0"),
        ({"port": 65536}, "port 65536"),
        ({"address": "node1"}, "'node1' is not an IP address"),
        ({"allowed": ["192.0.2.2", "192.0.2.0/24"]}, "192.0.2.0/24"),
        ({"models_dir": "relative"}, "models_dir"),
        ({"partial_dir": "/a b"}, "partial_dir"),
        ({"partial_dir": "/a:b"}, "partial_dir"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ShareError, match=words) as refused:
        model_share.check({**PARAMS, **changes})
    assert str({**PARAMS, **changes}["token"]) not in str(refused.value)
    model_share.check(PARAMS)


def test_the_unit_is_transient_bounded_and_never_told_the_token() -> None:
    words = started()
    assert words[:4] == ["systemd-run", "--quiet", "--collect", "--service-type=exec"]
    assert "--property=RuntimeMaxSec=600" in words
    assert PARAMS["token"] not in " ".join(words)
    assert words[-1] == "--token-file=/run/llm-cluster/share/token"


def test_the_unit_sees_its_folders_and_the_nodes_only() -> None:
    words = started()
    assert (
        "--property=BindReadOnlyPaths=/var/lib/llama-cpp/models /var/lib/llama-cpp/partial /run/llm-cluster/share"
        in words
    )
    assert "--property=TemporaryFileSystem=/etc:ro /run:ro" in words
    assert "--property=IPAddressDeny=any" in words
    assert "--property=IPAddressAllow=192.0.2.2 2001:db8::3 192.0.2.1" in words
    assert "--allowed=192.0.2.2,2001:db8::3" in words
    assert "--property=CapabilityBoundingSet=CAP_DAC_READ_SEARCH" in words
    # The second takes away from the first.
    calls = [word for word in words if "SystemCallFilter" in word]
    assert [call.rpartition("=")[2] for call in calls] == ["@system-service", "~@privileged @resources"]


def test_the_root_folder_is_hidden_but_for_programs() -> None:
    assert model_share.hidden_folders(["usr", "etc", "bin", "var", "srv", "proc", "data"]) == [
        "/data",
        "/etc",
        "/srv",
        "/var",
    ]


@pytest.mark.parametrize(
    ("bounding", "capability"),
    [
        ("CapBnd:\t000001ffffffffff\n", "CAP_DAC_READ_SEARCH"),
        ("CapBnd:\t00000000a82435fb\n", "CAP_DAC_OVERRIDE"),
        ("", "CAP_DAC_READ_SEARCH"),
    ],
)
def test_one_capability_to_read(bounding: str, capability: str) -> None:
    assert model_share.reading_capability("Name:\tx\n" + bounding) == capability


def test_another_token_address_or_program_is_another_server() -> None:
    marks = {
        model_share.fingerprint(started(), "a", "p"),
        model_share.fingerprint(started(), "b", "p"),
        model_share.fingerprint(started(), "a", "q"),
        model_share.fingerprint(started(port=1), "a", "p"),
    }
    assert len(marks) == 4
    assert model_share.fingerprint(started(), "a", "p") in marks


def test_files_are_roots_alone_and_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    model_share.write(str(path), "secret")
    assert (path.stat().st_mode & 0o777, path.read_text()) == (0o600, "secret")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        model_share.write(str(link), "secret")


def test_folders_are_owned_as_their_parent(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 1234, 1234)
    model_share.make_folder(str(tmp_path / "a" / "b"))
    made = (tmp_path / "a" / "b").stat()
    assert (made.st_uid, made.st_gid) == (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
    assert made.st_mode & 0o777 == 0o755
