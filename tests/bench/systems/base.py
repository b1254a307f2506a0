# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What each system under test is: something that listens before peers, started and stopped by the benchmark.

All get the same: the peers with their slots, weights and models, the seconds a request may wait for a slot, and as many
workers as the machine has processors (four at most).
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

WORKERS = min(os.cpu_count() or 1, 4)
QUEUE_SECONDS = 60  # that a request may wait for a slot, wherever that can be said
ANSWER_SECONDS = 300  # that a peer may take to its first byte


@dataclasses.dataclass(frozen=True)
class Peer:
    """An engine that requests can be sent to. weight: its speed, 1.0 being that of an ordinary one."""

    name: str
    address: str
    port: int
    slots: int = 4
    models: tuple[str, ...] = ("m",)
    weight: float = 1.0

    @property
    def capacity(self) -> float:
        """Work that it gets done in a second, in slots of an ordinary peer."""
        return self.slots * self.weight


def weights(peers: list[Peer], most: int = 256) -> dict[str, int]:
    """The peers' capacities as whole numbers from 1 to `most`, by name, for those who know only such."""
    scale = min(100.0, most / max(peer.capacity for peer in peers))
    return {peer.name: max(1, round(peer.capacity * scale)) for peer in peers}


class System:
    """One system under test. While it runs it listens on `address`:`port`."""

    name = ""  # in results and on the command line
    label = ""  # on the page; the name, if it is empty
    for_caches = False  # is it made for engines with caches, so that it takes part only where they have some?

    def __init__(self) -> None:
        self.address = "127.0.0.1"
        self.port = 0
        self.programs: list[Program] = []

    def missing(self) -> str:
        """Why it cannot run here and what to install; empty if it can. May install what it keeps below .build."""
        return ""

    def installed(self) -> bool:
        """Can it run without installing anything first?"""
        return not self.missing()

    def unfit(self, peers: list[Peer]) -> str:
        """Why it has no way to serve these peers; empty if it has one."""
        return ""

    def version(self) -> str:
        raise NotImplementedError

    def start(self, peers: list[Peer], folder: Path) -> None:
        """Listen before these peers; files go to the folder. An error says what the program logged last."""
        raise NotImplementedError

    def run(self, program: Program, answers: Callable[[], bool], seconds: float = 10) -> None:
        """Start a program and wait until the system answers."""
        self.programs.append(program)
        program.start()
        try:
            program.wait(answers, seconds)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        while self.programs:
            self.programs.pop().stop()

    def pids(self) -> list[int]:
        """All its processes now, children included."""
        return [pid for program in self.programs for pid in program.pids()]

    def listens(self, path: str = "/health") -> bool:
        """Does it answer a GET of this path, with any status below 500?"""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


@contextlib.contextmanager
def running(system: System, peers: list[Peer], folder: Path) -> Iterator[System]:
    """The system listens inside of this; afterwards nothing of it is left."""
    system.start(peers, folder)
    try:
        yield system
    finally:
        system.stop()


class Program:
    """A process with its children, in a session of its own, with its output in a file."""

    def __init__(self, argv: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.argv = argv
        self.log = log
        self.environment = environment
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                # It is asked to end also when we are killed and cannot stop it ourselves.
                ["setpriv", "--pdeathsig", "TERM", *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                env=self.environment,
                start_new_session=True,
            )

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        assert self.process
        end = time.monotonic() + seconds
        while not ready():
            if (code := self.process.poll()) is not None:
                raise RuntimeError(f"{self.argv[0]} ended with {code}: {self.tail()}")
            if time.monotonic() > end:
                raise RuntimeError(f"{self.argv[0]} does not answer after {seconds} s: {self.tail()}")
            time.sleep(0.05)

    def tail(self, characters: int = 2000) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else "(no log)"

    def pids(self) -> list[int]:
        return session(self.process.pid) if self.process else []

    def stop(self, seconds: float = 5) -> None:
        """End all of it: asked first, then killed."""
        if not self.process:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if not self.pids():
                    self.process.wait()
                    self.process = None
                    return
                time.sleep(0.02)
        raise RuntimeError(f"{self.argv[0]} cannot be ended: {self.pids()}")


def session(leader: int) -> list[int]:
    """Processes of the session that this one leads, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name) state parent group session …; the name may hold anything
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] not in "ZX":
                    found.append(int(entry.name))
    return found
