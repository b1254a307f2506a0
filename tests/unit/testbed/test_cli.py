# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line's parsers, and how errors reach the user."""

from __future__ import annotations

import argparse

import pytest
from llm_testbed import cli
from llm_testbed.bed import Wanted
from llm_testbed.shell import TestbedError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("node1=debian-13", ("node1", "debian-13")),
        ("a-b=debian-12", ("a-b", "debian-12")),
        ("node1", None),
        ("node1=debian-11", None),
        ("=debian-13", None),
        ("Node=debian-13", None),
        ("-a=debian-13", None),
        ("a/../b=debian-13", None),
    ],
)
def test_parse_host(text: str, expected: tuple[str, str] | None) -> None:
    if expected is None:
        with pytest.raises(argparse.ArgumentTypeError, match="is not"):
            cli.parse_host(text)
    else:
        assert cli.parse_host(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("balancer=18080:80", ("balancer", (18080, 80))),
        ("balancer=18080", None),
        ("18080:80", None),
        ("balancer=0:80", None),
        ("balancer=80:65536", None),
        ("balancer=127.0.0.1:80:80", None),
    ],
)
def test_parse_publish(text: str, expected: tuple[str, tuple[int, int]] | None) -> None:
    if expected is None:
        with pytest.raises(argparse.ArgumentTypeError, match="is not"):
            cli.parse_publish(text)
    else:
        assert cli.parse_publish(text) == expected


def test_wanted_hosts_join_ports() -> None:
    wanted = cli.wanted_hosts(
        [("node1", "debian-12"), ("balancer", "debian-13")], [("balancer", (18443, 443)), ("balancer", (18080, 80))]
    )
    assert wanted == [Wanted("node1", "debian-12"), Wanted("balancer", "debian-13", ((18080, 80), (18443, 443)))]


@pytest.mark.parametrize(
    ("hosts", "published", "complaint"),
    [
        ([("a", "debian-12"), ("a", "debian-13")], [], "twice"),
        ([("a", "debian-12")], [("b", (18080, 80))], "no --host names"),
    ],
)
def test_wanted_hosts_refuse(
    hosts: list[tuple[str, str]], published: list[tuple[str, tuple[int, int]]], complaint: str
) -> None:
    with pytest.raises(TestbedError, match=complaint):
        cli.wanted_hosts(hosts, published)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (TestbedError("the disk is full. Free some."), 1, "the disk is full. Free some."),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    def fail() -> bool:
        raise error

    monkeypatch.setattr(cli, "engine_answers", fail)
    assert cli.main(["status"]) == code
    complaint = capsys.readouterr().err
    assert said in complaint
    assert "Traceback" not in complaint
