# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _drift as drift
from ansible_collections.llm.cluster.plugins.module_utils._engines import Found

A, B = ("sha256:" + letter * 64 for letter in "ab")
WANTED = [{"name": "m:1b", "digest": A}]


def stats(*found: Found) -> dict[str, Any]:
    return {"models": [dataclasses.asdict(one) for one in found], "held": {}, "unread": []}


OK = Found("m:1b", A, A, "ok", loaded=A)


@pytest.mark.parametrize(
    ("found", "kind", "note"),
    [
        ([OK], "ok", ""),
        ([dataclasses.replace(OK, loaded="")], "ok", ""),
        ([], "missing", ""),
        ([Found("m:1b", "", A, "missing")], "missing", ""),
        ([Found("m:1b", "", A, "missing", held=True)], "missing", "only has to be switched to"),
        ([Found("m:1b", "", A, "missing", have=5, size=9, note="5 of 9 bytes")], "partial", "5 of 9 bytes"),
        ([Found("m:1b", B, A, "wrong", loaded=B)], "wrong", ""),
        ([Found("m:1b", B, A, "wrong", held=True)], "wrong", "the wanted one is on the node"),
        ([Found("m:1b", A, A, "corrupt", note="blob x is damaged")], "corrupt", "blob x is damaged"),
        ([dataclasses.replace(OK, loaded=B)], "stale", f"memory has {B}"),
    ],
)
def test_each_kind(found: list[Found], kind: str, note: str) -> None:
    result = drift.node_drift(stats(*found), WANTED, prune=False)
    (model,) = result["models"]
    assert (model["name"], model["kind"], model["wanted"]) == ("m:1b", kind, A)
    assert note in model["note"]
    assert result["state"] == ("ok" if kind == "ok" else "drift")


def test_any_version_of_what_is_not_locked() -> None:
    unlocked = [{"name": "m:1b", "digest": None}]
    for found, state in ((OK, "ok"), (Found("m:1b"), "drift")):
        assert drift.node_drift(stats(found), unlocked, prune=True)["state"] == state


@pytest.mark.parametrize(("prune", "state"), [(False, "ok"), (True, "drift")])
def test_an_extra_model_is_drift_where_it_would_be_pruned(prune: bool, state: str) -> None:
    result = drift.node_drift(stats(OK, Found("old", B, "", "ok", extra=True)), WANTED, prune)
    assert result["state"] == state
    assert result["models"][1] == {"name": "old", "kind": "extra", "wanted": "", "digest": B, "note": ""}


UNREAD = {"models": None, "unread": [{"part": "gpus", "reason": "x"}, {"part": "models", "reason": "timed out"}]}
NODES = {
    "n3": drift.node_drift(stats(Found("m:1b", B, A, "wrong")), WANTED, False),
    "n1": drift.node_drift(stats(OK), WANTED, False),
    "n2": drift.node_drift(None, WANTED, False),
    "n4": drift.node_drift(UNREAD, WANTED, False),
}


def test_the_report() -> None:
    found = drift.report(NODES)
    assert {key: value for key, value in found.items() if key != "nodes"} == {
        "schema": 1,
        "ok": False,
        "drift": ["n3"],
        "unreachable": ["n2"],
        "unknown": ["n4"],
        "unlocked": [],
    }
    assert found["nodes"] == NODES
    assert drift.report({"n1": NODES["n1"]})["ok"] is True
    unlocked = drift.report({"n1": NODES["n1"]}, ["q (ollama)"])
    assert unlocked["ok"] is False
    (problem,) = drift.problems(unlocked)
    assert "settle the version of q (ollama)" in problem


def test_a_task_that_failed_leaves_its_node_unknown() -> None:
    found = drift.node_drift({"failed": True, "msg": "No python."}, WANTED, False)
    assert (found["state"], found["note"]) == ("unknown", "No python.")


def test_what_people_read() -> None:
    assert drift.rows(NODES) == [
        ("n3", "drift", "m:1b", A[:19], B[:19], "another version"),
        ("n1", "ok", "m:1b", A[:19], A[:19], None),
        ("n2", "unreachable", None, None, None, "the node can't be reached"),
        ("n4", "unknown", None, None, None, "timed out"),
    ]
    of_drift, of_unreachable, of_unknown = drift.problems(drift.report(NODES))
    assert "n3: the models are not those of the lock file" in of_drift
    assert "playbooks/sync.yml" in of_drift
    assert of_unreachable.startswith("n2: can't be reached")
    assert of_unknown == "n4: its models could not be read: timed out. Look there, then run again."
    assert drift.problems(drift.report({"n1": NODES["n1"]})) == []


def test_every_kind_has_words() -> None:
    assert set(drift.WORDS) == {"ok", "extra", *drift.DRIFTED}
