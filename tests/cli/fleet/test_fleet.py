# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster's life by ``llm cluster`` alone, on real hosts over SSH: from init until it has grown, synced and shrunk.

The tests are the chapters of one story: they run in this order, and end at the first that fails.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.conftest import ROOT, Place

BED = "cli"
STATE = ROOT / ".testbed" / BED
MODEL = "gemma3:270m"
# The base model continues a text: what the user says is all it gets to see.
SETTINGS = """
llm_engine: llama_cpp
llm_models:
  - {{name: "gemma3:270m", source: {{file: {file}}}, context: 1024, preload: true}}
llm_default_model: "gemma3:270m"
ansible_ssh_common_args: -F {ssh}
llama_cpp_threads: 1
llama_cpp_extra_env:
  LLAMA_ARG_CHAT_TEMPLATE: !unsafe "{{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}"
"""


def bed(*arguments: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "tests/testbed"), *arguments], check=True, stdin=subprocess.DEVNULL)


def on(host: str, command: str) -> str:
    """Run a command on a host of the bed."""
    argv = ["ssh", "-F", str(STATE / "ssh_config"), host, command]
    return subprocess.run(argv, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout


@pytest.fixture(scope="module")
def place(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("fleet")
    subprocess.run([sys.executable, str(ROOT / "tests/demo/model.py"), str(home)], check=True)
    try:
        bed("up", f"--name={BED}", *(f"--host={host}=debian-13" for host in ("balancer", "node1", "node2")))
        yield Place(installed, home)
    finally:
        bed("down", f"--name={BED}")


@pytest.fixture
def office(place: Place) -> Path:
    return place.home / "office"


def told(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    """Check how a command ended, and that it spoke to people."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def key_of(place: Place, office: Path) -> str:
    """The cluster's key, from its vault."""
    shown = place.run("ansible-vault", "view", "group_vars/all/vault.yml", cwd=office).stdout
    return shown.split("vault_llm_key_team_a: ")[1].strip()


def test_init_and_the_first_node(place: Place, office: Path) -> None:
    told(place.cluster("init", "--name", "office", "--user", "root", "--balancer", "balancer"))
    (model,) = place.home.glob("*.gguf")
    # Read after main.yml, whose example is of Ollama.
    settings = SETTINGS.format(file=model, ssh=STATE / "ssh_config")
    (office / "group_vars" / "all" / "ours.yml").write_text(settings)
    output = told(place.cluster("add-node", "node1", "--slots", "2", cwd=office))
    assert "node1 is a node now." in output
    assert "endpoint  balancer    gemma3:270m  streamed" in output


def test_llm_answers_through_it(place: Place, office: Path) -> None:
    told(place.cluster("use", cwd=office))
    answer = place.run("llm", "-m", MODEL, "-o", "max_tokens", "8", "Roses are red,")
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.split()) >= 3


def test_stopped_in_mid_work_it_says_where_and_goes_on(place: Place, office: Path) -> None:
    argv = [str(place.python.parent / "llm"), "cluster", "add-node", "node2", "--slots", "1", "--label", "rack=b"]
    work = subprocess.Popen(
        argv, cwd=office, env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert work.stdout
    for line in work.stdout:
        if "node2: packages" in line:
            break
    time.sleep(1)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert key_of(place, office) not in listed
    work.send_signal(signal.SIGINT)
    rest, _ = work.communicate(timeout=60)
    assert work.returncode == 1
    assert "Stopped in the middle of deploy" in rest
    assert "node2: stopped in" in rest or "node2: idle after" in rest
    assert "node2 is in the inventory, but not all is done" in rest
    output = told(place.cluster("deploy", cwd=office))
    assert "node1 4, node2 4" in output
    logs = (place.home / ".local" / "state" / "llm-cluster" / "office").glob("*.log")
    assert key_of(place, office) not in "".join(log.read_text() for log in logs)


def test_status_stats_and_models(place: Place, office: Path) -> None:
    status = json.loads(told(place.cluster("status", "--json", cwd=office)))
    assert {node: entry["state"] for node, entry in status["nodes"].items()} == {"node1": "up", "node2": "up"}
    stats = told(place.cluster("stats", cwd=office))
    assert "node1: load" in stats
    assert "balancer: requests" in stats
    (model,) = json.loads(told(place.cluster("models", "--json", cwd=office)))
    assert list(model["versions"].values()) == [["node1", "node2"]]


def test_lock_drift_and_sync(place: Place, office: Path) -> None:
    told(place.cluster("lock", "--check", cwd=office), 1)
    told(place.cluster("lock", cwd=office))
    told(place.cluster("lock", "--check", cwd=office))
    told(place.cluster("drift", cwd=office))
    (model,) = place.home.glob("*.gguf")
    # Another version: one byte of a weight.
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    told(place.cluster("lock", "--update", MODEL, cwd=office))
    assert "another version" in told(place.cluster("drift", cwd=office), 3)
    assert "fetch, switch" in told(place.cluster("sync", "--check", cwd=office))
    told(place.cluster("sync", cwd=office))
    told(place.cluster("drift", cwd=office))
    assert "0 changes" in told(place.cluster("sync", cwd=office))


def test_drain_and_resume(place: Place, office: Path) -> None:
    told(place.cluster("drain", "node1", "--reason", "new disk", cwd=office))
    assert "drained by operator" in told(place.cluster("status", cwd=office))
    told(place.cluster("resume", "node1", cwd=office))
    told(place.cluster("verify", cwd=office))


def test_a_node_goes_and_leaves_a_clean_host(place: Place, office: Path) -> None:
    output = told(place.cluster("remove-node", "node2", "--purge-models", cwd=office))
    assert "node2 is out." in output
    assert on("node2", "ls /etc/systemd/system /var/lib | grep -i llama || true") == ""
    status = json.loads(told(place.cluster("status", "--json", cwd=office)))
    assert list(status["nodes"]) == ["node1"]
    answer = place.run("llm", "-m", MODEL, "-o", "max_tokens", "4", "Roses are red,")
    assert answer.returncode == 0, answer.stderr
    told(place.cluster("use", "--undo", cwd=office))
    assert MODEL not in place.run("llm", "models").stdout


def test_a_host_that_is_gone_is_taken_out_without_it(place: Place, office: Path) -> None:
    nodes = office / "nodes.yml"
    nodes.write_text(nodes.read_text().replace("    node1:\n", "    node1:\n    gone:\n"))
    (office / "host_vars" / "gone.yml").write_text("ansible_host: 127.0.0.1\nansible_port: 1\n")
    away = told(place.cluster("remove-node", "gone", cwd=office), 4)
    assert "--leave-host" in away
    told(place.cluster("remove-node", "gone", "--leave-host", cwd=office))
    assert "gone" not in nodes.read_text()
