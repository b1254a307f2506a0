# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of several plugins need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml
from simulated.registry import Registry


@pytest.fixture
def registry() -> Iterator[Registry]:
    server = Registry()
    server.start()
    yield server
    server.stop()


def _shape(options: dict[str, Any], inner: str) -> dict[str, Any]:
    return {
        name: (
            option["type"],
            option.get("required", False),
            option.get("default"),
            option.get("choices"),
            _shape(option[inner], inner) if inner in option else None,
        )
        for name, option in options.items()
    }


@pytest.fixture
def check_documents() -> Callable[[ModuleType], None]:
    """Return a function that compares a module's documentation with its options, and reads its other documents."""

    def check(module: ModuleType) -> None:
        documented = yaml.safe_load(module.DOCUMENTATION)["options"]
        assert _shape(documented, "suboptions") == _shape(module.OPTIONS, "options")
        yaml.safe_load(module.EXAMPLES)
        yaml.safe_load(module.RETURN)

    return check
