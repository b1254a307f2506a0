# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run as Ansible runs it, against an HTTP server on a Unix socket; then its pure functions."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import socketserver
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.doc_fragments.admin_socket import ModuleDocFragment
from ansible_collections.llm.cluster.plugins.module_utils import _routing_table
from ansible_collections.llm.cluster.plugins.module_utils._admin import ADMIN_OPTIONS
from ansible_collections.llm.cluster.plugins.modules import balancer_routing
from simulated.admin_api import AdminHandler, served

Run = Callable[..., dict[str, Any]]

OLD_HASH = hashlib.sha256(b"old").hexdigest()
NEW_HASH = hashlib.sha256(b"new").hexdigest()


def table(**changes: Any) -> dict[str, Any]:
    """Return a valid table of two peers and one key, with changes."""
    peers = [
        {
            "name": name,
            "node": name,
            "engine": "llama_cpp",
            "address": address,
            "port": 8000,
            "models": ["gemma3:270m"],
            "slots": 2,
            "weight": 1.0,
            "backup": False,
            "labels": {},
        }
        for name, address in (("node1", "192.0.2.11"), ("node2", "192.0.2.12"))
    ]
    return {
        "schema": 1,
        "default_model": "gemma3:270m",
        "require_key": True,
        "peers": peers,
        "keys": [{"name": "demo", "sha256": OLD_HASH}],
        "limits": {"connect_timeout": 1.0, "queue_timeout": 90},
        **changes,
    }


def with_peer(**changes: Any) -> dict[str, Any]:
    """Return the table with changes in its first peer."""
    changed = table()
    changed["peers"][0].update(changes)
    return changed


class FakeBalancer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """The admin API's two routes that the module uses."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.path = str(path)
        self.routing: dict[str, Any] | None = None
        self.version = 0
        self.puts = 0
        self.refusal: str | None = None
        self.forgets = False


class Handler(AdminHandler, BaseHTTPRequestHandler):
    server: FakeBalancer

    def do_GET(self) -> None:
        if self.path == "/state":
            self.answer(200, {"version": self.server.version, "peers": []})
        elif self.server.routing is None:
            self.answer(404, {"error": {"message": "no routing table yet"}})
        else:
            self.answer(200, self.server.routing)

    def do_PUT(self) -> None:
        wanted = self.asked()
        self.server.puts += 1
        if self.server.refusal:
            self.answer(400, {"error": {"message": self.server.refusal}})
            return
        if not self.server.forgets:
            self.server.routing = wanted
        self.server.version += 1
        self.answer(200, {"changed": True, "version": self.server.version})


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[FakeBalancer]:
    server = FakeBalancer(tmp_path / "admin.sock")
    with served(server):
        yield server


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Return a function that runs the module's main() with real arguments and returns what it prints."""

    def run_module(wanted: dict[str, Any], check: bool = False, **options: Any) -> dict[str, Any]:
        arguments = {"table": wanted, "socket": str(tmp_path / "admin.sock"), "_ansible_check_mode": check, **options}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        with pytest.raises(SystemExit):
            balancer_routing.main()
        printed = capsys.readouterr().out
        assert NEW_HASH not in printed
        assert OLD_HASH not in printed
        result: dict[str, Any] = json.loads(printed)
        return result

    return run_module


def test_check_apply_again_check(balancer: FakeBalancer, run: Run) -> None:
    predicted = run(table(), check=True)
    assert predicted["changed"]
    assert balancer.puts == 0

    applied = run(table())
    assert applied["changed"]
    assert applied["version"] == 1
    assert applied["changes"] == predicted["changes"]
    assert applied["diff"] == predicted["diff"]
    assert "peer node1: added" in applied["changes"]

    again = run(table())
    assert not again["changed"]
    assert again["version"] == 1
    assert again["diff"]["before"] == again["diff"]["after"]
    assert balancer.puts == 1

    assert not run(table(), check=True)["changed"]


def test_one_change_is_reported_alone(balancer: FakeBalancer, run: Run) -> None:
    run(table())
    result = run(with_peer(slots=4))
    assert result["changes"] == ["peer node1: slots 2 -> 4"]
    assert result["diff"]["after"]["peers"]["node1"]["slots"] == 4
    assert result["diff"]["after"]["peers"]["node2"] == result["diff"]["before"]["peers"]["node2"]
    assert result["diff"]["after"]["keys"] == result["diff"]["before"]["keys"]


def test_changed_key_is_reported_by_name_only(balancer: FakeBalancer, run: Run) -> None:
    run(table())
    result = run(table(keys=[{"name": "demo", "sha256": NEW_HASH}]))
    assert result["changes"] == ["key demo: changed"]
    assert result["diff"]["before"]["keys"] == {"demo": {"sha256": _routing_table.HIDDEN}}
    assert result["diff"]["after"]["keys"] == {"demo": {"sha256": _routing_table.HIDDEN + " (changed)"}}
    assert balancer.routing is not None
    assert balancer.routing["keys"][0]["sha256"] == NEW_HASH


def test_order_and_form_do_not_matter(balancer: FakeBalancer, run: Run) -> None:
    run(table())
    same = table(limits={"queue_timeout": "90.0", "connect_timeout": 1})
    same["peers"].reverse()
    del same["peers"][0]["labels"], same["peers"][0]["node"], same["peers"][0]["backup"], same["peers"][0]["weight"]
    assert not run(same)["changed"]


def test_empty_objects_from_lua_are_empty_lists(balancer: FakeBalancer, run: Run) -> None:
    balancer.routing = table(keys={}, require_key=False, limits=[])
    for peer in balancer.routing["peers"]:
        peer["labels"] = []
    assert not run(table(keys=[], require_key=False, limits={}))["changed"]


def test_balancer_fills_in_defaults(balancer: FakeBalancer, run: Run) -> None:
    run(table(limits={}))
    assert balancer.routing is not None
    assert balancer.routing["limits"]["queue_timeout"] == 60
    assert not run(table(limits={"queue_timeout": 60}))["changed"]


def test_the_order_of_models_is_kept(balancer: FakeBalancer, run: Run) -> None:
    run(with_peer(models=["b", "gemma3:270m", "a"]))
    assert balancer.routing is not None
    assert balancer.routing["peers"][0]["models"] == ["b", "gemma3:270m", "a"]


def test_refused_table_keeps_the_old_one(balancer: FakeBalancer, run: Run) -> None:
    run(table())
    before = copy.deepcopy(balancer.routing)
    balancer.refusal = "peer node1: address is not an IP address"
    result = run(with_peer(slots=3))
    assert result["failed"]
    assert "address is not an IP address" in result["msg"]
    assert "the old one stays in force" in result["msg"]
    assert balancer.routing == before


def test_table_that_does_not_stay_in_force_is_a_failure(balancer: FakeBalancer, run: Run) -> None:
    run(table())
    balancer.forgets = True
    result = run(with_peer(slots=3))
    assert result["failed"]
    assert "another one is in force: peer node1: slots 2 -> 3" in result["msg"]


@pytest.mark.parametrize("check", [False, True])
def test_invalid_table_is_not_sent(balancer: FakeBalancer, run: Run, check: bool) -> None:
    result = run(with_peer(slots=0), check=check)
    assert result["failed"]
    assert "peer node1: slots is 0" in result["msg"]
    assert balancer.puts == 0


def test_unknown_field_is_named(balancer: FakeBalancer, run: Run) -> None:
    result = run(table(peerz=[]))
    assert result["failed"]
    assert "peerz" in result["msg"]


def test_no_balancer(run: Run) -> None:
    result = run(table())
    assert result["failed"]
    assert "not a balancer" in result["msg"]
    assert "journalctl -u nginx" in result["msg"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (with_peer(port=0), "port 0"),
        (with_peer(port=70000), "port 70000"),
        (with_peer(weight=0), "weight is 0"),
        (with_peer(address=""), "address is empty"),
        (with_peer(models=[]), "serves no model"),
        (with_peer(name="node2"), "two peers are named node2"),
        (with_peer(address="192.0.2.12"), "two peers have the address 192.0.2.12:8000"),
        (with_peer(name=""), "(without a name)"),
        (table(default_model="mistral"), "no peer serves default_model mistral (served: gemma3:270m)"),
        (table(keys=[{"name": "a", "sha256": "xyz"}]), "key a: sha256"),
        (table(keys=[{"name": "a", "sha256": OLD_HASH}, {"name": "a", "sha256": NEW_HASH}]), "two keys are named a"),
        (table(keys=[]), "there is no key"),
        (table(peers=[]), "it has no peers"),
        (table(policy="random"), "policy is random"),
        (table(routes=[{"name": "a", "peers": ["node3"]}]), "routes[a].peers: there is no peer or node 'node3'"),
        (table(keys=[{"name": "a", "sha256": OLD_HASH, "concurrent": 0}]), "key a: concurrent is 0"),
        (table(keys=[{"name": "a", "sha256": OLD_HASH, "requests_per_minute": 1.5}]), "requests_per_minute is 1.5"),
        (table(keys=[{"name": "a", "sha256": OLD_HASH, "models": [""]}]), "key a: models must be"),
        (table(limits={"retry_budget": 2}), "limit retry_budget is 2, it must be a number from 0 to 1"),
        (table(limits={"queue_timeout": "soon"}), "limit queue_timeout is soon"),
        (table(limits={"queue_timeout": -1}), "limit queue_timeout is -1, it must be a number from 0 to 86400"),
    ],
)
def test_problems(wanted: dict[str, Any], words: str) -> None:
    found = _routing_table.table_problems(_routing_table.normal_table(wanted))
    if "without a name" in words:
        wanted["peers"][0]["slots"] = 0
        found = _routing_table.table_problems(_routing_table.normal_table(wanted))
    assert any(words in problem for problem in found), found


def test_valid_tables_have_no_problems() -> None:
    assert _routing_table.table_problems(_routing_table.normal_table(table())) == []


@pytest.mark.parametrize(
    ("after", "lines"),
    [
        (table(), []),
        (table(default_model=""), ["default_model: gemma3:270m -> "]),
        (table(require_key=False), ["require_key: True -> False"]),
        (table(keys=[]), ["key demo: removed"]),
        (table(limits={"connect_timeout": 2, "queue_timeout": 90}), ["limits: connect_timeout 1 -> 2"]),
        (table(limits={"connect_timeout": 1}), ["limits: queue_timeout 90 -> 60"]),
        (with_peer(weight=2.5, backup=True), ["peer node1: weight 1 -> 2.5, backup False -> True"]),
    ],
)
def test_differences(after: dict[str, Any], lines: list[str]) -> None:
    normal = _routing_table.normal_table
    assert _routing_table.differences(normal(table()), normal(after)) == lines


ROUTES = [
    {"name": "llama", "when": {"model": "gemma*"}, "require": {"groups": "llm_nodes"}},
    {"name": "rest", "prefer": {"memory_gb": ">64"}},
]


def with_labels(**labels: Any) -> dict[str, Any]:
    """Return the table with these labels on both peers, and routes."""
    changed = table(routes=copy.deepcopy(ROUTES))
    for peer in changed["peers"]:
        peer["labels"] = dict(labels)
    return changed


def test_routes_and_policy_are_put_and_their_changes_named(balancer: FakeBalancer, run: Run) -> None:
    wanted = with_labels(groups=["llm_nodes"], memory_gb=128)
    assert "route llama: added" in run(wanted)["changes"]
    assert balancer.routing is not None
    assert balancer.routing["routes"] == ROUTES
    assert not run(wanted)["changed"]

    wanted["policy"] = "least_busy"
    wanted["routes"] = [wanted["routes"][1], {**wanted["routes"][0], "fallback": "gemma3:270m"}]
    wanted["keys"][0].update(requests_per_minute=60, models=["gemma*"])
    assert run(wanted)["changes"] == [
        "policy: affinity -> least_busy",
        "key demo: requests_per_minute none -> 60, models none -> ['gemma*']",
        "route llama: fallback none -> gemma3:270m",
        "routes: now in the order rest, llama",
    ]
    assert not run(wanted)["changed"]


def test_what_lua_makes_of_a_route_is_the_same_route(balancer: FakeBalancer, run: Run) -> None:
    wanted = with_labels(groups=["llm_nodes"], rack=[])
    wanted["routes"] = [
        {"name": "a", "when": {}, "require": {"groups": ["llm_nodes"]}, "peers": ["node1"], "model": None}
    ]
    run(wanted)
    assert balancer.routing is not None
    assert balancer.routing["routes"] == [{"name": "a", "require": {"groups": ["llm_nodes"]}, "peers": ["node1"]}]
    for peer in balancer.routing["peers"]:
        peer["labels"]["rack"] = {}
    assert not run(wanted)["changed"]


def test_a_route_that_can_match_no_peer_is_refused_by_name(balancer: FakeBalancer, run: Run) -> None:
    result = run(with_labels(groups=["others"]))
    assert result["failed"]
    assert "routes[llama]: can match no peer: none has groups llm_nodes (there is others)" in result["msg"]
    assert balancer.puts == 0


def test_labels_that_could_not_be_read_are_kept(balancer: FakeBalancer, run: Run) -> None:
    run(with_labels(groups=["llm_nodes"], memory_gb=128, rack="a"))
    unread = with_labels(groups=["llm_nodes"])
    unread["peers"][1]["labels"]["memory_gb"] = 64
    kept = run(unread, keep_labels={"node1": ["memory_gb"], "node2": ["memory_gb", "cpus"]})
    assert kept["changes"] == [
        "peer node1: labels {'groups': ['llm_nodes'], 'memory_gb': 128, 'rack': 'a'}"
        " -> {'groups': ['llm_nodes'], 'memory_gb': 128}",
        "peer node2: labels {'groups': ['llm_nodes'], 'memory_gb': 128, 'rack': 'a'}"
        " -> {'groups': ['llm_nodes'], 'memory_gb': 64}",
    ]


def documented(options: dict[str, Any]) -> dict[str, Any]:
    """Return documented options without their descriptions."""
    return {
        name: {
            key: documented(value) if key == "suboptions" else value
            for key, value in option.items()
            if key != "description"
        }
        for name, option in options.items()
    }


def specified(options: dict[str, Any]) -> dict[str, Any]:
    """Return an argument spec in the words of documentation."""
    return {
        name: {
            "suboptions" if key == "options" else key: specified(value) if key == "options" else value
            for key, value in option.items()
            if key != "no_log"
        }
        for name, option in options.items()
    }


def test_documentation_equals_the_argument_spec() -> None:
    documentation = yaml.safe_load(balancer_routing.DOCUMENTATION)["options"]
    assert documented(documentation["table"]["suboptions"]) == specified(balancer_routing.TABLE_OPTIONS)
    fragment = yaml.safe_load(ModuleDocFragment.DOCUMENTATION)["options"]
    assert documented(fragment) == specified(ADMIN_OPTIONS)


def lua_limits() -> dict[str, tuple[float, ...]]:
    """Return LIMITS as peers.lua has them."""
    lua = (Path(__file__).parents[4] / "roles/balancer/files/lua/llm_cluster/peers.lua").read_text()
    block = re.search(r"^local LIMITS = \{$(.*?)^\}", lua, re.MULTILINE | re.DOTALL)
    assert block is not None
    found = re.findall(r"^\s+(\w+) = \{ ([0-9., ]+) \},", block.group(1), re.MULTILINE)
    return {name: tuple(float(number) for number in numbers.split(",")) for name, numbers in found}


def test_limits_equal_the_balancers() -> None:
    assert lua_limits() == _routing_table.LIMITS
    assert {name: option["default"] for name, option in balancer_routing.LIMIT_OPTIONS.items()} == {
        name: limits[0] for name, limits in _routing_table.LIMITS.items()
    }


def test_each_limit_is_a_variable_of_the_role_with_the_same_default() -> None:
    defaults = yaml.safe_load((Path(__file__).parents[4] / "roles/balancer/defaults/main.yml").read_text())
    assert set(defaults["balancer_limits"]) == set(_routing_table.LIMITS)
    for name, (default, _least, _most) in _routing_table.LIMITS.items():
        assert defaults[f"balancer_{name}"] == default, name
        assert f"balancer_{name} |" in defaults["balancer_limits"][name]
