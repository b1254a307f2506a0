# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands have in common: how they find their cluster, say what came of it, and fail."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ._errors import ClusterError, RunFailedError
from ._progress import watcher
from ._runner import Silent
from .cluster import Cluster, Run


class Failed(click.ClickException):
    """What a ClusterError has to say, on stderr, with its exit code."""

    exit_code: int  # type: ignore[misc] # click's belongs to the class

    def __init__(self, error: ClusterError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code

    def show(self, file: Any = None) -> None:
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(self.message)


def told(function: Callable[..., None]) -> Callable[..., None]:
    """Turn errors that the operator can mend into words and exit codes."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> None:
        try:
            function(*arguments, **options)
        except RunFailedError as error:
            # What it found before it failed, such as who answered and who didn't.
            for message in error.run.messages:
                click.echo(message)
            raise Failed(error) from error
        except ClusterError as error:
            raise Failed(error) from error
        except BrokenPipeError:
            raise  # head and the like have read enough: click ends quietly
        except OSError as error:
            # A full disk, a folder without the right to write …
            raise Failed(ClusterError(f"{error.filename or 'this machine'}: {error.strerror or error}")) from error

    return call


def on_cluster(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--dir`` and ``--quiet``, and the cluster that they lead to."""

    @click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path),
        help="The cluster's folder.  [default: $LLM_CLUSTER_DIR, this folder or one above it]",
    )
    @click.option("-q", "--quiet", is_flag=True, help="Show no progress, only how it ended.")
    @told
    @functools.wraps(function)
    def call(directory: Path | None, quiet: bool, **options: Any) -> None:
        function(Cluster(directory, watcher(quiet)), **options)

    return call


def quick(cluster: Cluster) -> Cluster:
    """Return the cluster for work of seconds: without a terminal its lines would be longer than the answer."""
    if not Console(stderr=True).is_terminal:
        cluster.watcher = Silent()
    return cluster


def node_names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the name of a node."""
    try:
        return [name for name in Cluster(ctx.params.get("directory")).nodes() if name.startswith(incomplete)]
    except ClusterError:
        return []


JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
HOST = click.argument("host", shell_complete=node_names)
CHECK = click.option("--check", is_flag=True, help="Only say what would be done.")
DIFF = click.option("--diff", is_flag=True, help="Show how files change.")


def report(run: Run) -> None:
    """Print what a playbook had to say, and its summary."""
    for message in run.messages:
        click.echo(message)
    click.echo(run.summary())


def print_json(content: Any) -> None:
    """Print data for programs."""
    click.echo(json.dumps(content, indent=2))


@contextlib.contextmanager
def until_stopped() -> Iterator[None]:
    """Take Ctrl-C for the end of looking, which is no failure."""
    try:
        yield
    except KeyboardInterrupt:
        pass
    except RunFailedError as error:
        if not error.run.interrupted:
            raise
