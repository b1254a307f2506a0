# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import socket
from pathlib import Path

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._stats import UnreadableError, _host

# Of a machine with two processors; guest time (the last columns but one) is in user already.
STAT = """cpu  1712373 184826 593968 2488438 23269 0 45100 6048 500000 0
cpu0 801666 90615 286713 1315615 6842 0 21407 3008 0 0
intr 1 2 3
"""
MEMINFO = (
    "MemTotal:       24684096 kB\nMemFree:        10000000 kB\nMemAvailable:   23030977 kB\nHugePages_Total:       0\n"
)


def test_busy_is_all_but_idle_and_waiting_for_the_disk() -> None:
    busy, passed = _host.cpu_times(STAT)
    assert passed == 1712373 + 184826 + 593968 + 2488438 + 23269 + 45100 + 6048
    assert busy == passed - 2488438 - 23269


@pytest.mark.parametrize("text", ["", "cpu  1 2\n", "cpu0 1 2 3 4 5 6 7 8\n"])
def test_another_stat_is_refused(text: str) -> None:
    with pytest.raises(UnreadableError):
        _host.cpu_times(text)


@pytest.mark.parametrize(
    ("before", "after", "own", "percent"),
    [
        ((100, 1000), (150, 1100), 0, 50.0),
        ((100, 1000), (150, 1100), 10, 40.0),
        ((100, 1000), (100, 1100), 10, 0.0),
        ((100, 1000), (100, 1000), 0, 0.0),
        ((100, 1000), (90, 1100), 0, 0.0),
        ((100, 1000), (201, 1100), 0, 100.0),
    ],
)
def test_load(before: tuple[int, int], after: tuple[int, int], own: float, percent: float) -> None:
    assert _host.load_percent(before, after, own) == percent


def test_the_load_of_this_machine() -> None:
    found = _host.read_cpu(seconds=0.05)
    assert 0 <= found["load_percent"] <= 100
    assert found["cpus"] >= 1


def test_memory_in_use_is_what_programs_cannot_have() -> None:
    assert _host.memory_of(MEMINFO) == {"used": (24684096 - 23030977) * 1024, "total": 24684096 * 1024}
    with pytest.raises(UnreadableError):
        _host.memory_of("MemTotal: 1 kB\n")


def test_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    path = str(tmp_path / "not/yet")
    found = _host.read_disk(path)
    assert found["path"] == path
    assert 0 < found["free"] <= found["total"]


def test_an_address_of_its_own_is_kept() -> None:
    assert _host.own_address("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("wanted", [None, "", "203.0.113.9", "not an address"])
def test_any_other_address_gives_way_to_the_default_route(wanted: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_host, "_sends_from", lambda family, outside: f"{outside} {family.name}")
    assert _host.own_address(wanted) == "192.0.2.1 AF_INET"


def test_without_a_default_route(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_six(family: socket.AddressFamily, _outside: str) -> str:
        if family == socket.AF_INET:
            raise OSError("Network is unreachable")
        return "2001:db8::7"

    monkeypatch.setattr(_host, "_sends_from", only_six)
    assert _host.own_address(None) == "2001:db8::7"

    def no_route(_family: socket.AddressFamily, _outside: str) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(_host, "_sends_from", no_route)
    assert _host.own_address("203.0.113.9") == "203.0.113.9"
    assert _host.own_address(None) == "127.0.0.1"
