# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bare hosts for one measurement: N nodes and a balancer, as containers of the test bed, with their inventory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SYSTEM = "debian-13"
BALANCER = "balancer"
BED_SECONDS = 600  # the first time the images are built


class Hosts:
    """A bed of its own name, so that nobody else's containers are touched; ``inventory`` names its hosts."""

    def __init__(self, nodes: int, folder: Path, model: Path) -> None:
        self.bed = f"bench-{nodes}"
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.folder = folder / self.bed
        self.inventory = self.folder / "hosts.yml"
        self.model = model

    def start(self) -> None:
        """Have the hosts, bare, and the inventory."""
        self.stop()
        (self.folder / "models").mkdir(parents=True)
        hosts = [f"--host={name}={SYSTEM}" for name in [*self.nodes, BALANCER]]
        self._bed("up", *hosts)
        subprocess.run(
            [sys.executable, "molecule/sync/versions.py", self.model, self.folder / "models"],
            cwd=ROOT,
            check=True,
            timeout=60,
        )
        inventory = {
            "llm_nodes": {"hosts": dict.fromkeys(self.nodes)},
            "llm_balancers": {"hosts": {BALANCER: None}},
            "llm_clients": {"hosts": {BALANCER: None}},
        }
        # JSON is YAML, too.
        self.inventory.write_text(json.dumps(inventory, indent=1), encoding="utf-8")
        (self.folder / "group_vars").mkdir()
        shutil.copyfile(Path(__file__).with_name("group_vars.yml"), self.folder / "group_vars" / "all.yml")

    def offer_new_model(self) -> None:
        """Put a file with another digest where the inventory says the model is."""
        draft = self.folder / "models" / "gemma.gguf.new"
        draft.symlink_to("v2.gguf")
        draft.replace(self.folder / "models" / "gemma.gguf")

    def processor_seconds(self) -> float:
        """Processor time that all hosts together have used since they were started."""
        return sum(_container_seconds(f"llm-{self.bed}-{name}") for name in [*self.nodes, BALANCER])

    def stop(self) -> None:
        """Remove the containers and the folder. Harmless when there are none."""
        if self.folder.is_dir():
            self._bed("down")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _bed(self, command: str, *arguments: str) -> None:
        where = [f"--name={self.bed}", f"--state-dir={self.folder / 'state'}"]
        done = subprocess.run(
            [sys.executable, "tests/testbed", command, *where, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=BED_SECONDS,
        )
        if done.returncode:
            raise RuntimeError(f"The test bed's {command} failed:\n{(done.stdout + done.stderr)[-2000:]}")


# Where the kernel says what a container has used, by the version of control groups and by who manages them. Docker's
# own API says 0 on some hosts of version 1.
USAGE = (
    "cpuacct/docker/{}/cpuacct.usage",
    "cpu,cpuacct/docker/{}/cpuacct.usage",
    "cpuacct/system.slice/docker-{}.scope/cpuacct.usage",
    "docker/{}/cpu.stat",
    "system.slice/docker-{}.scope/cpu.stat",
)


def _container_seconds(container: str) -> float:
    command = ["docker", "inspect", "--format", "{{.Id}}", container]
    identity = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    for place in USAGE:
        file = Path("/sys/fs/cgroup") / place.format(identity)
        if file.exists():
            words = file.read_text(encoding="utf-8").split()
            return int(words[0]) / 1e9 if len(words) == 1 else int(words[words.index("usage_usec") + 1]) / 1e6
    raise RuntimeError(f"the kernel does not say here what {container} has used (control groups)")
