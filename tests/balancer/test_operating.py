# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin API, and what survives a reload, a restart, a worker's death."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from balancer.harness import KEY, Balancer, MakeBalancer, MakeEngine, table, wait_for

# Routing


def broken(change):
    def make(engine):
        value = table(engine)
        change(value)
        return value

    return make


INVALID = [
    (lambda t: t.update(schema=2), "schema: must be 1"),
    (lambda t: t.update(peers=[]), "peers: must be a list of at least one peer"),
    (lambda t: t["peers"][0].pop("port"), "peers[n1].port"),
    (lambda t: t["peers"][0].update(address="node1.example"), "must be an IP address"),
    (lambda t: t["peers"][0].update(slots=0), "peers[n1].slots"),
    (lambda t: t["peers"][0].update(engine="vllm"), "peers[n1].engine"),
    (lambda t: t["peers"].append(dict(t["peers"][0])), "used by two peers"),
    (lambda t: t.update(default_model="other"), "default_model: no peer serves 'other'"),
    (lambda t: t.update(keys=[]), "nobody could ask"),
    (lambda t: t["limits"].update(queue_timeout=-1), "limits.queue_timeout"),
    (lambda t: t["limits"].update(slotwait=1), "limits: unknown field 'slotwait'"),
]


@pytest.mark.parametrize(("change", "reason"), INVALID)
def test_invalid_table_is_refused_and_the_old_one_stays(
    balancer: Balancer, engine: MakeEngine, change: Callable[[Any], object], reason: str
) -> None:
    one = engine()
    balancer.put(table(one))
    before = balancer.admin("GET", "/routing").body
    answer = balancer.admin("PUT", "/routing", broken(change)(one))
    assert answer.status == 400
    assert reason in answer.json["error"]["message"]
    assert balancer.admin("GET", "/routing").body == before
    assert balancer.chat().status == 200


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"1", b'"x"'])
def test_nonsense_is_refused(balancer: Balancer, engine: MakeEngine, text: bytes) -> None:
    balancer.put(table(engine()))
    assert balancer.admin("PUT", "/routing", text).status == 400


def test_same_table_is_no_change(balancer: Balancer, engine: MakeEngine) -> None:
    value = table(engine())
    first = balancer.put(value).json
    again = balancer.admin("PUT", "/routing", value).json
    assert again == {"changed": False, "version": first["version"]}
    in_force = balancer.admin("GET", "/routing").json
    assert balancer.admin("PUT", "/routing", in_force).json["changed"] is False
    value["limits"]["queue_timeout"] = 9
    assert balancer.admin("PUT", "/routing", value).json == {"changed": True, "version": first["version"] + 1}


def test_empty_lists_stay_lists(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine(), keys=[], require_key=False))
    assert balancer.admin("GET", "/routing").json["keys"] == []
    assert balancer.state()["peers"][0]["drains"] == []


def test_unknown_admin_calls(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine()))
    for method, path in [("GET", "/"), ("POST", "/routing"), ("DELETE", "/routing"), ("POST", "/peers/n1/kill")]:
        assert balancer.admin(method, path, {}).status == 404


def test_table_change_cuts_no_stream(balancer: Balancer, engine: MakeEngine) -> None:
    one, two = engine("one", tokens=20, gap=0.05), engine("two")
    balancer.put(table(one))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        stream = pool.submit(balancer.chat, stream=True)
        wait_for(lambda: one.running == 1)
        balancer.put(table(two))
        assert balancer.chat().json["from"] == "two"
        assert stream.result().body == b"".join(one.events("/v1/chat/completions"))


# Drain


def test_drain_marks_have_owners(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = engine("a", peer={"node": "node1"}), engine("b", peer={"node": "node2"})
    balancer.put(table(a, b))

    def post(action, **body):
        return balancer.admin("POST", f"/peers/node1/{action}", body)

    assert post("drain", owner="operator", reason="disk").json["changed"] is True
    assert post("drain", owner="operator", reason="disk").json["changed"] is False
    assert post("drain", owner="sync 12", reason="new digest").json["changed"] is True
    peer = balancer.peer("a")
    assert peer["state"] == "drained"
    assert [(mark["owner"], mark["reason"]) for mark in peer["drains"]] == [
        ("operator", "disk"),
        ("sync 12", "new digest"),
    ]
    assert {balancer.chat().json["from"] for _ in range(6)} == {"b"}
    assert post("resume", owner="operator").json["changed"] is True
    assert balancer.peer("a")["state"] == "drained", "the other owner's mark holds"
    assert post("resume", owner="operator").json["changed"] is False
    assert post("resume", owner="sync 12").json["peers"][0]["state"] == "up"
    assert {balancer.chat().json["from"] for _ in range(6)} == {"a", "b"}
    assert balancer.admin("POST", "/peers/nobody/drain", {"owner": "x"}).status == 404
    assert balancer.admin("POST", "/peers/node1/drain", {"owner": ""}).status == 400
    assert balancer.admin("POST", "/peers/node1/drain", b"[").status == 400


def test_drain_of_one_model_by_peer_name(balancer: Balancer, engine: MakeEngine) -> None:
    a = engine("n1/m", peer={"node": "n1"})
    b = engine("n1/n", models=["n"], peer={"node": "n1"})
    balancer.put(table(a, b, limits={"queue_timeout": 0.2}))
    assert balancer.admin("POST", "/peers/n1%2Fm/drain", {"owner": "x"}).status == 200
    assert balancer.chat().status == 503
    assert balancer.chat(model="n").status == 200
    assert balancer.admin("POST", "/peers/n1/m/resume", {"owner": "x"}).json["changed"] is True


def test_drained_node_finishes_what_it_holds(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = engine("a", service_time=0.5), engine("b")
    balancer.put(table(a))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(balancer.chat)
        wait_for(lambda: a.running == 1)
        balancer.put(table(a, b))
        assert balancer.admin("POST", "/peers/a/drain", {"owner": "x"}).json["peers"][0]["busy"] == 1
        assert {balancer.chat().json["from"] for _ in range(4)} == {"b"}
        assert held.result().json["from"] == "a"
    balancer.admin("POST", "/peers/a/resume", {"owner": "x"})


# Life of the process


def test_before_the_first_table(own_balancer: MakeBalancer) -> None:
    balancer = own_balancer(workers=1)
    assert balancer.chat().code == "no_routing"
    assert balancer.ask("GET", "/health").status == 503
    assert balancer.state()["peers"] == []
    assert balancer.admin("GET", "/routing").status == 404


@pytest.mark.parametrize("workers", [1, 2])
def test_table_and_drains_survive_a_restart(own_balancer: MakeBalancer, engine: MakeEngine, workers: int) -> None:
    balancer = own_balancer(workers=workers)
    a, b = engine("a"), engine("b")
    balancer.put(table(a, b))
    balancer.admin("POST", "/peers/a/drain", {"owner": "operator", "reason": "disk"})
    before = balancer.admin("GET", "/routing").json
    balancer.restart()
    assert balancer.admin("GET", "/routing").json == before
    balancer.wait_up(["a", "b"])
    assert balancer.peer("a")["drains"][0]["reason"] == "disk"
    assert {balancer.chat().json["from"] for _ in range(4)} == {"b"}
    files = sorted((balancer.dir / "state").iterdir())
    assert [path.name for path in files] == ["drains.json", "routing.json"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


def test_damaged_file_is_not_used(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=1)
    one = engine()
    balancer.put(table(one))
    balancer.stop()
    (balancer.dir / "state/routing.json").write_text('{"schema":1')
    balancer.start()
    assert balancer.chat().code == "no_routing"
    assert "routing.json is not used" in balancer.errors()
    balancer.put(table(one))
    assert balancer.chat().status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_reload_with_live_streams_loses_nothing(own_balancer: MakeBalancer, engine: MakeEngine, workers: int) -> None:
    balancer = own_balancer(workers=workers)
    one = engine(tokens=30, gap=0.05, peer={"slots": 50})
    balancer.put(table(one))
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        streams = [pool.submit(balancer.chat, stream=True) for _ in range(20)]
        wait_for(lambda: one.running == 20)
        for _ in range(3):
            balancer.reload()
            assert balancer.busy() == 20, "old workers' claims count"
            assert balancer.chat(stream=False).status == 200
        for stream in streams:
            assert stream.result().body == b"".join(one.events("/v1/chat/completions"))
    wait_for(lambda: balancer.busy() == 0, 2, "slots")
    wait_for(lambda: len(balancer.state()["workers"]) == workers, 5, "old workers are forgotten")
    probes = one.probes
    wait_for(lambda: one.probes > probes, 3, "probes go on")


def test_killed_worker_gives_its_slots_back(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=2)
    one = engine(service_time=5)
    balancer.put(table(one))
    threads = [threading.Thread(target=lambda: _ignore(balancer)) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: balancer.busy() == 4)
    for pid in balancer.worker_pids():
        os.kill(pid, signal.SIGKILL)
    one.service_time = 0
    wait_for(lambda: balancer.answers() and balancer.busy() == 0, 3, "slots are free")
    assert balancer.chat().status == 200
    for thread in threads:
        thread.join()
    text = balancer.errors().replace("[alert]", "[seen]")
    (balancer.dir / "error.log").write_text(text)


def _ignore(balancer: Balancer) -> None:
    try:
        balancer.chat()
    except Exception:
        return


@pytest.mark.parametrize("workers", [1, 4])
def test_slots_hold_over_any_number_of_workers(own_balancer: MakeBalancer, engine: MakeEngine, workers: int) -> None:
    balancer = own_balancer(workers=workers)
    engines = [engine(name, service_time=0.02, peer={"slots": slots}) for name, slots in (("a", 3), ("b", 1))]
    balancer.put(table(*engines))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: balancer.chat().status, range(200)))
    assert set(answers) == {200}
    assert [each.most for each in engines] == [3, 1]


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-keyout",
            folder / "key.pem",
            "-out",
            folder / "cert.pem",
        ],
        check=True,
        capture_output=True,
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


def tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_tls_and_a_client_that_says_goodbye(
    own_balancer: MakeBalancer, engine: MakeEngine, certificate: tuple[str, str]
) -> None:
    """nginx's own check misses a TLS client that sends close_notify before it leaves."""
    balancer = own_balancer(workers=1, tls=certificate)
    one = engine(service_time=10)
    balancer.put(table(one))
    body = b'{"model":"m"}'
    raw = socket.create_connection(("127.0.0.1", balancer.port), 5)
    client = tls_context().wrap_socket(raw)
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + KEY.encode()
        + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    wait_for(lambda: one.running == 1)
    client.settimeout(0.05)
    with contextlib.suppress(OSError):
        client.unwrap()
    client.close()
    raw.close()
    wait_for(lambda: one.running == 0, 1, "the peer's connection is closed")
    wait_for(lambda: balancer.busy() == 0, 1, "slot is free")
    plain = balancer.ask("GET", "/health")
    assert (plain.status, plain.code) == (400, "tls_required")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl speaks HTTP/2 for this test")
def test_http2(own_balancer: MakeBalancer, engine: MakeEngine, certificate: tuple[str, str]) -> None:
    balancer = own_balancer(workers=1, tls=certificate)
    one = engine(gap=0.02)
    balancer.put(table(one))

    def curl(body: dict, *more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [
                "curl",
                "-sk",
                "--http2",
                "-w",
                "\n%{http_version} %{http_code}",
                "-H",
                f"Authorization: Bearer {KEY}",
                "-d",
                json.dumps(body),
                *more,
                f"https://127.0.0.1:{balancer.port}/v1/chat/completions",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )

    assert curl({"model": "m"}).stdout.endswith("\n2 200")
    listens = {False: " ssl http2;\n        server_name", True: " ssl;\n        http2 on;\n        server_name"}
    for apart, text in listens.items():
        balancer.render(balancer_http2_apart=apart)
        assert text in (balancer.dir / "nginx.conf").read_text()
    streamed = curl({"model": "m", "stream": True})
    assert streamed.stdout.encode().startswith(b"".join(one.events("/v1/chat/completions")))
    one.mode = "break_stream"
    broken_off = curl({"model": "m", "stream": True})
    assert broken_off.returncode != 0
    assert "stream_broken" in broken_off.stdout
    one.mode, one.service_time = "ok", 10
    process = subprocess.Popen(
        [
            "curl",
            "-sk",
            "--http2",
            "-H",
            f"Authorization: Bearer {KEY}",
            "-d",
            '{"model":"m"}',
            f"https://127.0.0.1:{balancer.port}/v1/chat/completions",
        ],
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: one.running == 1)
    process.terminate()
    process.wait()
    wait_for(lambda: one.running == 0, 1, "the peer's connection is closed")
    time.sleep(0.1)


@pytest.mark.parametrize("name", ["routing.json", "drains.json"])
def test_full_disk_keeps_the_old_file(own_balancer: MakeBalancer, engine: MakeEngine, name: str) -> None:
    balancer = own_balancer()
    one = engine("a", peer={"node": "a"})
    balancer.put(table(one))
    balancer.admin("POST", "/peers/a/drain", {"owner": "operator"})
    before = (balancer.dir / "state" / name).read_text()
    (balancer.dir / "state" / (name + ".tmp")).symlink_to("/dev/full")
    if name == "routing.json":
        answer = balancer.admin("PUT", "/routing", table(one, limits={"queue_timeout": 9}))
    else:
        answer = balancer.admin("POST", "/peers/a/drain", {"owner": "sync"})
    assert answer.status == 500
    assert (balancer.dir / "state" / name).read_text() == before
    assert [mark["owner"] for mark in balancer.peer("a")["drains"]] == ["operator"]


def test_stored_limit_that_is_out_of_bounds_today_stops_nothing(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer()
    balancer.put(table(engine("a")))
    balancer.stop()
    path = balancer.dir / "state" / "routing.json"
    stored = json.loads(path.read_text())
    stored["limits"].update(probe_interval=0, gone=1)
    path.write_text(json.dumps(stored))
    balancer.start()
    balancer.wait_up(["a"])
    assert balancer.chat().status == 200
    assert balancer.admin("GET", "/routing").json["limits"]["probe_interval"] == 2
