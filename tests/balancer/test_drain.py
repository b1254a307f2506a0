# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Drain and resume: the admin socket, the modules and the playbooks against a real nginx."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from balancer.harness import ROOT, Balancer, MakeBalancer, MakeEngine, table, wait_for

Play = Callable[..., subprocess.CompletedProcess[str]]


def drain(balancer: Balancer, name: str, action: str = "drain", owner: str = "operator") -> Any:
    return balancer.admin("POST", f"/peers/{name}/{action}", {"owner": owner}).json


# The admin API


def test_state_says_what_a_peer_works_on(balancer: Balancer, engine: MakeEngine) -> None:
    one, two = engine("one", service_time=0.5), engine("two")
    balancer.put(table(one))
    assert balancer.peer("one")["in_flight"] == []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(balancer.chat, headers={"X-Request-Id": "held"})
        wait_for(lambda: one.running == 1)
        balancer.put(table(one, two))
        peer = balancer.peer("one")
        assert peer["busy"] == 1
        (request,) = peer["in_flight"]
        assert 0 <= request.pop("seconds") < 0.5
        assert request == {"id": "held", "model": "m", "key": "tester", "ending": False}
        assert balancer.peer("two")["in_flight"] == []
        assert held.result().status == 200
    wait_for(lambda: balancer.peer("one")["in_flight"] == [], 1, "nothing is in flight")


def test_state_shows_the_queue_and_every_mark(balancer: Balancer, engine: MakeEngine) -> None:
    one, two = engine("one", service_time=0.4, peer={"slots": 1}), engine("two", models=["other"])
    balancer.put(table(one, two))
    state = balancer.state()
    assert state["queue"]["waiting"] == 0
    assert state["queue"]["sets"] == []
    assert state["drains"] == []
    assert state["keys"] == [{"name": "tester"}]
    assert state["policy"] == "affinity"
    peer = state["peers"][0]
    assert (peer["usable"], peer["ending"], peer["lacks"], peer["slow"]) == (1, 0, [], 0)
    drain(balancer, "two")
    balancer.put(table(one))
    (mark,) = balancer.state()["drains"]
    assert (mark["name"], mark["owner"]) == ("two", "operator"), "the node is gone, its mark is not"
    assert drain(balancer, "two", "resume")["changed"] is True
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        held = [pool.submit(balancer.chat) for _ in range(3)]
        wait_for(lambda: balancer.state()["queue"]["waiting"] == 2)
        queue = balancer.state()["queue"]
        assert queue["bytes"] > 0
        assert 0 <= queue["oldest"] < 1
        assert len(queue["sets"]) == 1
        assert [answer.result().status for answer in held] == [200] * 3


def test_no_new_request_from_that_moment(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    """Four workers, requests all the time, some of them waiting: once the drain is answered, none goes there."""
    balancer = own_balancer(workers=4)
    a, b = engine("a", service_time=0.02, peer={"slots": 2}), engine("b", service_time=0.02, peer={"slots": 2})
    balancer.put(table(a, b))
    over = threading.Event()
    statuses: list[int] = []

    def go_on() -> None:
        while not over.is_set():
            statuses.append(balancer.chat().status)

    threads = [threading.Thread(target=go_on) for _ in range(12)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        wait_for(lambda: len(a.inference()) > 20)
        a.seen.clear()
        drain(balancer, "a")
        moment = time.monotonic()
        time.sleep(0.3)
        # What was sent just before may be noted here a moment later: these threads share the machine with other tests.
        late = [round(seen.started - moment, 4) for seen in a.inference() if seen.started > moment + 0.02]
        assert late == []
        assert drain(balancer, "a", "resume")["peers"][0]["state"] == "up"
    over.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}


def test_a_drain_survives_a_reload(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=2)
    a, b = engine("a"), engine("b")
    balancer.put(table(a, b))
    drain(balancer, "a")
    for _ in range(2):
        balancer.reload()
        assert {balancer.chat().json["from"] for _ in range(8)} == {"b"}
    balancer.restart()
    balancer.wait_up(["b"])
    assert {balancer.chat().json["from"] for _ in range(4)} == {"b"}
    assert balancer.peer("a")["state"] == "drained"


def test_requests_wait_while_the_only_node_is_drained(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one, limits={"queue_timeout": 5}))
    drain(balancer, "n1")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held = pool.submit(balancer.chat)
        wait_for(lambda: balancer.state()["queue"]["waiting"] == 1)
        assert drain(balancer, "n1", "resume")["changed"] is True
        assert held.result(timeout=1).status == 200


# The playbooks


@pytest.fixture
def play(tmp_path: pathlib.Path) -> Play:
    """Runs a playbook for these balancers by name. Not a balancer: variables of a host that is none."""

    def run(
        playbook: str, balancers: dict[str, Balancer] | dict[str, Balancer | dict[str, Any]], *more: str
    ) -> subprocess.CompletedProcess[str]:
        hosts = {
            name: {"balancer_admin_socket": str(balancer.variables["balancer_admin_socket"])}
            if isinstance(balancer, Balancer)
            else balancer
            for name, balancer in balancers.items()
        }
        inventory = {
            "all": {
                "vars": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable},
                "hosts": {"node1": {}},
                "children": {"llm_balancers": {"hosts": hosts}},
            }
        }
        (tmp_path / "hosts.json").write_text(json.dumps(inventory))
        return subprocess.run(
            ["ansible-playbook", "-i", tmp_path / "hosts.json", f"llm.cluster.{playbook}", *more],
            cwd=ROOT,
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    return run


def said(done: subprocess.CompletedProcess[str]) -> str:
    """What a play printed, without line breaks and quotes of the format."""
    return " ".join((done.stdout + done.stderr).split()).replace("''", "'")


@pytest.fixture
def two(own_balancer: MakeBalancer, engine: MakeEngine) -> dict[str, Balancer]:
    """Two balancers over the same two nodes, the first of which works for a long time."""
    engines = [engine("node1", service_time=60), engine("node2")]
    balancers = {name: own_balancer(workers=1) for name in ("b1", "b2")}
    for balancer in balancers.values():
        balancer.put(table(*engines, limits={"ending_timeout": 0, "first_byte_timeout": 60}))
    return balancers


def marks(balancer: Balancer) -> dict[str, str]:
    return {mark["owner"]: mark["reason"] for mark in balancer.state()["drains"]}


def test_drain_and_resume_on_all_balancers(play: Play, two: dict[str, Balancer]) -> None:
    predicted = play("drain", two, "-e", "node=node1", "--check")
    assert predicted.returncode == 0, said(predicted)
    assert marks(two["b1"]) == {}
    done = play("drain", two, "-e", "node=node1", "-e", "drain_reason='new disk'")
    assert done.returncode == 0, said(done)
    assert "changed=1" in said(done)
    assert [marks(balancer) for balancer in two.values()] == [{"operator": "new disk"}] * 2
    again = play("drain", two, "-e", "node=node1")
    assert again.returncode == 0, said(again)
    assert "changed=1" not in said(again)
    drain(two["b2"], "node1", owner="sync 12")
    resumed = play("resume", two, "-e", "node=node1")
    assert resumed.returncode == 0, said(resumed)
    assert [marks(balancer) for balancer in two.values()] == [{}, {"sync 12": ""}]
    assert "node1 stays drained by sync 12" in said(resumed)


STOPPED = {"balancer_admin_socket": "/nowhere/admin.sock"}
UNREACHABLE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}


@pytest.mark.parametrize(
    ("broken", "words"), [(STOPPED, "There is no admin socket"), (UNREACHABLE, "")], ids=["stopped", "unreachable"]
)
def test_drain_that_one_balancer_cannot_do_holds_on_none(
    play: Play, two: dict[str, Balancer], broken: dict[str, Any], words: str
) -> None:
    done = play("drain", {**two, "b3": broken}, "-e", "node=node1")
    assert done.returncode != 0
    assert "node1 is not drained" in said(done)
    assert f"Where it was set, it is taken back. b3: {words}" in said(done)
    assert [marks(balancer) for balancer in two.values()] == [{}, {}]


def test_a_mark_that_was_there_is_not_taken_back(play: Play, two: dict[str, Balancer]) -> None:
    drain(two["b1"], "node1")
    done = play("drain", {**two, "b3": STOPPED}, "-e", "node=node1", "-e", "drain_reason=disk")
    assert done.returncode != 0
    assert [marks(balancer) for balancer in two.values()] == [{"operator": "disk"}, {}]


def test_time_out_of_a_drain_names_what_is_still_running(play: Play, two: dict[str, Balancer]) -> None:
    drain(two["b2"], "node2")
    connection = two["b2"].connection()
    try:
        connection.request(
            "POST",
            "/v1/chat/completions",
            '{"model":"m"}',
            {"Authorization": "Bearer sk-test-1234567890", "X-Request-Id": "long-one"},
        )
        wait_for(lambda: two["b2"].peer("node1")["busy"] == 1)
        done = play("drain", two, "-e", "node=node1", "-e", "drain_timeout=1")
        assert done.returncode != 0
        assert "After 1 s node1 still works on 1 request: long-one on node1 (m, key tester, " in said(done)
        assert marks(two["b1"]) == {"operator": ""}, "the mark stays"
        assert drain(two["b2"], "node2", "resume")["changed"] is True
        assert two["b2"].chat().json["from"] == "node2"
    finally:
        connection.close()
    wait_for(lambda: two["b2"].busy() == 0, 3, "slots are free")
    done = play("drain", two, "-e", "node=node1", "-e", "drain_timeout=5")
    assert done.returncode == 0, said(done)


@pytest.mark.parametrize(
    ("playbook", "more"),
    [
        ("drain", ()),
        ("drain", ("-e", "node=node1", "--limit", "b1")),
        ("drain", ("-e", "node=node1", "--limit", "node1")),
        ("resume", ()),
    ],
)
def test_refuses_what_would_not_hold_everywhere(play: Play, playbook: str, more: tuple[str, ...]) -> None:
    done = play(playbook, {"b1": STOPPED, "b2": STOPPED}, *more)
    assert done.returncode != 0
    assert "Name the node with -e node=NAME and leave --limit out" in said(done)


def test_unknown_node(play: Play, two: dict[str, Balancer]) -> None:
    done = play("drain", two, "-e", "node=node9")
    assert done.returncode != 0
    assert "b1, b2: The balancer has no node or peer node9. It knows: node1, node2." in said(done)
