# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts of Molecule's scenario sync, and what the tests do to them.

Two nodes have llama.cpp and a real model, two a SIMULATED Ollama. One of these is also the balancer and the SIMULATED
registry.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import yaml
from e2e.demo_cluster import ROOT, PlaybookRun, playbook_environment, run_playbook

NAME = "mol-sync"
FOLDER = ROOT / ".testbed" / NAME
INVENTORY = "molecule/sync/inventory/"
KEY = "not-a-secret-only-of-this-test-bed"
BALANCER = UPSTREAM = "ollama-1"
LLAMA, OLLAMA = ("llama-1", "llama-2"), ("ollama-1", "ollama-2")
GEMMA, TINY = "gemma3:270m", "tiny:1"
ENGINE = {GEMMA: "llama_cpp", TINY: "ollama"}
UNIT = "llama-cpp@gemma3-270m.service"
STORE = "/var/lib/llama-cpp"


def wait_for(condition: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Wait until the condition holds, looking five times a second."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


@dataclass
class Answer:
    """One answer of the endpoint."""

    asked: float
    peer: str
    text: str


@dataclass
class Load:
    """What clients that ask without pause have seen of each model."""

    answers: dict[str, list[Answer]] = field(default_factory=lambda: {GEMMA: [], TINY: []})
    failed: list[str] = field(default_factory=list)


class Bed:
    """Access to the hosts, to Ansible and to what is simulated; ``folder`` is the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, Any] = json.loads((FOLDER / "hosts.json").read_text())

    def address(self, host: str) -> str:
        return str(self.hosts[host]["address"])

    # Hosts

    def ssh(self, host: str, command: str, *, check: bool = True) -> str:
        """Run a command on a host and return what it printed."""
        done = subprocess.run(
            ["ssh", "-F", str(FOLDER / "ssh_config"), "-o", "ConnectTimeout=5", host, command],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
        assert not check or done.returncode == 0, f"{host}: {command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def state(self) -> dict[str, Any]:
        """What the balancer thinks."""
        answer = self.ssh(BALANCER, "curl --silent --fail --unix-socket /run/llm-cluster/admin.sock http://x/state")
        state: dict[str, Any] = json.loads(answer)
        return state

    def drains(self) -> set[tuple[str, str]]:
        """(node, owner) of each drain mark; Lua writes an empty list as an object."""
        return {(mark["name"], mark["owner"]) for mark in list(self.state()["drains"] or [])}

    def reason(self, node: str) -> str:
        """The reason of a sync's drain mark on a node, empty if there is none."""
        marks = {(mark["name"], mark["owner"]): str(mark["reason"]) for mark in list(self.state()["drains"] or [])}
        return marks.get((node, "sync"), "")

    def up(self, node: str) -> bool:
        return all(peer["state"] == "up" for peer in self.state()["peers"] if peer["node"] == node)

    def served(self, node: str) -> str:
        """The digest that a node serves under its model's name."""
        if node in LLAMA:
            link = self.ssh(node, f"readlink {STORE}/models/current/gemma3-270m.gguf", check=False)
            return Path(link.strip()).name.removesuffix(".gguf").replace("-", ":", 1)
        return self._tags(node, "tags").get(TINY, "")

    def loaded(self, node: str) -> str:
        """The digest of what is in a node's memory, as the kernel or the engine says."""
        if node in LLAMA:
            pid = self.ssh(node, f"systemctl show --value --property MainPID {UNIT}").strip()
            mapped = self.ssh(node, f"grep -o 'sha256-[0-9a-f]*.gguf.*' /proc/{pid}/maps | sort -u").split("\n")
            return mapped[0].removesuffix(".gguf").replace("-", ":", 1)
        return self._tags(node, "ps").get(TINY, "")

    def _tags(self, node: str, what: str) -> dict[str, str]:
        models = self.ollama(node, "GET", what)["models"]
        return {model["name"]: "sha256:" + model["digest"] for model in models}

    def ollama(self, node: str, method: str, what: str, **body: Any) -> Any:
        """Ask a node's Ollama, from the node itself because the firewall lets nobody else in; return its answer."""
        request = (
            f"urllib.request.Request({self._ollama(node, what)!r}, {json.dumps(body)!r}.encode(), method={method!r})"
        )
        script = f"import urllib.request; print(urllib.request.urlopen({request}).read().decode())"
        answer = self.ssh(node, f"python3 -c {shlex.quote(script)}").strip()
        return json.loads(answer) if answer else None

    def _ollama(self, node: str, what: str) -> str:
        return f"http://{self.address(node)}:8000/api/{what}"

    def started(self, node: str) -> str:
        """When a llama.cpp node's engine started."""
        return self.ssh(node, f"systemctl show --value --property ExecMainStartTimestampMonotonic {UNIT}").strip()

    # What there is to sync

    def offered_gemma(self) -> str:
        """Which version of the GGUF file is where the inventory says it is."""
        return (FOLDER / "models" / "gemma.gguf").readlink().stem

    def offer_gemma(self, version: str = "") -> None:
        """Put another version of the GGUF file there; by default the other of the two that work."""
        new = FOLDER / "models" / "gemma.gguf.new"
        new.symlink_to((version or ("v1" if self.offered_gemma() == "v2" else "v2")) + ".gguf")
        new.replace(FOLDER / "models" / "gemma.gguf")

    def offer_tiny(self) -> None:
        """Move the tag in the registry to something new; the version before is no longer there."""
        self.ssh(UPSTREAM, f"echo MODEL=library/tiny:1={time.time_ns()} > /etc/simulated-upstream")
        self.ssh(UPSTREAM, "systemctl restart simulated-upstream.service")
        self.heal()

    def fault(self, **what: Any) -> None:
        """Have the registry misbehave."""
        self._faults(urllib.request.Request(self._faults_url(), json.dumps(what).encode(), method="POST"))

    def heal(self) -> None:
        """Wait until the registry is there, and have it behave."""

        def behaves() -> bool:
            try:
                self._faults(urllib.request.Request(self._faults_url(), method="DELETE"))
            except OSError:
                return False
            return True

        wait_for(behaves, 30, "the simulated registry does not answer")

    def _faults_url(self) -> str:
        return f"http://{self.address(UPSTREAM)}:5000/_faults"

    @staticmethod
    def _faults(request: urllib.request.Request) -> None:
        with urllib.request.urlopen(request, timeout=5):
            pass

    # Ansible

    def playbook(self, name: str, *arguments: str, **environment: str) -> PlaybookRun:
        run = run_playbook(INVENTORY, f"playbooks/{name}.yml", *arguments, folder=self.folder, **environment)
        print(f"{name} {' '.join(arguments)}: {run.seconds:.1f} s, exit code {run.code}")
        return run

    def well(self, name: str, *arguments: str, **environment: str) -> PlaybookRun:
        run = self.playbook(name, *arguments, **environment)
        assert run.code == 0, run.output[-6000:]
        return run

    def lock(self) -> dict[str, str]:
        """Lock what the sources have now; return the digests by model."""
        self.well("lock", "-e", "lock_update=all")
        return self.locked()

    def locked(self) -> dict[str, str]:
        """Return the locked digests by model."""
        models = yaml.safe_load((FOLDER / "models.lock.yml").read_text())["models"]
        return {name: engines[ENGINE[name]]["digest"] for name, engines in models.items()}

    def drift(self) -> tuple[PlaybookRun, dict[str, Any]]:
        run = self.playbook("drift")
        return run, self.result()

    def result(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((FOLDER / "result.json").read_text())
        return result

    def begin_sync(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a sync in a process group of its own, to be killed."""
        return subprocess.Popen(
            ["ansible-playbook", "-i", INVENTORY, "playbooks/sync.yml", *arguments],
            cwd=ROOT,
            env=playbook_environment(self.folder / "begun.json"),
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "begun.log").open("wb"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    # Clients

    @contextlib.contextmanager
    def load(self, clients: int = 2) -> Iterator[Load]:
        """Have so many clients ask for each model without pause."""
        client = openai.OpenAI(base_url=f"http://{self.address(BALANCER)}/v1", api_key=KEY, max_retries=0, timeout=90)
        seen, stop = Load(), threading.Event()

        def keep_asking(model: str) -> None:
            while not stop.is_set():
                asked = time.monotonic()
                try:
                    answer = client.chat.completions.with_raw_response.create(
                        model=model, messages=[{"role": "user", "content": "Count: one, two,"}], max_tokens=16
                    )
                    text = answer.parse().choices[0].message.content or ""
                    seen.answers[model].append(Answer(asked, answer.headers["X-LLM-Peer"], text))
                except openai.OpenAIError as error:
                    seen.failed.append(f"{model}: {error}")
                time.sleep(0.02 if model == TINY else 0)

        threads = [
            threading.Thread(target=keep_asking, args=(model,)) for model in (GEMMA, TINY) for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            yield seen
        finally:
            stop.set()
            for thread in threads:
                thread.join()
