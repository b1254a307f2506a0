# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is no longer needed on a node, by what there is."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._engines._prune import Pruned, Stock, surplus

VERSIONS = {"now": 1, "before": 2, "long ago": 3, "other": 4}
SERVED = {"names": {"a": "now"}, "versions": VERSIONS}
HISTORY = {"previous": {"a": ["before", "long ago"]}}


@pytest.mark.parametrize(
    ("stock", "wanted", "more", "names", "versions"),
    [
        # Nothing to do.
        ({}, {}, {}, [], []),
        ({"names": {"a": "now"}, "versions": {"now": 1}}, {"a": "now"}, {}, [], []),
        # What is served and what is wanted stay, also when they differ; any version will do where none is wanted.
        (SERVED, {"a": "now"}, {}, [], ["before", "long ago", "other"]),
        (SERVED, {"a": "other"}, {}, [], ["before", "long ago"]),
        (SERVED, {"a": ""}, {}, [], ["before", "long ago", "other"]),
        # So many versions back, newest first; those that are gone and the wanted one don't count.
        ({**SERVED, **HISTORY}, {"a": "now"}, {}, [], ["long ago", "other"]),
        ({**SERVED, **HISTORY}, {"a": "now"}, {"keep_previous": 0}, [], ["before", "long ago", "other"]),
        ({**SERVED, **HISTORY}, {"a": "now"}, {"keep_previous": 5}, [], ["other"]),
        ({**SERVED, **HISTORY}, {"a": "before"}, {}, [], ["other"]),
        ({**SERVED, "previous": {"a": ["gone", "now", "before"]}}, {"a": "now"}, {}, [], ["long ago", "other"]),
        # What the lock names and what is in memory.
        (SERVED, {"a": "now"}, {"keep": {"other", "elsewhere"}}, [], ["before", "long ago"]),
        ({**SERVED, "loaded": frozenset({"before"})}, {"a": "now"}, {}, [], ["long ago", "other"]),
        # Names that nobody wants.
        ({**SERVED, "names": {"a": "now", "b": "other"}}, {"a": "now"}, {}, ["b"], ["before", "long ago", "other"]),
        ({**SERVED, "names": {"a": "now", "b": "now"}}, {"a": "now"}, {}, ["b"], ["before", "long ago", "other"]),
        (
            {"names": {"b": "other"}, "versions": VERSIONS},
            {},
            {"keep": {"other"}},
            ["b"],
            ["before", "long ago", "now"],
        ),
        # They leave the memory too, unless somebody else has the same version there.
        ({"names": {"b": "now"}, "versions": {"now": 1}, "loaded": frozenset({"now"})}, {}, {}, ["b"], ["now"]),
        (
            {"names": {"a": "now", "b": "now"}, "versions": {"now": 1}, "loaded": frozenset({"now"})},
            {"a": "now"},
            {},
            ["b"],
            [],
        ),
        # But not while they cannot be removed.
        ({"names": {"b": "now"}, "versions": {"now": 1}, "busy": frozenset({"b"})}, {}, {}, [], []),
    ],
)
def test_surplus(
    stock: dict[str, Any],
    wanted: dict[str, str],
    more: dict[str, Any],
    *,
    names: list[str],
    versions: list[str],
) -> None:
    keep = frozenset(more.get("keep", ()))
    plan = surplus(Stock(**stock), wanted, keep, more.get("keep_previous", 1))
    assert (plan.names, plan.versions) == (names, versions)
    assert not set(plan.versions) & plan.needed


def test_what_goes_is_in_the_diff() -> None:
    pruned = Pruned(staying=["name a now", "version now"])
    pruned.remove("version", digest="before", freed=5)
    pruned.remove("name", name="b", digest="other")
    assert pruned.freed == 5
    assert pruned.diff == {
        "before": "name a now\nname b other\nversion before\nversion now\n",
        "after": "name a now\nversion now\n",
    }
