# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Log lines for people, and following them over many looks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from llm_cluster_ops import _logs
from llm_cluster_ops._errors import RunFailedError
from llm_cluster_ops._runner import Failure, HostState, Run
from llm_cluster_ops.cluster import in_order

ENTRY = {
    "time": "2026-11-23T04:00:01+00:00",
    "key": "team-a",
    "model": "gemma3:4b",
    "peer": "node1",
    "total": 1.238,
    "prompt_tokens": 12,
    "completion_tokens": 30,
    "status": 200,
    "error": "",
}


def access(host: str = "b1", **changed: Any) -> _logs.LogLine:
    return _logs.parsed(host, _logs.ACCESS, json.dumps({**ENTRY, **changed}))


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    _logs.time.tzset()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "2026-11-23 04:00:01 200 1.24 12+30 gemma3:4b node1 team-a"),
        ({"time": "2026-11-23T05:00:01+01:00"}, "2026-11-23 04:00:01 200 1.24 12+30 gemma3:4b node1 team-a"),
        ({"completion_tokens": None}, "2026-11-23 04:00:01 200 1.24 12+? gemma3:4b node1 team-a"),
        (
            {"status": 503, "peer": "", "prompt_tokens": None, "completion_tokens": None, "error": "queue_full"},
            "2026-11-23 04:00:01 503 1.24 - gemma3:4b - team-a queue_full",
        ),
        # What a client sent is not to reach the terminal as a command of its.
        ({"model": "a\x1b[2Jb"}, "2026-11-23 04:00:01 200 1.24 12+30 a?[2Jb node1 team-a"),
    ],
)
def test_a_request_is_a_row(changed: dict[str, Any], words: str) -> None:
    assert access(**changed).text().split() == words.split()


def test_the_balancer_is_named_where_there_are_several() -> None:
    line, head = access().text(several=True), _logs.heading(several=True)
    assert line.index("b1") == head.index("balancer")
    assert "balancer" not in _logs.heading(several=False)
    short, narrow = access().text(), _logs.heading(several=False)
    assert short.index("gemma3") == narrow.index("model")
    assert short.index("200") + 3 == narrow.index("status") + len("status")


def test_what_is_no_json_is_shown_as_it_is() -> None:
    assert _logs.parsed("b1", _logs.ACCESS, "[1]").text() == "[1]"
    assert _logs.parsed("b1", _logs.ACCESS, "half {").text() == "half {"


@pytest.mark.parametrize(
    ("message", "shown"), [("loaded\tit", "loaded?it"), ([97, 255, 98], "a\ufffdb"), (None, ""), ("a\nb", "a\nb")]
)
def test_journals(message: Any, shown: str) -> None:
    stamp = {"__REALTIME_TIMESTAMP": "1795406401000000", "_SYSTEMD_UNIT": "llama-cpp@gemma3-270m.service"}
    line = _logs.parsed("node1", _logs.JOURNAL, json.dumps({**stamp, "MESSAGE": message}))
    assert line.text() == f"2026-11-23 04:00:01  llama-cpp@gemma3-270m  {shown}"


def test_several_balancers_lines_are_merged_by_time() -> None:
    lines = [access("b1", time=f"2026-11-23T04:00:0{second}+00:00") for second in (1, 3)]
    others = [access("b2", time=f"2026-11-23T05:00:0{second}+01:00") for second in (2, 3)]
    broken = _logs.parsed("b2", _logs.ACCESS, "x")
    assert in_order([*lines, *others, broken]) == [broken, lines[0], others[0], lines[1], others[1]]


def run(**fields: Any) -> Run:
    return Run("logs", Path("/logs/x.log"), **fields)


def test_following_goes_on_where_each_host_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_logs, "PAUSE", 0)
    taken: list[str] = []
    reader = _logs.Reader(_logs.ACCESS, lambda lines: taken.extend(line.raw for line in lines))
    asked: list[dict[str, Any]] = []

    def look(extra: dict[str, Any]) -> Run:
        asked.append(json.loads(json.dumps(extra)))
        if len(asked) == 3:
            raise RunFailedError(run(interrupted=True))
        reader.result("b1", {"lines": [f"line {len(asked)}"], "cursor": {"offset": len(asked)}})
        reader.result("b1", {"msg": "something else"})
        if len(asked) == 2:
            raise RunFailedError(run(failures=[Failure("b2", "Read", "away", unreachable=True)]))
        return run()

    with pytest.raises(RunFailedError):
        _logs.follow(look, reader, "llm_balancers", 5)
    assert taken == ["line 1", "line 2"]
    assert [extra["log_cursors"] for extra in asked] == [{}, {"b1": {"offset": 1}}, {"b1": {"offset": 2}}]
    assert asked[0]["log_wait"] > 0


def test_following_ends_when_nobody_answers() -> None:
    reader = _logs.Reader(_logs.ACCESS, lambda lines: None)
    failed = run(hosts={"b1": HostState(unreachable=True)}, failures=[Failure("b1", "Read", "away", unreachable=True)])

    def look(_extra: dict[str, Any]) -> Run:
        raise RunFailedError(failed)

    with pytest.raises(RunFailedError) as ended:
        _logs.follow(look, reader, "llm_balancers", 5)
    assert ended.value.exit_code == 4


def test_a_host_that_is_away_is_told_of_once() -> None:
    told: list[str] = []
    complaints = _logs.Complaints(told.append)
    away = run(hosts={"b2": HostState(unreachable=True)}, failures=[Failure("b2", "Read", "refused", unreachable=True)])
    for host in ("b1", "b2", "b2"):
        complaints.step(away, host)
    assert told == ["b2: not reached: refused"]
