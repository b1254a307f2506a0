# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``llm cluster …`` as users type it, on a cluster whose hosts are this machine."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import time
from pathlib import Path

import yaml
from cli.conftest import Cluster, Place, SimulatedBalancer, closed_port, processes_of


def log_of(output: str) -> Path:
    return Path(output.split("log: ")[1].splitlines()[0])


def test_init_makes_an_ordinary_inventory_with_a_key_that_only_the_user_can_read(place: Place) -> None:
    made = place.cluster("init", "--name", "office", "--user", "ada", "--balancer", "192.0.2.10:2222")
    assert made.returncode == 0, made.stderr
    office = place.home / "office"
    example = yaml.safe_load((Path(__file__).parents[2] / "inventories/example/group_vars/all/main.yml").read_text())
    models = {"llm_models": example.pop("llm_models")}
    assert yaml.safe_load((office / "group_vars/all/main.yml").read_text()) == {**example, "ansible_user": "ada"}
    assert yaml.safe_load((office / "nodes.yml").read_text())["all"] == {"vars": models}
    (password,) = (place.home / ".config" / "llm-cluster").iterdir()
    assert stat.S_IMODE(password.stat().st_mode) == 0o600
    assert password.read_text().strip() not in made.stdout + made.stderr
    assert (office / "group_vars/all/vault.yml").read_text().startswith("$ANSIBLE_VAULT")

    shown = place.run("ansible-inventory", "--list", cwd=office)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    variables = found["_meta"]["hostvars"]["192.0.2.10"]
    assert found["llm_balancers"]["hosts"] == ["192.0.2.10"]
    assert variables["ansible_port"] == 2222
    assert len(variables["vault_llm_key_team_a"]) == 48
    assert "vault.yml" not in shown.stderr

    again = place.cluster("init", "office")
    assert (again.returncode, "There is a cluster in" in again.stderr) == (2, True)


def test_init_leaves_nothing_behind_when_it_fails(place: Place) -> None:
    (place.home / "office").mkdir()
    (place.home / "office" / "ansible.cfg").write_text("[defaults]\n")
    refused = place.cluster("init", "office")
    assert refused.returncode == 2
    assert "holds ansible.cfg already" in refused.stderr
    assert [item.name for item in (place.home / "office").iterdir()] == ["ansible.cfg"]
    assert not list((place.home / ".config").glob("*/*.vault"))


def test_without_a_cluster_it_says_how_to_make_one(place: Place) -> None:
    lost = place.cluster("verify")
    assert lost.returncode == 2
    assert "llm cluster init" in lost.stderr
    assert "LLM_CLUSTER_DIR" in lost.stderr
    wrong = place.cluster("verify", LLM_CLUSTER_DIR="/nowhere")
    assert wrong.returncode == 2
    assert "LLM_CLUSTER_DIR says /nowhere" in wrong.stderr


def test_drain_and_resume(cluster: Cluster, balancer: SimulatedBalancer, folder: Path, place: Place) -> None:
    drained = cluster("drain", "node1", "--reason", "new disk")
    assert drained.returncode == 0, drained.stdout + drained.stderr
    assert balancer.marks["node1"] == {"operator": "new disk"}
    assert "balancer: Drain the node on every balancer" in drained.stderr
    assert "drain: done" in drained.stdout
    log = log_of(drained.stdout)
    assert "TASK [Give it nothing new]" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600

    # From a folder below, quietly.
    resumed = place.cluster("resume", "node1", "--quiet", cwd=folder / "group_vars" / "all")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == ""
    assert balancer.marks["node1"] == {}


def test_a_drain_that_takes_too_long_names_what_still_runs(cluster: Cluster, balancer: SimulatedBalancer) -> None:
    balancer.busy = 1
    late = cluster("drain", "node1", "--timeout", "1")
    assert late.returncode == 1
    assert "balancer: failed at: Wait until it has finished what it works on" in late.stderr
    assert "r1" in late.stderr
    assert "Traceback" not in late.stderr
    assert "{" not in late.stderr


def test_ctrl_c_stops_cleanly_and_says_how_things_stand(
    place: Place, folder: Path, balancer: SimulatedBalancer, tmp_path: Path
) -> None:
    balancer.busy = 1
    (tmp_path / "tmp").mkdir()
    working = subprocess.Popen(
        [str(place.python.parent / "llm"), "cluster", "drain", "node1"],
        cwd=folder,
        env={**place.environment, "TMPDIR": str(tmp_path / "tmp")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    logs = place.home / ".local" / "state" / "llm-cluster" / "office"
    deadline = time.monotonic() + 60
    while "Wait until" not in "".join(log.read_text() for log in logs.glob("*.log")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    assert balancer.marks.get("node1")
    (private,) = (tmp_path / "tmp").glob("llm-cluster-*")
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    kept = "".join(file.read_text() for file in private.rglob("*") if file.is_file())
    assert "SECRET_OF_THE_USER" not in kept
    assert "team-a" in kept or "node1" in kept
    assert len(processes_of(folder)) > 1
    began = time.monotonic()
    working.send_signal(signal.SIGINT)
    output, errors = working.communicate(timeout=40)
    assert time.monotonic() - began < 15
    assert working.returncode == 1, errors
    assert "Stopped in the middle of drain" in errors
    assert "balancer: stopped in Drain the node on every balancer, at: Wait until" in errors
    assert "Run the same command again" in errors
    assert "Traceback" not in output + errors
    assert not list((tmp_path / "tmp").glob("llm-cluster-*"))
    # Ansible's workers have sessions of their own; none of them goes on until its module ends.
    assert processes_of(folder) == []


class Terminal:
    """A real terminal, in which a command runs; then it shows the command's exit code."""

    def __init__(self, place: Place, folder: Path, command: str) -> None:
        self.session = f"llm-cluster-{place.home.parent.name}"
        # Its width is its own.
        self.environment = {name: value for name, value in place.environment.items() if name != "COLUMNS"}
        shown = f"echo before; {place.python.parent / 'llm'} cluster {command}; echo ended with $?; read wait"
        self.tmux("new-session", "-d", "-x", "120", "-y", "24", "-c", str(folder), shown)

    def tmux(self, *arguments: str) -> str:
        """Ask tmux."""
        argv = ["tmux", "-L", self.session, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=True, env=self.environment).stdout

    def seen(self, words: str) -> str:
        """Wait until words are on the screen, and return the screen."""
        deadline = time.monotonic() + 90
        while words not in (screen := self.tmux("capture-pane", "-p")):
            assert time.monotonic() < deadline, screen
            time.sleep(0.1)
        return screen

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        self.tmux("kill-server")


def test_on_a_terminal_there_is_a_live_table(place: Place, folder: Path, balancer: SimulatedBalancer) -> None:
    balancer.busy = 1
    with Terminal(place, folder, "drain node1") as terminal:
        live = terminal.seen("Wait until it has finished")
        assert "host" in live
        assert "phase" in live
        assert "balancer  Drain the node on every" in live
        balancer.busy = 0
        done = terminal.seen("drain: done")
        # The table is gone; what is left is the summary.
        assert "phase" not in done


def test_a_terminal_that_is_closed_stops_as_cleanly_as_ctrl_c(
    place: Place, folder: Path, balancer: SimulatedBalancer
) -> None:
    balancer.busy = 1
    terminal = Terminal(place, folder, "drain node1")
    try:
        terminal.seen("Wait until it has finished")
        time.sleep(1)
        assert processes_of(folder)
    finally:
        terminal.tmux("kill-server")
    log = log_of(place_log(place))
    deadline = time.monotonic() + 30
    while (processes_of(folder) or "interrupted" not in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(folder) == []
    assert "User interrupted execution" in log.read_text()


def test_watching_shows_one_screen_that_is_drawn_anew(place: Place, folder: Path, balancer: SimulatedBalancer) -> None:
    def drawn(screen: str) -> str:
        """When it was drawn."""
        (stamp,) = re.findall(r"^(\d\d:\d\d:\d\d)  Ctrl-C ends it$", screen, re.M)
        return str(stamp)

    with Terminal(place, folder, "stats --watch 1") as terminal:
        terminal.seen("Looking; Ctrl-C ends it")
        first = later = terminal.seen("  Ctrl-C ends it")
        assert "before" not in first
        deadline = time.monotonic() + 90
        while drawn(later) == drawn(first):
            assert time.monotonic() < deadline, later
            time.sleep(0.2)
            later = terminal.seen("  Ctrl-C ends it")
        # In its place, not below it: drawn() found one stamp.
        for node in ("node1", "node2"):
            assert later.count(node) == first.count(node) > 0, later
        terminal.tmux("send-keys", "C-c")
        # What was on the screen is there again, and nothing else.
        assert terminal.seen("ended with 0").split() == ["before", "ended", "with", "0"]
    # What only looks leaves no log that pushes those of work out.
    assert not list((place.home / ".local" / "state" / "llm-cluster" / "office").iterdir())


def test_a_host_that_can_not_be_reached_is_told_in_the_words_of_ssh(cluster: Cluster, folder: Path) -> None:
    (folder / "host_vars" / "balancer.yml").write_text(
        f"ansible_connection: ssh\nansible_host: 127.0.0.1\nansible_port: {closed_port()}\n"
    )
    away = cluster("drain", "node1")
    assert away.returncode == 4, away.stderr
    assert "Connection refused" in away.stderr
    assert "1. The host is off, or its address or port is wrong" in away.stderr
    assert "2. The user or the key" in away.stderr
    assert "3. This machine doesn't know" in away.stderr


def test_add_node_checks_first_and_writes_only_what_is_fit(cluster: Cluster, folder: Path) -> None:
    before = (folder / "nodes.yml").read_text()
    away = cluster("add-node", f"127.0.0.1:{closed_port()}", "--name", "node3", "--no-deploy")
    # The hosts of this cluster are reached without SSH; this one is to be what it says.
    assert away.returncode != 0
    assert (folder / "nodes.yml").read_text() == before
    # Both nodes have one address: what site.yml would refuse is refused here, before anything is written.
    assert "Nothing was changed. Please mend the inventory" in away.stderr
    assert "Traceback" not in away.stderr
    assert not [item for item in folder.iterdir() if item.name.startswith(".new-")]


def test_add_node_writes_a_fit_host_and_remove_node_takes_it_out(
    cluster: Cluster, folder: Path, balancer: SimulatedBalancer
) -> None:
    for number, host in enumerate(("balancer", "node1", "node2"), 10):
        (folder / "host_vars" / f"{host}.yml").write_text(f"llm_address: 192.0.2.{number}\n")
    before = (folder / "nodes.yml").read_text()
    arguments = ("--slots", "8", "--weight", "2", "--label", "rack=b", "--label", "gpus=2,4", "--no-deploy")
    added = cluster("add-node", "192.0.2.13", "--name", "node3", *arguments)
    assert added.returncode == 0, added.stdout + added.stderr
    assert "node3 is in the inventory" in added.stdout
    assert (folder / "nodes.yml").read_text() == before.replace("    node2:\n", "    node2:\n    node3:\n")
    assert yaml.safe_load((folder / "host_vars" / "node3.yml").read_text()) == {
        "ansible_host": "192.0.2.13",
        "llm_node_slots": 8,
        "llm_node_weight": 2.0,
        "llm_node_labels": {"rack": "b", "gpus": [2, 4]},
    }
    again = cluster("add-node", "node3")
    assert (again.returncode, "in the inventory already" in again.stderr) == (2, True)


BAD_INPUT = [
    (("drain", "node11"), "Did you mean node1 or node2?"),
    (("add-node", "h:99999"), "port is 99999; it must be from 1 to 65535"),
    (("drian", "node1"), "Did you mean drain or drift?"),
]


def test_bad_input(cluster: Cluster, balancer: SimulatedBalancer) -> None:
    for arguments, words in BAD_INPUT:
        refused = cluster(*arguments)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    assert balancer.marks == {}


def test_broken_yaml_is_named_with_file_and_line(cluster: Cluster, folder: Path) -> None:
    (folder / "more.yml").write_text("a:\n  hosts: [\n")
    broken = cluster("drain", "node1")
    assert broken.returncode == 1
    assert f"{folder / 'more.yml'}:3: this is not YAML" in broken.stderr
    (folder / "more.yml").unlink()
    (folder / "group_vars" / "all" / "other.yml").write_text("a: 1\nb: [\n")
    broken = cluster("drain", "node1")
    assert broken.returncode == 1
    assert f"{folder / 'group_vars' / 'all' / 'other.yml'}:3: this is not YAML" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_a_missing_vault_password_is_said_before_anything_runs(cluster: Cluster, place: Place) -> None:
    (password,) = (place.home / ".config" / "llm-cluster").iterdir()
    password.rename(place.home / "elsewhere")
    missing = cluster("drain", "node1")
    assert missing.returncode == 1
    assert "group_vars/all/vault.yml is encrypted, and the file with its password is not here" in missing.stderr


def test_use_sets_up_llm_with_the_vaults_key_and_undo_takes_it_out(
    cluster: Cluster, folder: Path, place: Place
) -> None:
    (folder / "host_vars" / "balancer.yml").write_text("llm_address: 192.0.2.10\n")
    settings = place.home / "llm"
    settings.mkdir(exist_ok=True)
    (settings / "extra-openai-models.yaml").write_text(
        "- model_id: mine\n  model_name: mine\n  api_base: http://x/v1\n"
    )
    used = cluster("use")
    assert used.returncode == 0, used.stdout + used.stderr
    assert "http://192.0.2.10" in used.stdout
    key = json.loads((settings / "keys.json").read_text())["llm-cluster-office"]
    assert len(key) == 48
    assert key not in used.stdout + used.stderr + log_of(place_log(place)).read_text()
    models = place.run("llm", "models").stdout
    assert "gemma3:4b" in models
    assert "mine" in models
    undone = cluster("use", "--undo")
    assert undone.returncode == 0, undone.stderr
    assert "gemma3:4b" not in place.run("llm", "models").stdout
    assert not (settings / "keys.json").exists() or key not in (settings / "keys.json").read_text()
    assert "mine" in (settings / "extra-openai-models.yaml").read_text()


def test_use_has_llm_trust_a_self_signed_endpoint_and_undo_takes_that_back(
    cluster: Cluster, folder: Path, place: Place, tmp_path: Path
) -> None:
    certificate, known = ("-----BEGIN CERTIFICATE-----\n" + text + "\n-----END CERTIFICATE-----\n" for text in "ab")
    (tmp_path / "endpoint.crt").write_text(certificate)
    (tmp_path / "known.pem").write_text(known)
    (folder / "host_vars" / "balancer.yml").write_text("llm_address: 192.0.2.10\n")
    (folder / "group_vars" / "all" / "tls.yml").write_text(
        f"llm_endpoint_tls: self_signed\nbalancer_tls_certificate: {tmp_path / 'endpoint.crt'}\n"
    )
    used = cluster("use", SSL_CERT_FILE=str(tmp_path / "known.pem"))
    assert used.returncode == 0, used.stdout + used.stderr
    bundle = place.home / "llm" / "llm-cluster-office.pem"
    assert f"\n  export SSL_CERT_FILE={bundle}\n" in used.stdout
    assert bundle.read_text() == f"{known}\n# office\n{certificate}".replace("\n\n#", "\n#")
    undone = cluster("use", "--undo")
    assert f"Taken out of {bundle}." in undone.stdout
    assert not bundle.exists()


def place_log(place: Place) -> str:
    """The newest log, as a summary names it."""
    logs = sorted((place.home / ".local" / "state" / "llm-cluster" / "office").iterdir())
    return f"log: {logs[-1]}"


def test_drift_has_exit_codes_of_its_own_and_status_shows_who_is_away(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    (folder / "models.lock.yml").write_text(
        "models:\n  gemma3:4b:\n    ollama:\n"
        f"      digest: sha256:{'0' * 64}\n      size: 1\n      source: {{registry: gemma3:4b}}\n"
    )
    (folder / "group_vars" / "all" / "store.yml").write_text(f"ollama_models_path: {tmp_path / 'store'}\n")
    away = f"ansible_connection: ssh\nansible_host: 127.0.0.1\nansible_port: {closed_port()}\n"
    (folder / "host_vars" / "node2.yml").write_text(away)
    drifted = cluster("drift", "--json")
    assert drifted.returncode == 3, drifted.stdout + drifted.stderr
    found = json.loads(drifted.stdout)
    assert (found["drift"], found["unreachable"]) == (["node1"], ["node2"])
    assert "llm cluster sync" in drifted.stderr

    table = cluster("status")
    assert table.returncode == 0, table.stderr
    assert "gemma3:4b" in table.stdout
    assert "DRIFT: missing" in table.stdout
    assert "node2" in table.stdout
    assert "unreachable" in table.stdout
    told = cluster("status", "--json", "--quiet")
    assert json.loads(told.stdout)["nodes"]["node2"]["state"] == "unreachable"


def test_completion_knows_commands_and_nodes(place: Place, folder: Path) -> None:
    words = {"_LLM_COMPLETE": "bash_complete", "COMP_CWORD": "3", "COMP_WORDS": "llm cluster drain no"}
    done = place.run("llm", cwd=folder, **words)
    assert done.stdout.split() == ["plain,node1", "plain,node2"], done.stderr
