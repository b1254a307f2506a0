# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``llm`` loads at every start: a group whose commands are imported when one of them is called."""

from __future__ import annotations

from typing import Any

import click
import llm
from click_default_group import DefaultGroup

NAME = "cluster"


class ClusterGroup(DefaultGroup):
    """``llm cluster``. Its default command is that of another plugin which has the same name, if there is one."""

    loaded = False

    def load(self) -> None:
        """Have the commands."""
        if not self.loaded:
            from .commands import COMMANDS

            for command in COMMANDS:
                self.add_command(command)
            self.loaded = True

    def list_commands(self, ctx: click.Context) -> list[str]:
        self.load()
        names: list[str] = super().list_commands(ctx)
        return names

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self.load()
        command: click.Command | None = super().get_command(ctx, cmd_name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        self.load()
        if self.default_cmd_name is None and args[0] not in self.commands:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx))
            ctx.fail(f"There is no command {args[0]!r}." + (f" Did you mean {' or '.join(near)}?" if near else ""))
        resolved: tuple[Any, Any, list[str]] = super().resolve_command(ctx, args)
        return resolved


@llm.hookimpl(trylast=True)
def register_commands(cli: click.Group) -> None:
    """Add the group, last of all plugins: a command of that name which is there already goes on working in it."""
    found = cli.commands.get(NAME)
    group = ClusterGroup(
        NAME,
        help="Run a cluster of LLM servers behind one address.\n\n"
        "Start with: llm cluster init. Every command finds its cluster in this folder or one above it, or by "
        "LLM_CLUSTER_DIR.",
        no_args_is_help=True,
    )
    if found is not None:
        group.set_default_command(found)
    cli.add_command(group, NAME)
