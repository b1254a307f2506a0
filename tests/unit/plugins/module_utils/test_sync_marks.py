# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _sync_marks as marks

NOW = 1_795_436_708.0  # 2026-11-23 12:25:08 UTC
MINE, OTHER, EARLIER = "20261123T122508Z-aaaaaaaa", "20261123T122400Z-bbbbbbbb", "20261123T122400Z-aaaaaaaa"


def info(*drains: tuple[str, str, str]):
    return {"drains": [{"name": name, "owner": owner, "reason": reason} for name, owner, reason in drains]}


def test_a_mark_says_whose_turn_it_is_and_until_when():
    assert marks.turn(MINE, NOW + 60) == "sync 20261123T122508Z-aaaaaaaa until 20261123T122608Z: "


@pytest.mark.parametrize(
    ("owner", "reason", "at_work"),
    [
        ("sync", marks.turn(OTHER, NOW + 1) + "new version of m", True),
        ("sync", marks.turn(OTHER, NOW - 1) + "new version of m", False),  # its time is over
        ("sync", marks.turn(EARLIER, NOW + 1) + "new version of m", False),  # of this controller, so it has ended
        ("sync", f"sync {OTHER}: left drained: it does not load", False),  # it has ended by itself
        ("sync", "sync 20260722T101010Z: new version of m", False),  # by a version before
        ("operator", marks.turn(OTHER, NOW + 1) + "what somebody copied", False),
    ],
)
def test_other_controllers_are_at_work_until_their_time_is_over(owner, reason, at_work):
    said = marks.others([info(), info(("n1", owner, reason))], MINE, NOW)
    assert ["n1" in sentence and "sync_take_over=true" in sentence for sentence in said] == [True] * at_work


def test_each_node_is_named_once():
    both = info(*((node, "sync", marks.turn(OTHER, NOW + 1) + "m") for node in ("n2", "n1")))
    assert [" n1," in sentence for sentence in marks.others([both, both], MINE, NOW)] == [True, False]
    assert marks.others([{"drains": None}], MINE, NOW) == []


def test_a_mark_that_another_sync_wrote_over_does_not_hold():
    mine = info(("n1", "sync", marks.turn(MINE, NOW + 1) + "m"))
    other = info(("n1", "sync", marks.turn(OTHER, NOW + 1) + "m"))
    assert marks.holds([mine, mine], "n1", MINE)
    assert not marks.holds([mine, other], "n1", MINE)
    assert not marks.holds([mine, info()], "n1", MINE)
    assert not marks.holds([mine], "n2", MINE)
    assert not marks.holds([info(("n1", "operator", marks.turn(MINE, NOW + 1)))], "n1", MINE)
