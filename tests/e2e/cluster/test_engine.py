# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the demo itself does not use of role llama_cpp: the unit's variant for GPUs, and an engine out of an archive."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.demo_cluster import ROOT, Cluster

ROLE = ROOT / "roles" / "llama_cpp"
FOLDER = "/var/tmp/llm-cluster-test"  # not in /run, where nothing can be executed
NODES = ("node1", "node3")  # Debian 13 and 12


@pytest.fixture(autouse=True)
def _folder(cluster: Cluster) -> Iterator[None]:
    """Have an empty folder on the nodes, which is gone afterwards."""
    for node in NODES:
        cluster.ssh(node, f"rm -rf {FOLDER} && mkdir {FOLDER}")
    yield
    for node in NODES:
        cluster.ssh(node, f"rm -rf {FOLDER}")


def test_the_variant_for_gpus_is_walled_in(cluster: Cluster, tmp_path: Path) -> None:
    # A name without an instance's: an offline check doesn't take the running unit for it.
    unit = f"{FOLDER}/gpu-variant.service"
    play = {
        "hosts": ",".join(NODES),
        "gather_facts": False,
        "tasks": [
            {"ansible.builtin.include_vars": {"file": str(ROLE / "defaults/main.yml")}},
            {"ansible.builtin.template": {"src": str(ROLE / "templates/llama-cpp@.service.j2"), "dest": unit}},
        ],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    run = cluster.playbook(str(tmp_path / "play.yml"), "-e", '{"llama_cpp_gpu": true}', folder=tmp_path)
    assert run.code == 0, run.output

    for node in NODES:
        assert "DeviceAllow=char-nvidia" in cluster.ssh(node, f"cat {unit}")
        report = cluster.ssh(node, f"systemd-analyze security --offline=true --no-pager {unit}")
        found = re.search(r"Overall exposure level.*: ([0-9.]+)", report)
        assert found, report
        print(f"{node}: exposure {found[1]}")
        assert float(found[1]) <= 2.0, report


def pack(path: Path, program: str) -> str:
    """Write an archive with a llama-server where release archives have it, and return the archive's checksum."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content, mode in (("bin/llama-server", program, 0o755), ("lib/libggml.so", "", 0o644)):
            entry = tarfile.TarInfo(f"llama-b1/{name}")
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content.encode()))
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_engine_out_of_an_archive_and_one_that_is_not_the_expected(cluster: Cluster, tmp_path: Path) -> None:
    checksum = pack(tmp_path / "llama-b1.tar.gz", '#!/bin/sh\necho "version: 1 (a stand-in)"\n')

    def make(expected: str) -> dict[str, Any]:
        return {
            "ansible.builtin.include_role": {"name": "llm.cluster.llama_cpp", "tasks_from": "release"},
            "vars": {"llama_cpp_version": "b1", "llama_cpp_archive_checksum": expected},
        }

    play = {
        "hosts": "node3",
        "gather_facts": True,
        "gather_subset": ["!all", "!min", "network"],
        "vars": {
            "llama_cpp_install_dir": FOLDER,
            "llama_cpp_source": "archive",
            "llama_cpp_archive_file": str(tmp_path / "llama-b1.tar.gz"),
        },
        "tasks": [make(checksum), make("sha256:" + 64 * "0")],
    }
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    run = cluster.playbook(str(tmp_path / "play.yml"), folder=tmp_path)
    assert run.code == 2, run.output
    assert "Nothing of it was unpacked" in run.output

    # The one that is there, of the same version, stays whole: each has a folder that is named by what it is made of.
    assert "a stand-in" in cluster.ssh("node3", f"{FOLDER}/releases/archive-b1/*/bin/llama-server --version")
    files = cluster.ssh("node3", f"cd {FOLDER}/releases && find . ! -type d").split()
    assert sorted(re.sub("/[0-9a-f]{8}/", "/RECIPE/", name) for name in files) == [
        "./archive-b1/RECIPE/.complete",
        "./archive-b1/RECIPE/bin/llama-server",
        "./archive-b1/RECIPE/bin/llama-wait-idle",
        "./archive-b1/RECIPE/dist/llama-b1/bin/llama-server",
        "./archive-b1/RECIPE/dist/llama-b1/lib/libggml.so",
        "./archive-b1/RECIPE/llama-b1.tar.gz",
    ]
