# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host reads of its logs: the last lines, and then every line once, however the file is rotated."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from llm_cluster_ops.cluster import PLAYBOOKS
from unit.loading import load_file


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return load_file(PLAYBOOKS / "library" / "read_log.py")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "access.log"
    path.write_text("".join(f"line {number}\n" for number in range(1, 6)))
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


@pytest.mark.parametrize(
    ("count", "lines"), [(2, ["line 4", "line 5"]), (9, [f"line {n}" for n in range(1, 6)]), (0, [])]
)
def test_the_last_lines(module: ModuleType, log: Path, count: int, lines: list[str]) -> None:
    found = module.last_of_file(log, count)
    assert found.lines == lines
    assert found.cursor["offset"] == log.stat().st_size


def test_the_last_lines_of_a_large_file(module: ModuleType, log: Path) -> None:
    log.write_text("".join(f"{number:0100}\n" for number in range(5000)))
    assert [int(line) for line in module.last_of_file(log, 2000).lines] == list(range(3000, 5000))


def test_the_last_lines_may_be_in_the_file_before(module: ModuleType, log: Path) -> None:
    log.rename(log.with_name("access.log.1"))
    log.write_text("line 6\n")
    assert module.last_of_file(log, 3).lines == ["line 4", "line 5", "line 6"]


def test_a_line_is_read_when_it_is_whole(module: ModuleType, log: Path) -> None:
    append(log, "half")
    found = module.last_of_file(log, 1)
    assert found.lines == ["line 5"]
    assert module.rest_of_file(log, found.cursor) == module.Reading([], found.cursor)
    append(log, " a line\nand")
    assert module.rest_of_file(log, found.cursor).lines == ["half a line"]


def test_a_rotated_file_is_read_to_its_end_first(module: ModuleType, log: Path) -> None:
    found = module.last_of_file(log, 1)
    old = log.with_name("access.log.1")
    log.rename(old)
    append(old, "line 6\n")
    found = module.rest_of_file(log, found.cursor)
    assert found.lines == ["line 6"]
    # nginx has the old file open until it is told; the new one is there already, and empty.
    log.touch()
    append(old, "line 7\n")
    found = module.rest_of_file(log, found.cursor)
    assert found.lines == ["line 7"]
    found = module.rest_of_file(log, found.cursor)
    assert found.lines == []
    append(log, "line 8\n")
    found = module.rest_of_file(log, found.cursor)
    assert found.lines == ["line 8"]
    old.unlink()
    append(log, "line 9\n")
    assert module.rest_of_file(log, found.cursor).lines == ["line 9"]


def test_a_file_that_was_compressed_or_emptied_is_begun_anew(module: ModuleType, log: Path) -> None:
    found = module.last_of_file(log, 1)
    log.rename(log.with_name("elsewhere"))
    log.write_text("new\n")
    assert module.rest_of_file(log, found.cursor).lines == ["new"]
    found = module.last_of_file(log, 1)
    log.write_text("x\n")
    assert module.rest_of_file(log, found.cursor).lines == ["x"]


def test_much_is_read_in_pieces_and_nothing_twice(
    module: ModuleType, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROOM", 20)
    cursor: Any = {**module.last_of_file(log, 0).cursor, "offset": 0}
    lines: list[str] = []
    while found := module.rest_of_file(log, cursor).lines:
        lines += found
        cursor = module.rest_of_file(log, cursor).cursor
    assert lines == [f"line {number}" for number in range(1, 6)]
    log.write_text("y" * 50 + "\nz\n")
    assert module.read_from(log, 0) == ([b"y" * 20], 20)


def test_bytes_that_are_no_text_are_shown_as_such(module: ModuleType, log: Path) -> None:
    log.write_bytes(b"a\xffb\n")
    assert module.last_of_file(log, 1).lines == ["a\ufffdb"]


def test_a_journal_goes_on_from_the_last_entry_that_there_was_room_for(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [
        json.dumps({"MESSAGE": "x\u2028y", "__CURSOR": f"s={number}"}, ensure_ascii=False) for number in range(3)
    ]
    text = "\n".join(entries) + "\n"
    assert module.of_journal(text, None) == module.Reading(entries, {"journal": "s=2"})
    assert module.of_journal("", {"journal": "s=2"}) == module.Reading([], {"journal": "s=2"})
    monkeypatch.setattr(module, "ROOM", len(entries[0]) + 1)
    assert module.of_journal(text, {"journal": "s"}) == module.Reading(entries[:1], {"journal": "s=0"})


def test_it_waits_until_there_is_something(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    found = [module.Reading([], {"offset": 1}), module.Reading([], {"offset": 1}), module.Reading(["a"], {"offset": 2})]
    asked: list[Any] = []

    def read(cursor: Any) -> Any:
        asked.append(cursor)
        return found[len(asked) - 1]

    assert module.patiently(read, None, 5.0).lines == ["a"]
    assert asked == [None, {"offset": 1}, {"offset": 1}]
    assert module.patiently(lambda _cursor: found[0], None, 0).lines == []
