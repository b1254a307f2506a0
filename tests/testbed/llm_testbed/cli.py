# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: up, down, prepare, status, images."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .bed import Wanted, assign_addresses, container_name, ensure_hosts, find_hosts, remove_hosts, write_state
from .engine import engine_answers, ensure_engine, stop_own_engine
from .host import read_host_settings
from .image import SYSTEMS, ensure_images
from .lock import locked
from .network import beds, ensure_network, free_addresses, remove_network
from .shell import TestbedError
from .snapshot import snapshots, take_snapshot, wanted_snapshots
from .ssh import ensure_key, remove_state

_CHECKOUT = Path(__file__).resolve().parents[3]
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
# Held while changing what all beds share: the engine, the images, the choice of subnets.
_SHARED = "shared"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error that the text explains, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except TestbedError as error:
        print(f"test bed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("test bed: interrupted. `up` goes on from here, `down` cleans up.", file=sys.stderr)
        return 130
    return 0


def up(options: argparse.Namespace) -> None:
    """Have the bed with the given hosts; hosts that it has beyond them are left as they are."""
    folder = _state_folder(options)
    wanted = wanted_hosts(options.host, options.publish)
    bring_up(options.name, folder, wanted, options.snapshot)
    print(f"Log in with: ssh -F {folder / 'ssh_config'} {wanted[0].name}")


def bring_up(name: str, folder: Path, wanted: Sequence[Wanted], key: str | None = None) -> None:
    """Have the bed with these hosts, made from the snapshots of a key where there are any."""
    with locked(f"bed-{name}"):
        with locked(_SHARED):
            with _timed("Docker Engine"):
                ensure_engine()
            with _timed("node images"):
                tags = ensure_images({host.system for host in wanted}, read_host_settings())
            if key:
                tags |= snapshots(tags, key)
            with _timed("network"):
                subnet = ensure_network(name)
        with _timed("hosts with systemd"):
            present = find_hosts(name)
            free = free_addresses(subnet, {host.address for host in present.values()})
            addresses = assign_addresses([host.name for host in wanted], present, free)
            ensure_hosts(name, wanted, tags, addresses, ensure_key(folder))
        with _timed("SSH"):
            hosts = write_state(name, folder)
    for host in hosts.values():
        print(f"{host.name:<16} {host.system:<10} {host.address}")


def prepare(options: argparse.Namespace) -> None:
    """Have a snapshot of what a command makes of a bare host. The host is gone afterwards."""
    folder = _state_folder(options)
    name, system = options.host
    with locked(_SHARED):
        ensure_engine()
        tags = ensure_images({system}, read_host_settings())
        if snapshots(tags, options.snapshot):
            print("The snapshot is there.")
            return
    bring_up(options.name, folder, [Wanted(name, system)])
    with _timed("prepared"):
        done = subprocess.run(options.work, check=False)
    if done.returncode != 0:
        raise TestbedError(f"{options.work[0]} failed (exit code {done.returncode}); {name} is as it left it.")
    with _timed("snapshot"), locked(f"bed-{options.name}"), locked(_SHARED):
        container = container_name(options.name, name)
        take_snapshot(container, system, wanted_snapshots(tags, options.snapshot)[system])


def down(options: argparse.Namespace) -> None:
    """Remove the bed, and stop Docker Engine if we started it and nobody needs it any more."""
    folder = _state_folder(options)
    with locked(f"bed-{options.name}"), locked(_SHARED):
        # Without an engine there may still be the containers of one that stopped: the state folder tells.
        if folder.is_dir():
            ensure_engine()
        if engine_answers():
            with _timed("hosts and network removed"):
                remove_hosts(options.name)
                remove_network(options.name)
            if not beds() and stop_own_engine():
                print("Docker Engine stopped: the test bed had started it, and nothing runs in it.")
        left = remove_state(folder)
        with suppress(OSError):
            _default_folder().rmdir()  # only when no other bed has its state there
    if left:
        print(f"{folder} stays: it holds files that the test bed did not make ({', '.join(left)}).")


def status(_options: argparse.Namespace) -> None:
    """Print each bed's hosts with their state."""
    if not engine_answers():
        print("No Docker Engine answers this user, so there is no bed to show.")
        return
    names = beds()
    for bed in names:
        print(f"{bed}:")
        for host in find_hosts(bed).values():
            print(f"  {host.name:<16} {host.system:<10} {host.address:<15} {host.state}")
    if not names:
        print("No bed is there.")


def images(options: argparse.Namespace) -> None:
    """Build the node images that are missing, or all of them anew."""
    with locked(_SHARED):
        with _timed("Docker Engine"):
            ensure_engine()
        with _timed("node images"):
            tags = ensure_images(set(options.system or SYSTEMS), read_host_settings(), rebuild=options.rebuild)
    print("\n".join(tags.values()))


def parse_host(text: str) -> tuple[str, str]:
    """NAME=SYSTEM → (name, system)."""
    name, _, system = text.partition("=")
    if system not in SYSTEMS:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SYSTEM with SYSTEM one of {', '.join(SYSTEMS)}")
    return parse_name(name), system


def parse_publish(text: str) -> tuple[str, tuple[int, int]]:
    """HOST=OUTER:INNER → (host, (port on this machine's loopback, port of the host))."""
    match = re.fullmatch(r"([^=]+)=(\d{1,5}):(\d{1,5})", text)
    if not match or not all(0 < int(port) < 65536 for port in match.groups()[1:]):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST=PORT_HERE:PORT_THERE, like balancer=18080:80")
    return match[1], (int(match[2]), int(match[3]))


def parse_name(text: str) -> str:
    """A name of a bed or a host: it becomes part of host names and file names."""
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: up to 32 lower-case letters, digits and hyphens")
    return text


def wanted_hosts(hosts: Iterable[tuple[str, str]], published: Iterable[tuple[str, tuple[int, int]]]) -> list[Wanted]:
    """Join the hosts with their published ports. Raises TestbedError for a name that is there twice or not at all."""
    systems: dict[str, str] = {}
    for name, system in hosts:
        if name in systems:
            raise TestbedError(f"--host names {name} twice; give each host its own name.")
        systems[name] = system
    ports: dict[str, list[tuple[int, int]]] = {name: [] for name in systems}
    for name, pair in published:
        if name not in ports:
            raise TestbedError(f"--publish names {name}, which no --host names.")
        ports[name].append(pair)
    return [Wanted(name, system, tuple(sorted(ports[name]))) for name, system in systems.items()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 tests/testbed", description="Debian hosts with systemd and SSH, as containers."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    bed = argparse.ArgumentParser(add_help=False)
    bed.add_argument("--name", type=parse_name, required=True, help="the bed's name")
    bed.add_argument("--state-dir", type=Path, help="folder for its key and ssh_config (default: .testbed/NAME)")

    command = commands.add_parser("up", parents=[bed], help="make or start a bed; harmless when it runs")
    command.add_argument(
        "--host",
        type=parse_host,
        action="append",
        required=True,
        metavar="NAME=SYSTEM",
        help=f"a host of the bed; SYSTEM is one of {', '.join(SYSTEMS)}",
    )
    command.add_argument(
        "--publish",
        type=parse_publish,
        action="append",
        default=[],
        metavar="HOST=PORT_HERE:PORT_THERE",
        help="open a host's port on 127.0.0.1 of this machine",
    )
    command.add_argument(
        "--snapshot", metavar="KEY", help="make hosts from the snapshots of this key, if there are any"
    )
    command.set_defaults(command=up)

    command = commands.add_parser(
        "prepare",
        parents=[bed],
        help="have a snapshot of what a command makes of a bare host; harmless when it is there",
    )
    command.add_argument(
        "--host", type=parse_host, required=True, metavar="NAME=SYSTEM", help="the host; gone afterwards"
    )
    command.add_argument("--snapshot", metavar="KEY", required=True, help="says all that the command's work depends on")
    command.add_argument("work", nargs="+", metavar="COMMAND", help="does the work, by the bed's ssh_config")
    command.set_defaults(command=prepare)

    command = commands.add_parser("down", parents=[bed], help="remove a bed; harmless when there is none")
    command.set_defaults(command=down)

    command = commands.add_parser("status", help="list the beds and their hosts")
    command.set_defaults(command=status)

    command = commands.add_parser("images", help="build the node images only")
    command.add_argument("--system", choices=SYSTEMS, action="append", help="only this one (default: all)")
    command.add_argument("--rebuild", action="store_true", help="build them anew, with today's packages")
    command.set_defaults(command=images)
    return parser


def _default_folder() -> Path:
    return _CHECKOUT / ".testbed"


def _state_folder(options: argparse.Namespace) -> Path:
    folder: Path = options.state_dir or _default_folder() / options.name
    return folder.resolve()


@contextmanager
def _timed(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:6.1f} s  {what}", flush=True)
