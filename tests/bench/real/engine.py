# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real llama.cpp with Gemma 3 270M on this machine: the role's version, launcher and settings, without its unit."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from balancer.harness import free_port
from bench.scenarios import MissingError
from bench.systems.base import Peer, Program, System
from demo.model import fetch

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / ".build" / "bench"
MODEL = "gemma3:270m"
CONTEXT = 2048  # tokens of a slot
START_SECONDS = 60
INSTALL_SECONDS = 600
# The base model continues a text and knows no chat: what was said is all that it gets to see.
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
# Common words, each a token of its own to most models.
WORDS = """\
the of and to in is that it was for on are as with his they be at one have this from or had by but some what there
we can out other were all your when up use word how said an each she which do their time if will way about many then
them would write like so these her long make thing see him two has look more day could go come did my sound no most
number who over know water than call first people may down side been now find
"""


def defaults() -> dict[str, Any]:
    """The role's."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "roles/llama_cpp/defaults/main.yml").read_text(encoding="utf-8"))
    return found


def version() -> str:
    """Of the wheel that the role installs."""
    return str(defaults()["llama_cpp_version"])


def python() -> Path:
    """The interpreter of an environment that holds the engine, made on first use. The role says which version.

    :raises MissingError: when pip can't have it
    """
    wanted = version()
    hashes = " ".join(f"--hash={each}" for each in defaults()["llama_cpp_wheel_hashes"][wanted])
    folder = BUILD / f"xllamacpp-{wanted}"
    interpreter = folder / "bin" / "python"
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True, timeout=INSTALL_SECONDS)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"xllamacpp=={wanted} {hashes}\n", encoding="utf-8")
        command = [str(interpreter), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
        if done.returncode:
            raise MissingError(f"pip could not install xllamacpp {wanted}: {done.stderr.strip()[-300:]}")
        (folder / "whole").touch()
    return interpreter


class LlamaCpp(System):
    """One engine. Its requests wait inside of it when its slots are taken."""

    name = "llama_cpp"

    def __init__(self, slots: int, threads: int) -> None:
        super().__init__()
        self.slots, self.threads = slots, threads
        self.port = free_port()

    def peer(self, name: str) -> Peer:
        return Peer(name, self.address, self.port, self.slots, (MODEL,))

    def start(self, peers: list[Peer], folder: Path) -> None:
        settings = {
            "MODEL": fetch(BUILD / "model"),
            "ALIAS": MODEL,
            "HOST": self.address,
            "PORT": self.port,
            "N_PARALLEL": self.slots,
            "CTX_SIZE": CONTEXT * self.slots,
            "KV_UNIFIED": 0,
            "CACHE_RAM": 1024,
            "ENDPOINT_SLOTS": 1,
            "UI": 0,
            "OFFLINE": 1,
            "THREADS": self.threads,
            "CHAT_TEMPLATE": TEMPLATE,
        }
        environment = {**os.environ, **{f"LLAMA_ARG_{name}": str(value) for name, value in settings.items()}}
        launcher = ROOT / "roles/llama_cpp/files/llama_server.py"
        program = Program([str(python()), str(launcher)], folder / f"engine-{self.port}.log", environment)
        self.run(program, self.healthy, START_SECONDS)

    def healthy(self) -> bool:
        """Not only listening: while it loads it answers 503, which listens() takes for no."""
        return self.listens("/health")


@contextlib.contextmanager
def engines(count: int, slots: int, threads: int, folder: Path) -> Iterator[list[Peer]]:
    """So many engines, as peers real1, real2 …"""
    with contextlib.ExitStack() as stack:
        peers = []
        for number in range(1, count + 1):
            engine = LlamaCpp(slots, threads)
            engine.start([], folder)
            stack.callback(engine.stop)
            peers.append(engine.peer(f"real{number}"))
        yield peers


def words(source: random.Random, count: int) -> str:
    """About as many tokens."""
    return " ".join(source.choices(WORDS.split(), k=count)) + ". "


def chat(messages: list[dict[str, str]], tokens: int) -> dict[str, Any]:
    """A request for just so many tokens, whose answer says how much of the prompt was cached."""
    return {
        "model": MODEL,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
