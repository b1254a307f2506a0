# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils import _verify as verify
from ansible_collections.llm.cluster.plugins.module_utils._table import text_table


def result(name: str, errors: dict[str, int] | None = None, **more: Any) -> dict[str, Any]:
    asked = 1 + sum((errors or {}).values()) if "asked" not in more else more["asked"]
    failed = sum((errors or {}).values())
    return {
        "name": name,
        "url": f"http://{name}:8000",
        "model": "m",
        "stream": False,
        "asked": asked,
        "answered": asked - failed,
        "peers": {},
        "text": "x",
        "first_byte": 0.1,
        "seconds": 0.2,
        "errors": errors or {},
        **more,
    }


def test_one_question_for_each_preloaded_model_of_each_peer() -> None:
    models = [{"name": "a", "preload": True}, {"name": "b", "preload": False}]
    peers = [{"name": "n1", "address": "2001:db8::1", "port": 8000, "models": models}]
    (question,) = verify.peer_questions(peers, "hello", 4)
    assert question["url"] == "http://[2001:db8::1]:8000"
    assert question["model"] == "a"


def test_nothing_is_wrong_when_everyone_answers() -> None:
    endpoint = result("b", peers={"n1": 5, "n2": 3}, asked=8)
    judged = verify.report({"n1": [result("n1")]}, {"b": [result("n1")]}, {"b": [endpoint]})
    assert judged["problems"] == []
    assert judged["rows"][-1][-1] == "n1 5, n2 3"


def test_a_node_that_answers_itself_only_has_a_firewall_in_the_way() -> None:
    refused = result("n1", {"no answer within 60 s": 1}, asked=1)
    judged = verify.report({"n1": [result("n1")]}, {"b": [refused]}, {})
    (problem,) = judged["problems"]
    assert "firewall" in problem
    assert "n1" in problem


def test_a_dead_engine_is_reported_once_and_not_as_a_firewall() -> None:
    refused = result("n1", {"connection refused": 1}, asked=1)
    judged = verify.report({"n1": [refused]}, {"b": [refused]}, {"b": [result("b")]})
    (problem,) = judged["problems"]
    assert "connection refused" in problem
    assert "firewall" not in problem


def test_hosts_that_could_not_be_asked_are_problems() -> None:
    judged = verify.report({"n1": None}, {"b": None}, {})
    assert len(judged["problems"]) == 2


def test_an_endpoint_that_loses_questions_is_a_problem() -> None:
    judged = verify.report({}, {}, {"b": [result("b", {"HTTP 503: busy": 2}, asked=8, stream=True)]})
    assert "2 of 8 questions (streamed)" in judged["problems"][0]
    assert "HTTP 503: busy (2x)" in judged["problems"][0]


def test_tables_are_aligned_and_show_what_is_missing() -> None:
    assert text_table([["n1", None], ["node2", 0.25]], ["who", "seconds"]) == [
        "who    seconds",
        "n1     -",
        "node2  0.25",
    ]
