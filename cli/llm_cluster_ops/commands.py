# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands of ``llm cluster``. Each asks a Cluster to do it and prints what came of it."""

from __future__ import annotations

import shlex
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from . import _inventory, _logs
from ._cli import CHECK, DIFF, HOST, JSON, node_names, on_cluster, print_json, quick, report, told, until_stopped
from ._errors import RunFailedError
from ._logs import LogLine
from ._runner import Silent
from .cluster import Cluster, in_order, parse_host, parse_labels


@click.command(short_help="Make a cluster's folder.")
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--name", help="The cluster's name.  [default: the folder's]")
@click.option("--user", help="The user who logs in to the hosts.  [default: you]")
@click.option("--balancer", metavar="HOST[:PORT]", help="The host of the balancer; its users get llm set up too.")
@told
def init(directory: Path | None, name: str | None, user: str | None, balancer: str | None) -> None:
    """Make a cluster's folder: an ordinary Ansible inventory, with every setting in it and a first key in its vault.

    Without DIRECTORY it is made in a new folder of that NAME, or in this one.

    Example:

    \b
      llm cluster init --name office --balancer 192.0.2.10
    """
    made = Cluster.init(directory or Path(name or "."), name=name, user=user, balancer=balancer)
    folder = made.cluster.folder
    click.echo(f"The cluster {made.cluster.name} is in {folder}.")
    click.echo(f"Its vault's password is in {made.password_file}: keep a copy, and give it to who works with you.")
    click.echo("Next:")
    click.echo(
        f"  1. choose models in {folder / 'nodes.yml'}, settings in {folder / 'group_vars' / 'all' / 'main.yml'}"
    )
    if balancer is None:
        click.echo(f"  2. write the balancer's host below {_inventory.BALANCERS} in {folder / 'nodes.yml'}")
    click.echo(f"  {'2' if balancer else '3'}. cd {folder} && llm cluster add-node HOST")


@click.command("add-node", short_help="Add a host as a node.")
@click.argument("host", metavar="HOST[:PORT]")
@click.option("--name", help="The node's name.  [default: HOST]")
@click.option("--user", help="The user who logs in to it.")
@click.option("--engine", metavar="ENGINE", help=f"{' or '.join(_inventory.ENGINES)}.")
@click.option("--slots", type=int, help="Requests it works on at a time.")
@click.option("--weight", type=float, help="Its share of requests, relative to other nodes.")
@click.option("--backup", is_flag=True, help="It gets requests only when all others are out.")
@click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A fact that routes can ask for; may be repeated."
)
@click.option("--no-deploy", is_flag=True, help="Only check it and write it into the inventory.")
@on_cluster
def add_node(
    cluster: Cluster, host: str, labels: tuple[str, ...], backup: bool, no_deploy: bool, **settings: Any
) -> None:
    """Check that a host can be logged in to and is fit, write it into the inventory, deploy just it, and let it in.

    PORT is that of SSH. The other settings are kept in host_vars/NAME.yml.

    Example:

    \b
      llm cluster add-node 192.0.2.13 --name node3 --slots 8 --label rack=b
    """
    node = parse_host(host, labels=parse_labels(labels), backup=backup or None, **settings)
    for run in cluster.add_node(node, deploy=not no_deploy):
        report(run)
    click.echo(
        f"{node.name} is a node now."
        if not no_deploy
        else f"{node.name} is in the inventory. To bring it in: llm cluster deploy"
    )


@click.command("remove-node", short_help="Take a node out.")
@HOST
@click.option("--purge-models", is_flag=True, help="Also remove the models from the host.")
@click.option("--leave-host", is_flag=True, help="Don't touch the host: it is gone, or to stay as it is.")
@on_cluster
def remove_node(cluster: Cluster, host: str, purge_models: bool, leave_host: bool) -> None:
    """Drain a node, take the cluster's parts off it, and take it out of the inventory and the balancers' table.

    Models stay on the host unless they are to be purged.

    Example:

    \b
      llm cluster remove-node node3
    """
    if purge_models and leave_host:
        raise click.UsageError("--purge-models touches the host, which --leave-host forbids: give one of them.")
    removed = cluster.remove_node(host, purge_models=purge_models, leave_host=leave_host)
    if removed.kept:
        click.echo(f"Its variables held more than these commands write, so they were kept as {removed.kept}.")
    click.echo(f"{removed.node} is out.")


@click.command(short_help="Bring all hosts to what the inventory says.")
@CHECK
@DIFF
@click.option("--limit", "limit", multiple=True, metavar="HOST", help="Only this host or group; may be repeated.")
@on_cluster
def deploy(cluster: Cluster, check: bool, diff: bool, limit: tuple[str, ...]) -> None:
    """Bring all hosts to what the inventory says, and verify (site.yml). What is right already is left as it is.

    Example:

    \b
      llm cluster deploy --check --diff
    """
    report(cluster.deploy(check=check, diff=diff, limit=limit))


@click.command(short_help="Ask every node and the endpoint a question.")
@CHECK
@DIFF
@on_cluster
def verify(cluster: Cluster, check: bool, diff: bool) -> None:
    """Ask every node and the endpoint a real question, and show who answered (verify.yml). Changes nothing.

    Example:

    \b
      llm cluster verify
    """
    report(cluster.verify(check=check, diff=diff))


@click.command(short_help="Take a node out of service.")
@HOST
@click.option("--reason", help="Why; shown wherever the node's state is.")
@click.option(
    "--timeout",
    type=click.IntRange(min=0),
    help="Seconds to wait for its last request; 0 doesn't wait.  [default: 300]",
)
@on_cluster
def drain(cluster: Cluster, host: str, reason: str | None, timeout: int | None) -> None:
    """Give a node nothing new, on every balancer, and wait until it has finished what it works on (drain.yml).

    Example:

    \b
      llm cluster drain node1 --reason "new disk"
    """
    report(cluster.drain(host, reason=reason, timeout=timeout))


@click.command(short_help="Take a drained node back into service.")
@HOST
@on_cluster
def resume(cluster: Cluster, host: str) -> None:
    """Give a drained node requests again, on every balancer (resume.yml). Marks of others stay, and are named.

    Example:

    \b
      llm cluster resume node1
    """
    report(cluster.resume(host))


WATCH = click.option(
    "--watch",
    type=click.FloatRange(min=1),
    is_flag=False,
    flag_value=2.0,
    metavar="[SECONDS]",
    help="Look again and again, so many seconds apart; Ctrl-C ends it.  [default: 2]",
)


def watched(cluster: Cluster, what: str, seconds: float | None) -> None:
    """Print what status or stats shows; with seconds again and again, on a terminal in one place."""
    if seconds is None:
        click.echo("\n".join(cluster.show(what).messages))
        return
    cluster.watcher = Silent()
    console = Console()
    # In its own place, so that what was on the screen is there again afterwards.
    first = Text("Looking; Ctrl-C ends it")
    with Live(first, console=console, screen=console.is_terminal, auto_refresh=False) as live, until_stopped():
        while True:
            text = "\n".join(cluster.show(what, passing=True).messages)
            if console.is_terminal:
                live.update(Text(f"{text}\n\n{datetime.now():%H:%M:%S}  Ctrl-C ends it"), refresh=True)
            else:
                click.echo(f"{text}\n")
            time.sleep(seconds)


@click.command(short_help="Show each node's state and models.")
@WATCH
@JSON
@on_cluster
def status(cluster: Cluster, watch: float | None, as_json: bool) -> None:
    """Show each node's state, engine, slots and models, with drift marked, then the balancers (status.yml).

    Example:

    \b
      llm cluster status --watch 5
    """
    if as_json:
        print_json(quick(cluster).status().data)
    else:
        watched(quick(cluster), "status", watch)


@click.command(short_help="Show load and requests.")
@WATCH
@JSON
@on_cluster
def stats(cluster: Cluster, watch: float | None, as_json: bool) -> None:
    """Show what each node does now, and the requests of the last minute (stats.yml).

    Example:

    \b
      llm cluster stats --watch
    """
    if as_json:
        print_json(quick(cluster).stats())
    else:
        watched(quick(cluster), "stats", watch)


# Off a terminal a table's row is one line, for grep and the like: columns that no table of ours fills.
UNFOLDED = 100_000


@click.command(short_help="List models, their versions and where they are.")
@JSON
@on_cluster
def models(cluster: Cluster, as_json: bool) -> None:
    """List the models, the digest of each version that is served, and the nodes that serve it.

    Example:

    \b
      llm cluster models
    """
    found = quick(cluster).models()
    if as_json:
        print_json([asdict(model) for model in found])
        return
    table = Table(box=None)
    for column in ("model", "digest", "nodes"):
        table.add_column(column, overflow="fold")
    for model in found:
        for digest, nodes in model.versions.items():
            table.add_row(Text(model.name), Text(digest), Text(", ".join(nodes)))
        if model.missing:
            table.add_row(Text(model.name), Text("missing"), Text(", ".join(model.missing)))
    console = Console()
    if not console.is_terminal:
        console.width = UNFOLDED
    console.print(table)


@click.command(short_help="Have a model in memory everywhere, or add one.")
@click.argument("model")
@click.option("--add", is_flag=True, help="Add it, if it is not one of the cluster's models.")
@click.option("--source", help="Add it, from this URL, file here, or other name in Ollama's registry.")
@click.option("--digest", help="Add it, in this version and no other.")
@on_cluster
def load(cluster: Cluster, model: str, add: bool, source: str | None, digest: str | None) -> None:
    """Have a model in memory now, on every node that it is placed on (load.yml).

    A new one is checked first: every node must be able to get and to hold it. Then it is written into nodes.yml, locked
    if there is a lock file, brought to the nodes and into service, and loaded.

    Example:

    \b
      llm cluster load gemma3:4b
      llm cluster load qwen3:8b --add
    """
    for run in cluster.load(model, add=add, source=source, digest=digest):
        report(run)
    if (add or source or digest) and not (cluster.folder / "models.lock.yml").is_file():
        click.echo("Its version is not locked: to write down every model's, llm cluster lock")


@click.command(short_help="Write down each model's version.")
@CHECK
@DIFF
@click.option(
    "--update", multiple=True, metavar="MODEL", help="Ask this model's source anew; all for every one; may be repeated."
)
@click.option(
    "--from", "source", metavar="HOST", shell_complete=node_names, help="Take the versions that this node serves."
)
@on_cluster
def lock(cluster: Cluster, check: bool, diff: bool, update: tuple[str, ...], source: str | None) -> None:
    """Write down which version of each model every node must serve, in models.lock.yml (lock.yml).

    With --check it fails if that file is not up to date.

    Example:

    \b
      llm cluster lock --update gemma3:4b
    """
    report(cluster.lock(check=check, diff=diff, update=update, source=source))


@click.command(short_help="Report where models differ from the lock.")
@JSON
@on_cluster
def drift(cluster: Cluster, as_json: bool) -> None:
    """Report where nodes' models differ from the lock; the exit code is 3 if any does, 4 if a node can't be reached.

    Example:

    \b
      llm cluster drift
    """
    if not as_json:
        report(cluster.drift())
        return
    try:
        print_json(cluster.drift().answer)
    except RunFailedError as error:
        error.run.messages.clear()
        if error.run.answer:
            print_json(error.run.answer)
        raise


@click.command(short_help="Bring the nodes to the lock.")
@CHECK
@DIFF
@click.option("--take-over", is_flag=True, help="Also where a sync of another machine, which was stopped, is noted.")
@on_cluster
def sync(cluster: Cluster, check: bool, diff: bool, take_over: bool) -> None:
    """Bring node after node to the versions in the lock, while the others serve (sync.yml).

    It may be stopped at any moment and run again: it goes on from there. Two at once keep off each other.

    Example:

    \b
      llm cluster sync --check
    """
    report(cluster.sync(check=check, diff=diff, take_over=take_over))


@click.command(short_help="Show which node answered what, or an engine's journal.")
@click.argument("host", required=False, shell_complete=node_names)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes; Ctrl-C ends it.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many of the last lines."
)
@click.option("--json", "as_json", is_flag=True, help="The lines as they are written.")
@on_cluster
def logs(cluster: Cluster, host: str | None, follow: bool, lines: int, as_json: bool) -> None:
    """Show which node answered what, from the balancers' access logs; with a HOST the journal of that node's engine.

    tokens are those of the prompt and of the answer; key is the key's name. With a balancer's HOST it is just its log.

    Example:

    \b
      llm cluster logs -n 20
      llm cluster logs node1 -f
    """
    printer = LogPrinter(cluster, host, as_json)
    if follow:
        cluster.watcher = _logs.Complaints(lambda text: click.echo(text, err=True))
        with until_stopped():
            cluster.read_logs(printer.print, host, lines=lines, follow=True)
        return
    found: list[LogLine] = []
    try:
        quick(cluster).read_logs(found.extend, host, lines=lines)
    finally:
        # Also what some hosts said, where others could not be reached.
        printer.print(in_order(found)[max(0, len(found) - lines) :])


class LogPrinter:
    """Prints lines as they come, below one heading."""

    def __init__(self, cluster: Cluster, host: str | None, as_json: bool) -> None:
        self.as_json = as_json
        self.several = host is None and len(cluster.inventory().members(_inventory.BALANCERS)) > 1
        self.headed = as_json

    def print(self, lines: list[LogLine]) -> None:
        """Print some lines."""
        for line in lines:
            if not self.headed and line.kind == _logs.ACCESS:
                click.echo(_logs.heading(self.several))
                self.headed = True
            click.echo(line.raw if self.as_json else line.text(self.several))


@click.command(short_help="Set up this machine's llm for the endpoint.")
@click.option("--undo", is_flag=True, help="Take out again what this put in.")
@on_cluster
def use(cluster: Cluster, undo: bool) -> None:
    """Set up your own llm for the endpoint, with its models and its key, so that llm -m MODEL works.

    Example:

    \b
      llm cluster use
      llm -m gemma3:4b "hello"
    """
    if undo:
        files = cluster.stop_using()
        click.echo("\n".join(f"Taken out of {file}." for file in files) or "There was nothing to take out.")
        return
    used = cluster.use()
    click.echo(f"llm uses {used.url} for: {', '.join(used.models)}")
    if not used.has_key:
        click.echo(f"The inventory knows only hashes of keys. Set yours: llm keys set {used.key_name}")
    if used.trust_file:
        click.echo(
            "Its certificate is one that this machine does not know, and llm has no setting for one. It is now in"
        )
        click.echo("a file with all those that are known; this line makes llm take that file, also in ~/.profile:")
        click.echo(f"  export SSL_CERT_FILE={shlex.quote(str(used.trust_file))}")
    click.echo(f'Try: llm -m {used.models[0]} "hello"')


COMMANDS = [
    init,
    add_node,
    remove_node,
    deploy,
    verify,
    status,
    stats,
    models,
    load,
    lock,
    drift,
    sync,
    drain,
    resume,
    logs,
    use,
]
