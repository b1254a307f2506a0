# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the commands into docs/cli.md, from the commands themselves: make reference

A unit test compares the page with what this would write.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import click
from llm_cluster_ops.commands import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "cli.md"
# What stands above it is written by hand.
MARK = "## Commands\n"


def option_rows(command: click.Command, ctx: click.Context) -> list[str]:
    """Return a table row per option."""
    rows = []
    for parameter in command.params:
        record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
        if record:
            rows.append("| `{}` | {} |".format(record[0], " ".join(record[1].split())).replace("\\|", "|"))
    return rows


def section(command: click.Command) -> list[str]:
    """Return a command's section."""
    ctx = click.Context(command, info_name=f"llm cluster {command.name}")
    usage = command.get_usage(ctx).removeprefix("Usage: ").split()
    text, _, example = inspect.cleandoc(command.help or "").partition("\nExample:\n")
    shown = [line.strip() for line in example.replace("\b", "").splitlines() if line.strip()]
    return [
        f"### {command.name}",
        "",
        "```",
        " ".join(usage),
        "```",
        "",
        text.strip(),
        "",
        "| option | |",
        "|---|---|",
        *option_rows(command, ctx),
        "",
        "```",
        *shown,
        "```",
        "",
    ]


def page() -> str:
    """Return the whole page."""
    lines = [PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK]
    for command in COMMANDS:
        lines += section(command)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
