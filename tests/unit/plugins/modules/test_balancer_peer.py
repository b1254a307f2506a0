# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run as Ansible runs it, against an HTTP server on a Unix socket; then its pure functions."""

from __future__ import annotations

import json
import socketserver
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.module_utils._admin import UnreachableError
from ansible_collections.llm.cluster.plugins.modules import balancer_peer
from simulated.admin_api import AdminHandler, served

Run = Callable[..., dict[str, Any]]


def request(**fields: Any) -> dict[str, Any]:
    return {"id": "r1", "model": "m", "key": "demo", "seconds": 3.2, "ending": False, **fields}


class FakeBalancer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The admin API's routes that the module uses, with two nodes, one of them with two peers."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.peers = [("node1/a", "node1"), ("node1/b", "node1"), ("node2", "node2")]
        self.marks: dict[str, dict[str, str]] = {}
        self.in_flight: dict[str, list[dict[str, Any]]] = {}
        self.posts: list[str] = []
        self.looks = 0
        self.idle_after: int | None = None  # looks at the state until all requests are over
        self.down_until = 0  # looks at the state that get no answer

    def drains(self, name: str, node: str) -> list[dict[str, Any]]:
        return [
            {"name": each, "owner": owner, "reason": reason, "since": 1}
            for each in dict.fromkeys((name, node))
            for owner, reason in self.marks.get(each, {}).items()
        ]

    def state(self) -> dict[str, Any]:
        peers = []
        for name, node in self.peers:
            drains, requests = self.drains(name, node), self.in_flight.get(name, [])
            state = "drained" if drains else "up"
            peers.append(
                {
                    "name": name,
                    "node": node,
                    "state": state,
                    "busy": len(requests),
                    "in_flight": requests or {},  # as Lua writes an empty list
                    "drains": drains,
                }
            )
        marks = [
            {"name": name, "owner": owner, "reason": reason}
            for name, owners in self.marks.items()
            for owner, reason in owners.items()
        ]
        return {"version": 1, "peers": peers, "drains": marks}


class Handler(AdminHandler, BaseHTTPRequestHandler):
    server: FakeBalancer

    def do_GET(self) -> None:
        self.server.looks += 1
        if self.server.looks <= self.server.down_until:
            return
        if self.server.idle_after is not None and self.server.looks > self.server.idle_after:
            self.server.in_flight = {}
        self.answer(200, self.server.state())

    def do_POST(self) -> None:
        asked = self.asked()
        _, _, name, action = self.path.split("/")
        name = unquote(name)
        self.server.posts.append(f"{action} {name} {asked['owner']}")
        marks = self.server.marks.setdefault(name, {})
        if action == "drain":
            marks[asked["owner"]] = asked["reason"]
        else:
            marks.pop(asked["owner"], None)
        self.answer(200, {"changed": True, "peers": []})


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[FakeBalancer]:
    server = FakeBalancer(tmp_path / "admin.sock")
    with served(server):
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs the module's main() with real arguments and returns what it prints."""

    def run_module(name: str, state: str, check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {
            "name": name,
            "state": state,
            "socket": str(tmp_path / "admin.sock"),
            "_ansible_check_mode": check,
            **options,
        }
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        # Where ansible-core keeps warnings differs between versions and with what ran before.
        warned: list[str] = []
        monkeypatch.setattr(basic.AnsibleModule, "warn", lambda _, warning: warned.append(warning))
        with pytest.raises(SystemExit):
            balancer_peer.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return {**result, "warned": warned}

    return run_module


@pytest.mark.parametrize(("name", "peers"), [("node1", 2), ("node1/b", 1), ("node2", 1)])
def test_check_drain_again_resume_again(balancer: FakeBalancer, run: Run, name: str, peers: int) -> None:
    predicted = run(name, "drained", check=True, reason="disk")
    assert predicted["changed"]
    assert balancer.posts == []

    drained = run(name, "drained", reason="disk")
    assert drained["changed"]
    assert drained["diff"] == predicted["diff"]
    assert drained["diff"]["after"] == {"name": name, "drained_by": {"operator": "disk"}}
    assert [peer["state"] for peer in drained["peers"]] == ["drained"] * peers
    assert drained["held_by"] == [{"name": name, "owner": "operator", "reason": "disk"}]
    assert balancer.marks == {name: {"operator": "disk"}}

    assert not run(name, "drained", reason="disk")["changed"]
    assert not run(name, "drained")["changed"], "a mark keeps its reason"
    assert len(balancer.posts) == 1
    assert run(name, "drained", reason="fan")["changed"]
    assert balancer.marks == {name: {"operator": "fan"}}

    assert run(name, "active", check=True)["changed"]
    resumed = run(name, "active")
    assert resumed["changed"]
    assert resumed["held_by"] == []
    assert {peer["state"] for peer in resumed["peers"]} == {"up"}
    assert not run(name, "active")["changed"]
    assert len(balancer.posts) == 3


def test_each_owner_has_a_mark_of_its_own(balancer: FakeBalancer, run: Run) -> None:
    balancer.marks = {"node1": {"sync 12": "new digest"}}
    assert run("node1", "drained")["changed"], "drained by another is not drained by us"
    assert balancer.marks["node1"] == {"sync 12": "new digest", "operator": ""}
    resumed = run("node1", "active")
    assert resumed["changed"]
    assert balancer.marks["node1"] == {"sync 12": "new digest"}
    assert resumed["held_by"] == [{"name": "node1", "owner": "sync 12", "reason": "new digest"}]
    assert "node1 stays drained by sync 12 (new digest)" in resumed["warned"][0]
    again = run("node1", "active")
    assert not again["changed"]
    assert again["warned"]


def test_a_peer_of_a_drained_node_stays_drained(balancer: FakeBalancer, run: Run) -> None:
    balancer.marks = {"node1": {"operator": ""}}
    result = run("node1/a", "active")
    assert not result["changed"]
    assert "node1/a stays drained by operator" in result["warned"][0]


def test_waits_for_the_last_request(balancer: FakeBalancer, run: Run) -> None:
    balancer.in_flight = {"node1/a": [request()], "node1/b": [request(ending=True)]}
    balancer.idle_after = 5
    result = run("node1", "drained", timeout=10)
    assert not result.get("failed")
    assert result["waited"] > 0.2
    assert sum(peer["busy"] for peer in result["peers"]) == 0


def test_others_need_not_be_idle(balancer: FakeBalancer, run: Run) -> None:
    balancer.in_flight = {"node1/a": [request()]}
    assert not run("node1/b", "drained", timeout=1).get("failed")


def test_time_out_names_what_runs_and_the_mark_stays(balancer: FakeBalancer, run: Run) -> None:
    balancer.in_flight = {
        "node1/a": [request(), request(id="r2", key=None, seconds=61.7)],
        "node1/b": [request(id="r3", model="", ending=True)],
    }
    result = run("node1", "drained", timeout=0.3, reason="disk")
    assert result["failed"]
    assert result["changed"]
    assert (
        "After 0.3 s node1 still works on 3 requests: r2 on node1/a (m, 62 s), r1 on node1/a (m, key demo, 3 s), "
        "r3 on node1/b (no model, key demo, 3 s, its client left)."
    ) in result["msg"]
    assert "The mark stays" in result["msg"]
    assert "state=active" in result["msg"]
    assert [each["id"] for each in result["running"]] == ["r2", "r1", "r3"]
    assert result["running"][0]["peer"] == "node1/a"
    assert result["held_by"] == [{"name": "node1", "owner": "operator", "reason": "disk"}]
    assert balancer.marks == {"node1": {"operator": "disk"}}
    again = run("node1", "drained", timeout=0.1)
    assert again["failed"]
    assert not again["changed"]


def test_need_not_wait(balancer: FakeBalancer, run: Run) -> None:
    balancer.in_flight = {"node1/a": [request()]}
    result = run("node1", "drained", timeout=0)
    assert not result.get("failed")
    assert result["waited"] == 0
    assert balancer.looks == 2
    assert not run("node1", "drained", check=True, timeout=60).get("failed"), "check mode doesn't wait"


def test_a_balancer_that_restarts_meanwhile_is_asked_again(balancer: FakeBalancer, run: Run) -> None:
    balancer.marks = {"node1": {"operator": ""}}
    balancer.in_flight = {"node1/a": [request()]}
    balancer.idle_after = 1

    def go_away() -> None:
        balancer.down_until = balancer.looks + 2

    original = balancer.state

    def state() -> dict[str, Any]:
        go_away()
        balancer.state = original  # type: ignore[method-assign]
        return original()

    balancer.state = state  # type: ignore[method-assign]
    result = run("node1", "drained", timeout=5)
    assert not result.get("failed"), result
    assert balancer.looks > 3


def test_unknown_name(balancer: FakeBalancer, run: Run) -> None:
    for state in ("active", "drained"):
        result = run("node9", state, check=True)
        assert result["failed"]
        assert result["msg"] == "The balancer has no node or peer node9. It knows: node1, node1/a, node1/b, node2."
    balancer.peers = []
    assert "run site.yml" in run("node1", "drained")["msg"]


def test_a_mark_on_a_node_that_is_gone_can_be_taken_back(balancer: FakeBalancer, run: Run) -> None:
    balancer.marks = {"node9": {"operator": "disk"}}
    assert run("node9", "active")["changed"]
    assert balancer.marks == {"node9": {}}
    assert run("node9", "active")["failed"]


def test_no_balancer(run: Run) -> None:
    result = run("node1", "drained")
    assert result["failed"]
    assert not result["changed"]
    assert "not a balancer" in result["msg"]


def test_bad_state(run: Run) -> None:
    assert "value of state must be one of" in run("node1", "gone")["msg"]


def test_waiting_ends_with_the_balancers_error() -> None:
    def look() -> list[dict[str, Any]]:
        raise UnreachableError("gone")

    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    with pytest.raises(UnreachableError, match="gone"):
        balancer_peer.wait_until_idle(look, 60, lambda: now, sleep)
    assert now == pytest.approx(60)


def test_many_requests_are_not_all_named() -> None:
    peers = [{"name": "n", "busy": 14, "in_flight": [request(id=f"r{i}") for i in range(12)]}]
    words = balancer_peer.running_words(peers)
    assert words.startswith("14 requests: r0 on n")
    assert words.endswith(" and 4 more")
    assert balancer_peer.running_words([{"name": "n", "busy": 1, "in_flight": []}]) == "1 request"


def test_documentation_names_every_option() -> None:
    options = yaml.safe_load(balancer_peer.DOCUMENTATION)["options"]
    assert set(options) == {"name", "state", "owner", "reason", "timeout"}
