# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold on each host of a converged cluster, looked at on the hosts themselves."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import testinfra
from testinfra.host import Host

NODES = ["node1", "node2", "node3"]
BALANCER = "balancer"
UNIT = "llama-cpp@gemma3-270m.service"
BED = Path(__file__).parents[3] / ".testbed" / os.environ.get("LLM_DEMO_NAME", "demo")
ADDRESSES = {name: entry["address"] for name, entry in json.loads((BED / "hosts.json").read_text()).items()}


def connect(name: str) -> Host:
    return testinfra.get_host(f"ssh://{name}", ssh_config=str(BED / "ssh_config"))


@pytest.fixture(scope="module", params=NODES)
def node(request: pytest.FixtureRequest) -> Host:
    return connect(request.param)


@pytest.fixture(scope="module")
def balancer() -> Host:
    return connect(BALANCER)


def journal(host: Host, unit: str) -> str:
    """The end of a unit's journal: what one wants to see when an assertion about the unit fails."""
    return host.run("journalctl --no-pager --lines 30 --unit %s", unit).stdout


def address_of(host: Host) -> str:
    return ADDRESSES[host.check_output("hostname")]


def test_the_engine_runs_as_its_own_user(node: Host) -> None:
    assert node.service(UNIT).is_running, journal(node, UNIT)
    assert node.service(UNIT).is_enabled
    pid = node.check_output("systemctl show --value --property MainPID %s", UNIT)
    assert node.check_output("ps -o user= -p %s", pid).strip() == "llama-cpp"


def test_the_engine_listens_on_the_cluster_address_only(node: Host) -> None:
    sockets = node.check_output("ss -Hltn sport = :8000").split("\n")
    assert [line.split()[3] for line in sockets] == [f"{address_of(node)}:8000"]


def test_the_engine_answers_on_its_node(node: Host) -> None:
    answer = node.run(
        "python3 -c %s", f"import urllib.request as u; print(u.urlopen('http://{address_of(node)}:8000/health').status)"
    )
    assert answer.stdout.strip() == "200", answer.stderr + journal(node, UNIT)


def test_the_unit_is_hardened(node: Host) -> None:
    line = node.run("systemd-analyze security --no-pager %s", UNIT).stdout.strip().split("\n")[-1]
    score = re.search(r"([\d.]+) [A-Z]+", line)
    assert score is not None, line
    assert float(score.group(1)) <= 2.0, line


def in_unit(node: Host, python: str) -> str:
    """Run Python with the unit's user, sandbox and network rules, as the engine itself would, and return its output.

    The properties are those of the installed unit file, given to a transient unit.
    """
    unit = node.check_output("systemctl cat %s", UNIT)
    service = unit.split("[Service]", 1)[1].split("[Install]", 1)[0]
    leave_out = ("Exec", "Type", "Restart", "EnvironmentFile", "TimeoutS", "#", "[", "StandardO", "SyslogI", "Notify")
    properties = [
        line.replace("%i", "gemma3-270m")
        for line in service.split("\n")
        if "=" in line and not line.startswith(leave_out)
    ]
    arguments = " ".join("--property='" + line.replace("'", "") + "'" for line in properties)
    return node.run(f"systemd-run --wait --pipe --collect --quiet {arguments} python3 -c %s 2>&1", python).stdout


def test_the_sandbox_refuses_to_write_to_etc(node: Host) -> None:
    assert "yes" in in_unit(node, "print('yes')"), "the sandbox runs nothing at all, so the next line proves nothing"
    assert "Read-only file system" in in_unit(node, "open('/etc/llm-cluster-test', 'w')")
    assert not node.file("/etc/llm-cluster-test").exists


def test_the_sandbox_reaches_no_foreign_address(node: Host) -> None:
    foreign = ADDRESSES["node2" if node.check_output("hostname") != "node2" else "node1"]
    probe = f"import socket; socket.create_connection(('{foreign}', 22), 3); print('conn' + 'ected')"
    assert "connected" in node.run("python3 -c %s", probe).stdout, (
        "nothing listens there, so the next line proves nothing"
    )
    assert "connected" not in in_unit(node, probe)


def test_only_balancers_reach_the_engine(node: Host) -> None:
    probe = f"import socket; socket.create_connection(('{address_of(node)}', 8000), 3); print('conn' + 'ected')"
    other = connect("node2" if node.check_output("hostname") != "node2" else "node1")
    assert "connected" in connect(BALANCER).run("python3 -c %s", probe).stdout
    assert "connected" not in other.run("python3 -c %s", probe).stdout


def test_the_firewall_is_one_table_and_the_hosts_own_service_is_left_alone(node: Host) -> None:
    # Docker keeps its name service's rules in the containers' ip nat.
    tables = node.check_output("nft list tables").split("\n")
    assert [table for table in tables if table != "table ip nat"] == ["table inet llm_cluster"]
    assert node.service("llm-cluster-firewall").is_running
    assert not node.service("nftables").is_running
    assert not node.service("nftables").is_enabled


def test_the_firewall_survives_the_hosts_own(node: Host) -> None:
    node.run("systemctl restart nftables.service")
    try:
        assert "table inet llm_cluster" in node.check_output("nft list tables").split("\n")
    finally:
        node.run("systemctl stop nftables.service")
        node.run("systemctl start llm-cluster-firewall.service")
    assert "table inet llm_cluster" in node.check_output("nft list tables").split("\n")


def test_operators_find_llm_on_the_path(node: Host) -> None:
    assert "llm, version" in node.check_output("llm --version")
    assert "llm-ollama" in node.check_output("llm plugins")


def test_the_balancer_serves_and_its_admin_socket_is_roots_alone(balancer: Host) -> None:
    assert balancer.service("nginx").is_running, journal(balancer, "nginx")
    assert balancer.service("nginx").is_enabled
    folder = balancer.file("/run/llm-cluster")
    assert (folder.user, folder.mode) == ("root", 0o700)
    assert balancer.run("runuser -u www-data -- ls /run/llm-cluster").rc != 0
    state = balancer.run(
        "python3 -c %s",
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/llm-cluster/admin.sock');"
        "s.sendall(b'GET /state HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n'); f = s.makefile(); print(f.read())",
    ).stdout
    assert '"node1"' in state, state


def test_the_balancer_keeps_hashes_of_keys_only(balancer: Host) -> None:
    key = (BED.parents[1] / f".{BED.name}" / "api_key").read_text().strip()
    assert balancer.run("grep -rl %s /etc /var/lib/llm-cluster /var/log /run/llm-cluster", key).stdout == ""
