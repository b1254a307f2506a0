# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A LAN of network namespaces on this machine: each host's link is capped, and what crosses it is counted."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("ip", "tc", "sysctl")
_numbers = itertools.count(1)


class NoNamespacesError(Exception):
    """This machine does not let the test have network namespaces."""


def run(*command: str) -> str:
    """Run a command; its output, and an error that shows what it said."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NoNamespacesError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


class Lan:
    """Hosts on one bridge, which lies in a namespace of its own."""

    def __init__(self, hosts: int, rate_mbit: int) -> None:
        missing = [program for program in PROGRAMS if not shutil.which(program)]
        if missing or os.geteuid():
            raise NoNamespacesError(f"needs root and {', '.join(PROGRAMS)}; missing: {missing or 'root'}")
        self.prefix = f"llmd{os.getpid()}x{next(_numbers)}"
        self.namespaces: list[str] = []
        try:
            self.hub = self._namespace("hub")
            self._inside(self.hub, "ip", "link", "add", "br0", "type", "bridge")
            self._inside(self.hub, "ip", "link", "set", "br0", "mtu", "9000", "up")
            # Host 0 is the one beyond the internet link.
            for number in range(hosts + 1):
                self._host(number, rate_mbit)
        except NoNamespacesError:
            self.destroy()
            raise

    def _namespace(self, name: str) -> str:
        whole = f"{self.prefix}{name}"
        run("ip", "netns", "add", whole)
        self.namespaces.append(whole)
        run("ip", "-n", whole, "link", "set", "lo", "up")
        return whole

    def _inside(self, namespace: str, *command: str) -> str:
        return run("ip", "netns", "exec", namespace, *command)

    def _host(self, number: int, rate_mbit: int) -> None:
        namespace = self._namespace(f"h{number}")
        port = f"p{number}"
        run("ip", "-n", self.hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "-n", self.hub, "link", "set", port, "mtu", "9000", "master", "br0", "up")
        run("ip", "-n", namespace, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "mtu", "9000", "up")
        # What leaves the host, and what reaches it.
        cap = ("tbf", "rate", f"{rate_mbit}mbit", "burst", "256kb", "latency", "100ms")
        self._inside(namespace, "tc", "qdisc", "add", "dev", "eth0", "root", *cap)
        self._inside(self.hub, "tc", "qdisc", "add", "dev", port, "root", *cap)

    @staticmethod
    def address(number: int) -> str:
        """A host's address."""
        return f"10.77.0.{number + 1}"

    def enter(self, number: int) -> list[str]:
        """The beginning of a command that is to run on a host."""
        return ["ip", "netns", "exec", f"{self.prefix}h{number}"]

    def sent(self, number: int) -> int:
        """Bytes that a host has put on its link, headers and repetitions included."""
        return int(self._inside(f"{self.prefix}h{number}", "cat", "/sys/class/net/eth0/statistics/tx_bytes"))

    def destroy(self) -> None:
        """Remove the namespaces, and with them their links."""
        for namespace in reversed(self.namespaces):
            subprocess.run(["ip", "netns", "delete", namespace], check=False)
        self.namespaces = []


def leftovers() -> list[str]:
    """Namespaces of this process that are still there."""
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(f"llmd{os.getpid()}x")]


def mount_small(path: Path, size: int) -> None:
    """Put a small file system at a folder."""
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path))
