# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each role's argument specification must say what its defaults say: same variables, same values, same types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = Path(__file__).parents[2] / "roles"
NAMES = sorted(path.name for path in ROLES.iterdir() if path.is_dir())
TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "raw": (object,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def documents(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    options = load(ROLES / name / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    return load(ROLES / name / "defaults/main.yml"), options


def test_there_are_roles_to_check() -> None:
    assert len(NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_the_variables_are_the_same(name: str) -> None:
    defaults, options = documents(name)
    required = {key for key, option in options.items() if option.get("required")}
    assert set(options) - required == set(defaults)


@pytest.mark.parametrize("name", NAMES)
def test_the_values_are_the_same(name: str) -> None:
    defaults, options = documents(name)
    different = {
        key: (value, options[key].get("default"))
        for key, value in defaults.items()
        if options.get(key, {}).get("default") != value
    }
    assert different == {}


@pytest.mark.parametrize("name", NAMES)
def test_the_values_have_their_types(name: str) -> None:
    defaults, options = documents(name)
    for key, value in defaults.items():
        if isinstance(value, str) and "{{" in value:
            continue
        assert isinstance(value, TYPES[options[key].get("type", "str")]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_variable_is_described_and_carries_a_prefix(name: str) -> None:
    defaults, options = documents(name)
    prefix = "llm_" if name == "cluster" else name + "_"
    assert [key for key in defaults if not key.startswith(prefix)] == []
    assert [key for key, option in options.items() if not option.get("description")] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_role_has_its_documents(name: str) -> None:
    assert [part for part in ("README.md", "meta/main.yml") if not (ROLES / name / part).exists()] == []
