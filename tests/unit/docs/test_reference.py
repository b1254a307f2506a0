# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path
from types import ModuleType

from unit.loading import load_file

ROOT = Path(__file__).parents[3]


def generator() -> ModuleType:
    return load_file(ROOT / "docs" / "generate_reference.py")


def test_the_page_is_what_the_specifications_say() -> None:
    written = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert generator().page() == written, "run: make reference"


def test_every_role_is_on_the_page() -> None:
    assert sorted(generator().ROLES) == sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())
