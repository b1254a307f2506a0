# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tests of a module here are the chapters of one story: it ends at the first that fails."""

from __future__ import annotations

from collections.abc import Generator

import pytest

FAILED = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and item.parent:
        item.parent.stash.setdefault(FAILED, item.name)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.parent and FAILED in item.parent.stash:
        pytest.skip(f"{item.parent.stash[FAILED]} failed, and what comes next stands on it")
