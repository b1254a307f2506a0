# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold after site.yml with Ollama: on each node, looked at on the node itself, and at the endpoint."""

from __future__ import annotations

import json
import re
import socket
import ssl
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import testinfra
from testinfra.host import Host

BED = Path(__file__).parents[3] / ".testbed" / "mol-ollama"
HOSTS = json.loads((BED / "hosts.json").read_text(encoding="utf-8"))
CONTROL = tempfile.mkdtemp(prefix="testinfra-")  # all commands for a host share one connection
UNIT = "ollama.service"
BALANCER = "ollama-12"
MODEL = "tiny:1"
DIGEST = "d1e08bbebf26cc1f09bdb38159ea728e851a52d30b5543b03bd271efc3edd3fa"
KEY = "not-a-secret-only-of-this-test-bed"


def connect(name: str) -> Host:
    return testinfra.get_host(f"ssh://{name}", ssh_config=str(BED / "ssh_config"), controlpath=f"{CONTROL}/{name}")


@pytest.fixture(scope="module", params=sorted(HOSTS))
def node(request: pytest.FixtureRequest) -> Host:
    return connect(request.param)


@pytest.fixture(scope="module")
def balancer() -> Host:
    return connect(BALANCER)


@pytest.fixture(scope="module")
def certificate(balancer: Host) -> str:
    return balancer.file("/etc/llm-cluster/tls/self-signed.crt").content_string


def ask_endpoint(path: str, certificate: str, body: Any = None) -> tuple[str, str]:
    """(answer, peer) from the endpoint, with its certificate and the name in it verified."""
    request = urllib.request.Request(
        f"https://{HOSTS[BALANCER]['address']}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
    )
    context = ssl.create_default_context(cadata=certificate or None)
    with urllib.request.urlopen(request, timeout=20, context=context) as answer:
        return answer.read().decode(), answer.headers.get("X-LLM-Peer", "")


def health(certificate: str) -> str:
    """What the balancer says of its nodes: ok, degraded or, with status 503, down."""
    try:
        answer = ask_endpoint("/health", certificate)[0]
    except urllib.error.HTTPError as error:
        answer = error.read().decode()
    return str(json.loads(answer)["status"])


def address_of(node: Host) -> str:
    return HOSTS[node.check_output("hostname")]["address"]


def journal(node: Host) -> str:
    """The end of the unit's journal: what one wants to see when an assertion about the unit fails."""
    return node.run("journalctl --no-pager --lines 30 --unit %s", UNIT).stdout


def ask(node: Host, path: str) -> Any:
    url = f"http://{address_of(node)}:8000{path}"
    answer = node.run(
        "python3 -c %s", f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"
    )
    assert answer.rc == 0, answer.stderr + journal(node)
    return json.loads(answer.stdout)


def main_pid(node: Host) -> str:
    return node.check_output("systemctl show --value --property MainPID %s", UNIT)


def in_unit(node: Host, python: str) -> str:
    """What Python prints (errors too) with the user, the namespaces and the limits of the running unit."""
    unit = node.check_output("systemctl cat %s", UNIT).split("[Service]", 1)[1].split("[Install]", 1)[0]
    left_out = ("Exec", "Type", "Restart", "EnvironmentFile", "KillMode", "Timeout", "#", "[")
    properties = [line for line in unit.split("\n") if "=" in line and not line.startswith(left_out)]
    arguments = " ".join(f"--property='{line}'" for line in properties)
    return node.run(f"systemd-run --wait --pipe --collect --quiet {arguments} python3 -c %s 2>&1", python).stdout


def score(node: Host) -> float:
    line = node.run("systemd-analyze security --no-pager %s", UNIT).stdout.strip().split("\n")[-1]
    found = re.search(r"([\d.]+) [A-Z]+", line)
    assert found is not None, line
    print(f"{node.check_output('hostname')} {line}")
    return float(found.group(1))


def test_the_pinned_release_answers(node: Host) -> None:
    assert ask(node, "/api/version") == {"version": "9.0.1"}
    assert "client version is 9.0.1" in node.check_output("/usr/local/bin/ollama --version")


def test_the_model_is_there_in_its_version_and_loaded(node: Host) -> None:
    assert [(model["name"], model["digest"]) for model in ask(node, "/api/tags")["models"]] == [(MODEL, DIGEST)]
    assert [model["name"] for model in ask(node, "/api/ps")["models"]] == [MODEL]


def test_the_service_runs_as_its_own_user_and_starts_at_boot(node: Host) -> None:
    assert node.service(UNIT).is_running, journal(node)
    assert node.service(UNIT).is_enabled
    assert node.check_output("ps -o user= -p %s", main_pid(node)).strip() == "ollama"
    user = node.user("ollama")
    assert (user.home, user.shell) == ("/usr/share/ollama", "/usr/sbin/nologin")
    there = {name for name in ("render", "video") if node.group(name).exists}
    assert there <= set(user.groups)


def test_it_listens_on_the_clusters_address_only(node: Host) -> None:
    sockets = node.check_output("ss -Hltn sport = :8000").split("\n")
    assert [line.split()[3] for line in sockets] == [f"{address_of(node)}:8000"]


def test_the_release_has_its_place_and_nothing_else_is_left(node: Host) -> None:
    assert node.file("/opt/ollama/current").linked_to == "/opt/ollama/releases/9.0.1"
    assert node.file("/usr/local/bin/ollama").linked_to == "/opt/ollama/releases/9.0.1/bin/ollama"
    assert sorted(node.file("/opt/ollama").listdir()) == ["current", "releases"]
    assert node.file("/opt/ollama/releases/9.0.1/lib/ollama/libsimulated.so").exists
    program = node.file("/opt/ollama/releases/9.0.1/bin/ollama")
    assert (program.user, program.mode) == ("root", 0o755)


def test_the_settings_arrive_in_the_process(node: Host) -> None:
    environment = node.check_output("tr '\\0' '\\n' < /proc/%s/environ", main_pid(node)).split("\n")
    expected = {
        f"OLLAMA_HOST={address_of(node)}:8000",
        "OLLAMA_NUM_PARALLEL=3",
        "OLLAMA_CONTEXT_LENGTH=2048",
        "OLLAMA_KEEP_ALIVE=-1",
        "OLLAMA_KV_CACHE_TYPE=q8_0",
        "OLLAMA_MODELS=/var/lib/ollama/models",
        "OLLAMA_MAX_LOADED_MODELS=1",
        "OLLAMA_MAX_QUEUE=512",
        "OLLAMA_LOAD_TIMEOUT=5m",
        "OLLAMA_NOPRUNE=1",
        "OLLAMA_NO_CLOUD=1",
        'OLLAMA_SIMULATED_SECRET=a "quoted" $value',
        "HOME=/var/lib/ollama",
    }
    assert expected <= set(environment)
    assert not any(line.startswith(("OLLAMA_FLASH_ATTENTION=", "HTTP_PROXY=")) for line in environment)
    file = node.file("/etc/ollama/ollama.env")
    assert (file.user, file.mode) == ("root", 0o600)


def test_it_comes_back_when_it_is_killed(node: Host) -> None:
    before = main_pid(node)
    node.check_output("kill -9 %s", before)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and main_pid(node) in ("0", before):
        time.sleep(0.5)
    assert main_pid(node) not in ("0", before), journal(node)
    time.sleep(1)
    assert ask(node, "/api/version") == {"version": "9.0.1"}


def test_the_unit_is_hardened(node: Host) -> None:
    assert score(node) <= 2.0


def test_it_can_write_its_state_and_nothing_else(node: Host) -> None:
    folders = ["/var/lib/ollama", "/etc", "/usr/share/ollama", "/opt/ollama/current", "/root", "/var/tmp/.."]
    script = f"""
for folder in {folders}:
    try:
        open(folder + "/written", "w")
        print(folder, "written")
    except OSError as error:
        print(folder, error.strerror)
"""
    lines = in_unit(node, script).splitlines()
    assert lines[0] == "/var/lib/ollama written", lines  # else the sandbox runs nothing, and the rest proves nothing
    assert len(lines) == len(folders)
    assert [line for line in lines[1:] if not line.endswith(("Read-only file system", "Permission denied"))] == []
    found = node.run("find /etc /usr/share/ollama /opt/ollama /root /var -maxdepth 2 -name written").stdout.split()
    assert found == []


def test_it_sees_the_memory_but_not_other_processes_or_devices(node: Host) -> None:
    seen = in_unit(
        node,
        "import os; print(open('/proc/meminfo').readline()); print(os.path.exists('/proc/1'), os.listdir('/dev'))",
    )
    assert "MemTotal" in seen
    assert "False" in seen
    assert "'tty0'" not in seen
    assert "'kmsg'" not in seen


def test_it_has_no_privileges_and_gets_none(node: Host) -> None:
    status = node.check_output("cat /proc/%s/status", main_pid(node))
    assert re.search(r"NoNewPrivs:\s+1", status)
    assert re.search(r"CapBnd:\s+0+\n", status)
    assert re.search(r"Seccomp:\s+2", status)
    assert "Operation not permitted" in in_unit(node, "import os; os.setpriority(0, 0, 5)")


def test_it_reaches_what_its_networks_allow(node: Host) -> None:
    gateway = node.check_output("ip route show default").split()[2]
    registry = HOSTS["ollama-13"]["address"]
    with socket.create_server(("", 0)) as foreign:
        probe = f"""
import socket
for address in {[(gateway, foreign.getsockname()[1]), (registry, 5000), (address_of(node), 8000)]}:
    try:
        socket.create_connection(address, 2)
        print("reached")
    except OSError:
        print("refused")
"""
        assert node.check_output("python3 -c %s", probe).split() == ["reached"] * 3  # else the next line proves nothing
        # Open by default; one node has ollama_allowed_networks.
        first = "refused" if node.check_output("hostname") == "ollama-12" else "reached"
        assert in_unit(node, probe).split() == [first, "reached", "reached"]


def test_debian_12_is_a_balancer(balancer: Host) -> None:
    assert "nginx/1.22" in balancer.run("nginx -v").stderr
    assert balancer.service("nginx").is_running


@pytest.mark.parametrize("stream", [False, True])
def test_the_endpoint_answers_encrypted_through_both_nodes(certificate: str, stream: bool) -> None:
    # The tests before killed engines: the balancer takes a node in again after two good probes and its hold-down.
    deadline = time.monotonic() + 90
    while health(certificate) != "ok":
        assert time.monotonic() < deadline, "a node stays out"
        time.sleep(0.5)
    peers = set()
    for i in range(8):  # each another conversation: one that goes on would go back to its node
        question = {"model": MODEL, "stream": stream, "messages": [{"role": "user", "content": f"hi {i} {stream}"}]}
        answer, peer = ask_endpoint("/v1/chat/completions", certificate, question)
        peers.add(peer)
        if stream:
            assert answer.rstrip().endswith("data: [DONE]")
        else:
            assert json.loads(answer)["choices"][0]["message"]["content"]
    assert peers == set(HOSTS)


def test_the_certificate_is_trusted_only_by_those_who_were_told() -> None:
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask_endpoint("/v1/models", "")


def test_the_endpoint_lists_the_model_of_both_nodes_once(certificate: str) -> None:
    models = json.loads(ask_endpoint("/api/tags", certificate)[0])["models"]
    assert [(model["name"], model["digest"]) for model in models] == [(MODEL, DIGEST)]


def test_llm_asks_the_endpoint_encrypted(balancer: Host) -> None:
    log = "/var/log/nginx/llm-access.log"
    before = int(balancer.check_output("wc -l < %s", log))
    assert balancer.check_output("llm -m %s hi", MODEL).strip()
    lines = balancer.check_output("tail -n +%s %s", str(before + 1), log)
    assert '"simulated"' in lines, lines  # the key's name
    untold = balancer.run("SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt llm -m %s hi", MODEL)
    assert untold.rc != 0, untold.stdout
