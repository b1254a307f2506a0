# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wheel in a virtual environment of its own, away from the checkout; and the real ``llm`` run from there."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import socketserver
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from simulated.admin_api import AdminHandler, served

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Place:
    """A user with an ``llm`` of their own: environment, home, settings."""

    python: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the user's shell has; Ansible's programs are not on its PATH."""
        passed = ("LANG", "SSL_CERT_FILE", "PIP_CERT", "PIP_FIND_LINKS", "HTTPS_PROXY", "https_proxy")
        return {
            **{name: os.environ[name] for name in passed if name in os.environ},
            "HOME": str(self.home),
            "LLM_USER_PATH": str(self.home / "llm"),
            "PATH": "/usr/bin:/bin",
            "COLUMNS": "200",
            "SECRET_OF_THE_USER": "not-for-playbooks",
        }

    def run(self, *arguments: str | Path, cwd: Path | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment."""
        program = self.python.parent / arguments[0]
        return subprocess.run(
            [str(program), *map(str, arguments[1:])],
            cwd=cwd or self.home,
            env={**self.environment, **extra},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    def cluster(
        self, *arguments: str | Path, cwd: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Run ``llm cluster …``."""
        return self.run("llm", "cluster", *arguments, cwd=cwd, **extra)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(argv, cwd=ROOT / "cli", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel in it; one for all processes of pytest."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    python = shared / "venv" / "bin" / "python"
    with (shared / "venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "venv.made").exists():
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(shared / "venv")], check=True)
            pip(python, "install", "--no-compile", "--constraint", str(ROOT / "tests" / "constraints.txt"), str(wheel))
            (shared / "venv.made").touch()
    return python


def pip(python: Path, *arguments: str) -> None:
    """Run our pip on an environment, which so needs none. What is never imported need not be compiled."""
    argv = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", f"--python={python}", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def place(installed: Path, tmp_path: Path) -> Place:
    (tmp_path / "home").mkdir()
    return Place(installed, tmp_path / "home")


class SimulatedBalancer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """SIMULATED: a balancer's admin API with nodes that can be drained. What is put to it is kept in ``marks``."""

    daemon_threads = True

    def __init__(self, path: Path, nodes: list[str]) -> None:
        super().__init__(str(path), Handler)
        self.nodes = nodes
        self.marks: dict[str, dict[str, str]] = {}
        self.busy = 0

    def state(self) -> dict[str, Any]:
        marks = [
            {"name": name, "owner": owner, "reason": reason, "since": 1}
            for name, owners in self.marks.items()
            for owner, reason in owners.items()
        ]
        request = {"id": "r1", "model": "m", "key": "team-a", "seconds": 3.2, "ending": False}
        peers: list[dict[str, Any]] = [
            {
                "name": name,
                "node": name,
                "state": "drained" if self.marks.get(name) else "up",
                "busy": self.busy,
                "in_flight": [request] * self.busy or {},
                "drains": [mark for mark in marks if mark["name"] == name],
            }
            for name in self.nodes
        ]
        return {"version": 1, "peers": peers, "drains": marks}


class Handler(AdminHandler, BaseHTTPRequestHandler):
    server: SimulatedBalancer

    def do_GET(self) -> None:
        self.answer(200, self.server.state())

    def do_POST(self) -> None:
        asked = self.asked()
        _, _, name, action = self.path.split("/")
        marks = self.server.marks.setdefault(unquote(name), {})
        if action == "drain":
            marks[asked["owner"]] = asked["reason"]
        else:
            marks.pop(asked["owner"], None)
        self.answer(200, {"changed": True, "peers": []})


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[SimulatedBalancer]:
    server = SimulatedBalancer(tmp_path / "admin.sock", ["node1", "node2"])
    with served(server):
        yield server


@pytest.fixture(scope="session")
def home_with_cluster(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's home with a new cluster in it, to copy."""
    first = Place(installed, tmp_path_factory.mktemp("home"))
    made = first.cluster("init", "office")
    assert made.returncode == 0, made.stderr
    return first.home


@pytest.fixture
def folder(place: Place, home_with_cluster: Path, balancer: SimulatedBalancer, tmp_path: Path) -> Path:
    """A cluster on this machine: its balancer's admin API is the simulated one, its hosts are reached without SSH."""
    shutil.copytree(home_with_cluster, place.home, dirs_exist_ok=True)
    office = place.home / "office"
    hosts = "    node1:\n    node2:\n"
    nodes = (office / "nodes.yml").read_text()
    nodes = nodes.replace("llm_nodes:\n  hosts:\n", f"llm_nodes:\n  hosts:\n{hosts}")
    nodes = nodes.replace("llm_balancers:\n  hosts:\n", "llm_balancers:\n  hosts:\n    balancer:\n")
    (office / "nodes.yml").write_text(nodes)
    (office / "group_vars" / "all" / "here.yml").write_text(
        f"ansible_connection: local\nansible_become: false\nansible_python_interpreter: {sys.executable}\n"
        f"balancer_admin_socket: {tmp_path / 'admin.sock'}\n"
    )
    return office


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def processes_of(folder: Path) -> list[str]:
    """Ansible's processes that work on a cluster's folder."""
    listed = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "ansible-playbook" in line and str(folder) in line]


Cluster = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cluster(place: Place, folder: Path) -> Cluster:
    """Run ``llm cluster …`` in the cluster's folder."""

    def run(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        return place.cluster(*arguments, cwd=folder, **extra)

    return run
