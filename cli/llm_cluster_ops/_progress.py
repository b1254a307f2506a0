# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one sees of long work: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ._runner import Silent, Watcher

if TYPE_CHECKING:
    from ._runner import Run


class Lines:
    """A line whenever a host begins another phase."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.began = time.monotonic()
        self.phases: dict[str, str] = {}

    def start(self, run: Run) -> None:
        self.began = time.monotonic()
        self.phases = {}

    def step(self, run: Run, host: str) -> None:
        state = run.hosts[host]
        if self.phases.get(host) != state.phase:
            self.phases[host] = state.phase
            self.say(f"{time.monotonic() - self.began:5.0f} s  {host}: {state.phase}")

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def stop(self, run: Run) -> None:
        """Nothing is left to do."""


class LiveTable:
    """A live table: a row for each host."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live: Live | None = None
        self.began = time.monotonic()

    def start(self, run: Run) -> None:
        self.began = time.monotonic()
        self.live = Live(
            console=self.console, get_renderable=lambda: self.table(run), refresh_per_second=4, transient=True
        )
        self.live.start()

    def table(self, run: Run) -> Table:
        """Return how things stand now."""
        shown = Table(title=f"{run.name}  {time.monotonic() - self.began:.0f} s", title_justify="left", box=None)
        for column in ("host", "phase", "task", "changes"):
            shown.add_column(column, justify="right" if column == "changes" else "left", no_wrap=True)
        # A signal's handler or an event may add a host meanwhile.
        for name, host in list(run.hosts.items()):
            style = "red" if host.failed or host.unreachable else "" if host.busy else "dim"
            state = "not reached" if host.unreachable else "failed" if host.failed else host.phase
            shown.add_row(Text(name), Text(state, style), Text(host.task, style), str(host.changed))
        return shown

    def step(self, run: Run, host: str) -> None:
        """Nothing: the table is drawn anew four times a second."""

    def say(self, text: str) -> None:
        self.console.print(Text(text), soft_wrap=True)

    def stop(self, run: Run) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None


def watcher(quiet: bool = False, console: Console | None = None) -> Watcher:
    """Return what fits the place: a live table, lines, or nothing."""
    console = console or Console(stderr=True)
    if quiet:
        return Silent()
    return LiveTable(console) if console.is_terminal else Lines(console)
