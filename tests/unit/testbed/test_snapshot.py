# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which snapshot a host begins with, and that a command prepares one only once."""

from __future__ import annotations

from pathlib import Path

import pytest
from llm_testbed import cli, snapshot
from llm_testbed.bed import Wanted
from llm_testbed.host import HostSettings


def test_a_snapshot_belongs_to_its_image_and_its_key() -> None:
    tag = snapshot.snapshot_tag("debian-13", "sha256:1", "key")
    assert tag == snapshot.snapshot_tag("debian-13", "sha256:1", "key")
    assert tag != snapshot.snapshot_tag("debian-13", "sha256:2", "key")
    assert tag != snapshot.snapshot_tag("debian-13", "sha256:1", "other")


class Machine:
    """Stands in for Docker Engine: the images that there are, and what was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images: set[str] = set()
        self.done: list[str] = []
        monkeypatch.setattr(cli, "ensure_engine", lambda: "answers")
        monkeypatch.setattr(cli, "read_host_settings", HostSettings)
        monkeypatch.setattr(cli, "ensure_images", lambda systems, _settings: dict.fromkeys(systems, "bare"))
        monkeypatch.setattr(cli, "bring_up", self.bring_up)
        monkeypatch.setattr(cli, "take_snapshot", self.take_snapshot)
        monkeypatch.setattr(snapshot, "image_id", lambda tag: f"id of {tag}")
        monkeypatch.setattr(snapshot, "image_exists", self.images.__contains__)

    def bring_up(self, name: str, _folder: Path, wanted: list[Wanted]) -> None:
        self.done.append(f"up {name} {wanted[0].name}")

    def take_snapshot(self, container: str, _system: str, tag: str) -> None:
        self.done.append(f"snapshot of {container}")
        self.images.add(tag)


def prepare(folder: Path, key: str, *work: str) -> int:
    arguments = ["prepare", "--name=unit-test", f"--state-dir={folder}", "--host=seed=debian-13", f"--snapshot={key}"]
    return cli.main([*arguments, "--", *work])


def test_a_command_prepares_a_snapshot_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Machine(monkeypatch)
    made = ["up unit-test seed", "snapshot of llm-unit-test-seed"]
    assert prepare(tmp_path, "one", "touch", str(tmp_path / "ran")) == 0
    assert (machine.done, (tmp_path / "ran").exists()) == (made, True)
    assert prepare(tmp_path, "one", "false") == 0
    assert machine.done == made
    assert prepare(tmp_path, "two", "true") == 0
    assert machine.done == made * 2


def test_a_command_that_fails_leaves_no_snapshot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch)
    assert prepare(tmp_path, "one", "false") == 1
    assert machine.images == set()
    assert "seed is as it left it" in capsys.readouterr().err


def test_only_snapshots_that_are_there_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    tags = {"debian-12": "bare-12", "debian-13": "bare-13"}
    there = snapshot.wanted_snapshots(tags, "key")["debian-13"]
    machine.images.add(there)
    assert snapshot.snapshots(tags, "key") == {"debian-13": there}
