# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

from llm_cluster_ops.commands import COMMANDS
from unit.loading import load_file

ROOT = Path(__file__).parents[3]


def test_the_page_is_what_the_commands_say() -> None:
    generator = load_file(ROOT / "docs" / "generate_cli.py")
    assert generator.page() == (ROOT / "docs" / "cli.md").read_text(encoding="utf-8"), "run: make reference"


def test_every_command_has_an_example_of_itself() -> None:
    assert [command.name for command in COMMANDS if f"llm cluster {command.name}" not in (command.help or "")] == []
