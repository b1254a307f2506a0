# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _sync_runs as runs

BEGAN = "20261123T122508Z"


@pytest.fixture
def note(tmp_path: Path) -> str:
    return runs.note_of("models.lock.yml", str(tmp_path / "syncs"))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        yield sleeper
        sleeper.kill()


def test_while_one_is_at_work_another_is_refused(note: str, process: subprocess.Popen[bytes]) -> None:
    run = runs.begin(note, process.pid, BEGAN)
    with pytest.raises(runs.AtWorkError) as refused:
        runs.begin(note, os.getpid(), BEGAN)
    assert (refused.value.run, refused.value.process) == (run, process.pid)
    assert runs.begin(note, process.pid, BEGAN) == run, "the same process begins it again"
    assert runs.begin(note, os.getpid(), BEGAN, look=True) == run, "looking takes nothing and is never refused"


def test_after_it_was_killed_the_next_begins_and_knows_its_marks(note: str, process: subprocess.Popen[bytes]) -> None:
    run = runs.begin(note, process.pid, BEGAN)
    process.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/stat").read_text().split()[2] != "Z":  # nobody has asked for its end yet
        assert time.monotonic() < deadline
    later = runs.begin(note, os.getpid(), "20261123T122600Z")
    assert later.rpartition("-")[2] == run.rpartition("-")[2]
    assert json.loads(Path(note).read_text())["run"] == later


def test_a_later_process_of_the_same_number_is_another(note: str, process: subprocess.Popen[bytes]) -> None:
    runs.begin(note, process.pid, BEGAN)
    noted = json.loads(Path(note).read_text())
    Path(note).write_text(json.dumps({**noted, "birth": "1"}))
    assert runs.begin(note, os.getpid(), BEGAN)


def test_without_proc_ps_tells(monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]) -> None:
    monkeypatch.setattr(runs.os.path, "isdir", lambda path: False)
    assert str(time.localtime().tm_year) in runs.birth(process.pid)
    assert runs.birth(process.pid) == runs.birth(process.pid)
    process.kill()
    process.wait()
    assert runs.birth(process.pid) == ""


def test_a_note_that_was_cut_off_is_none(note: str) -> None:
    Path(note).parent.mkdir()
    for text in ("", '{"process": 1', "[]", "{}"):
        Path(note).write_text(text)
        assert runs.begin(note, os.getpid(), BEGAN).startswith(BEGAN + "-")


def test_where_nothing_can_be_noted_each_run_is_a_controller_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    note = runs.note_of("models.lock.yml", str(tmp_path / "file" / "syncs"))
    assert runs.begin(note, os.getpid(), BEGAN) != runs.begin(note, os.getpid(), BEGAN)


def test_each_lock_file_has_its_own_note(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert runs.note_of(str(tmp_path / "a"), "/n") == runs.note_of(str(tmp_path / "link"), "/n")
    assert runs.note_of(str(tmp_path / "a"), "/n") != runs.note_of(str(tmp_path / "b"), "/n")
