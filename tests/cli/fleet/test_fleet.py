# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A cluster's life by ``llm cluster`` alone, on real hosts over SSH: from init until it has grown, synced and shrunk.

The tests are the chapters of one story: they run in this order, and end at the first that fails.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.conftest import ROOT, Place
from cli.fleet.hosts import STATE, hosts, on
from demo.model import fetch

MODEL = "gemma3:270m"
MODELS = """    llm_models:
      - {{name: "gemma3:270m", source: {{file: {file}}}, context: 1024, preload: true}}
"""
# The base model continues a text: what the user says is all it gets to see. Short answers prove as much as long ones.
SETTINGS = """
llm_engine: llama_cpp
llm_endpoint_tls: self_signed
llm_default_model: "gemma3:270m"
ansible_ssh_common_args: -F {ssh}
verify_max_tokens: 4
llama_cpp_threads: 1
llama_cpp_extra_env:
  LLAMA_ARG_CHAT_TEMPLATE: !unsafe "{{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}"
"""


@pytest.fixture(scope="module")
def place(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    home = tmp_path_factory.mktemp("fleet")
    with hosts("balancer", "node1", "node2"):
        try:
            # A copy, because its owner makes another version of it.
            shutil.copyfile(fetch(ROOT / ".build" / "models"), home / "model.gguf")
            yield Place(installed, home)
        finally:
            for model in home.glob("*.gguf"):
                model.unlink()
            # Ansible's connections would stay for ten minutes.
            for socket in (home / ".ansible" / "cp").glob("*"):
                subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "any"], check=False)


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


def ask(place: Place, model: str, **extra: str) -> subprocess.CompletedProcess[str]:
    """Ask a model with llm, as anybody does; trusting what ``use`` has written, unless told otherwise."""
    bundle = str(place.home / "llm" / "llm-cluster-office.pem")
    trusted = {"SSL_CERT_FILE": bundle, **extra}
    return place.run("llm", "-m", model, "-o", "max_tokens", "8", "Roses are red,", cwd=place.home, **trusted)


def test_init_and_a_first_node_that_is_stopped_in_mid_work(place: Place, office: Path) -> None:
    told(place.cluster("init", "--name", "office", "--user", "root", "--balancer", "balancer"))
    # Read after main.yml, whose example is of Ollama.
    settings = SETTINGS.format(ssh=STATE / "ssh_config")
    (office / "group_vars" / "all" / "ours.yml").write_text(settings)
    nodes = (office / "nodes.yml").read_text()
    models = MODELS.format(file=place.home / "model.gguf")
    (office / "nodes.yml").write_text(re.sub(r"    llm_models:\n(?:      .*\n)+", models, nodes, count=1))
    argv = [str(place.python.parent / "llm"), "cluster", "add-node", "node1", "--slots", "2"]
    work = subprocess.Popen(
        argv, cwd=office, env=place.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert work.stdout
    for line in work.stdout:
        if "node1: firewall" in line:
            break
    time.sleep(1)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert key_of(place, office) not in listed
    work.send_signal(signal.SIGINT)
    rest, _ = work.communicate(timeout=60)
    assert work.returncode == 1
    assert "Stopped in the middle of deploy" in rest
    assert "node1: stopped in" in rest or "node1: idle after" in rest
    assert "node1 is in the inventory, but not all is done" in rest
    output = told(place.cluster("deploy", cwd=office))
    assert "endpoint  balancer    gemma3:270m  streamed" in output
    logs = (place.home / ".local" / "state" / "llm-cluster" / "office").glob("*.log")
    assert key_of(place, office) not in "".join(log.read_text() for log in logs)


def test_llm_answers_through_it(place: Place, office: Path) -> None:
    output = told(place.cluster("use", cwd=office))
    assert f"export SSL_CERT_FILE={place.home}/llm/llm-cluster-office.pem" in output
    answer = ask(place, MODEL)
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.split()) >= 3
    # Without the certificate nobody is talked to.
    assert ask(place, MODEL, SSL_CERT_FILE="/etc/ssl/certs/ca-certificates.crt").returncode != 0


def test_it_grows_by_a_node(place: Place, office: Path) -> None:
    output = told(place.cluster("add-node", "node2", "--slots", "1", "--label", "rack=b", cwd=office))
    assert "node2 is a node now." in output


def test_status_stats_and_models(place: Place, office: Path) -> None:
    # On a busy machine a host may take longer to answer than status waits for it.
    for _attempt in range(5):
        status = json.loads(told(place.cluster("status", "--json", cwd=office)))
        states = {node: entry["state"] for node, entry in status["nodes"].items()}
        if "silent" not in states.values():
            break
    assert states == {"node1": "up", "node2": "up"}
    stats = told(place.cluster("stats", cwd=office))
    assert "node1: load" in stats
    assert "balancer: requests" in stats
    (model,) = json.loads(told(place.cluster("models", "--json", cwd=office)))
    assert list(model["versions"].values()) == [["node1", "node2"]]


def test_logs_and_load(place: Place, office: Path) -> None:
    answers = told(place.cluster("logs", "-n", "20", cwd=office))
    assert MODEL in answers
    assert "node1" in answers
    assert told(place.cluster("logs", "node2", "-n", "5", cwd=office)).strip()
    told(place.cluster("load", MODEL, cwd=office))
    assert "--add" in told(place.cluster("load", "tiny", cwd=office), 2)


def test_logs_are_followed(place: Place, office: Path) -> None:
    argv = [str(place.python.parent / "llm"), "cluster", "logs", "-f", "-n", "1"]
    following = subprocess.Popen(argv, cwd=office, env=place.environment, stdout=subprocess.PIPE, text=True)
    assert following.stdout
    before = [following.stdout.readline() for _ in ("heading", "last")]
    assert ask(place, MODEL).returncode == 0
    now = following.stdout.readline()
    assert MODEL in now
    assert now not in before
    following.send_signal(signal.SIGINT)
    assert following.wait(30) == 0


def test_lock_drift_and_sync(place: Place, office: Path) -> None:
    told(place.cluster("lock", "--check", cwd=office), 1)
    told(place.cluster("lock", cwd=office))
    model = place.home / "model.gguf"
    # Another version: one byte of a weight.
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    told(place.cluster("lock", "--update", MODEL, cwd=office))
    assert "another version" in told(place.cluster("drift", cwd=office), 3)
    assert "fetch, switch" in told(place.cluster("sync", "--check", cwd=office))
    told(place.cluster("sync", cwd=office))
    told(place.cluster("drift", cwd=office))


def test_a_model_is_added(place: Place, office: Path) -> None:
    shutil.copyfile(place.home / "model.gguf", place.home / "another.gguf")
    told(place.cluster("load", "another", "--source", str(place.home / "another.gguf"), cwd=office))
    assert "another:" in (office / "models.lock.yml").read_text()
    assert "source" in (office / "nodes.yml").read_text().split("name: another")[1]
    models = {model["name"]: model for model in json.loads(told(place.cluster("models", "--json", cwd=office)))}
    assert list(models["another"]["versions"].values()) == [["node1", "node2"]]
    told(place.cluster("drift", cwd=office))
    told(place.cluster("use", cwd=office))
    answer = ask(place, "another")
    assert answer.returncode == 0, answer.stderr


def test_drain_and_resume(place: Place, office: Path) -> None:
    told(place.cluster("drain", "node1", "--reason", "new disk", cwd=office))
    assert "drained by operator" in told(place.cluster("status", cwd=office))
    told(place.cluster("resume", "node1", cwd=office))
    output = told(place.cluster("verify", cwd=office))
    # Of two models on a node each is a peer of its own.
    assert re.search(r"^endpoint .* node1\S* [1-9]", output, re.MULTILINE), output
    assert re.search(r"^endpoint .* node2\S* [1-9]", output, re.MULTILINE), output


def test_a_node_goes_and_leaves_a_clean_host(place: Place, office: Path) -> None:
    output = told(place.cluster("remove-node", "node2", "--purge-models", cwd=office))
    assert "node2 is out." in output
    assert on("node2", "ls /etc/systemd/system /var/lib | grep -i llama || true") == ""
    status = json.loads(told(place.cluster("status", "--json", cwd=office)))
    assert list(status["nodes"]) == ["node1"]
    answer = ask(place, MODEL)
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


def test_in_the_end_all_is_as_the_lock_says(place: Place, office: Path) -> None:
    told(place.cluster("drift", cwd=office))
    assert "0 changes" in told(place.cluster("sync", cwd=office))
