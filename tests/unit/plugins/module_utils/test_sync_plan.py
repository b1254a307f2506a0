# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _sync_plan as sync

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def peer(
    node: str, *models: str, engine: str = "ollama", digest: str | None = NEW, preload: bool = True
) -> dict[str, Any]:
    return {
        "name": node,
        "node": node,
        "engine": engine,
        "address": "192.0.2.1",
        "port": 8000,
        "models": [{"name": name, "digest": digest, "preload": preload, "unit": name + "-unit"} for name in models],
    }


def found(name: str, status: str = "ok", digest: str = NEW, **more: Any) -> dict[str, Any]:
    return {"name": name, "status": status, "digest": digest, "held": status == "ok", "loaded": digest, **more}


def node(*models: dict[str, Any], held: tuple[str, ...] = (OLD, NEW)) -> dict[str, Any]:
    return {"models": list(models), "held": dict.fromkeys(held, 1)}


def old(name: str = "m", **more: Any) -> dict[str, Any]:
    return found(name, "wrong", OLD, **more)


def info(*nodes: str, models: tuple[str, ...] = ("m",), drains: Any = (), **states: str) -> dict[str, Any]:
    """What a balancer says: nodes that are up, unless ``states`` says otherwise; drains as (node, owner)."""
    marks = [{"name": name, "owner": owner, "reason": ""} for name, owner in drains]
    drained = {mark["name"] for mark in marks}
    return {
        "nodes": {
            name: [
                {
                    "name": name,
                    "node": name,
                    "state": "drained" if name in drained else states.get(name, "up"),
                    "models": list(models),
                    "lacks": [],
                }
            ]
            for name in nodes
        },
        "drains": marks,
    }


def make(
    stats: Any, balancer: Any, *, batch: int = 1, least: int = 1, peers: Any = None, run: str = "R"
) -> dict[str, Any]:
    peers = peers or [peer(name, "m") for name in stats]
    balancers = {"b": balancer} if not isinstance(balancer, list) else dict(zip("bc", balancer, strict=False))
    return sync.plan(peers, stats, balancers, batch=batch, min_available=least, run=run)


WORK = [
    # found, held → fetch, switch, load, restart, back
    ([found("m")], [], [], [], [], [], {}),
    ([old()], [OLD], ["m"], ["m"], [], [], {"m": OLD}),
    ([old(held=True)], [OLD, NEW], [], ["m"], [], [], {"m": OLD}),
    ([], [], ["m"], ["m"], [], [], {}),
    ([found("m", "missing", "", have=5)], [], ["m"], ["m"], [], [], {}),
    ([old()], [], ["m"], ["m"], [], [], {}),  # what is served is not whole, so there is nothing to go back to
    ([found("m", "corrupt", NEW)], [], ["m"], ["m"], [], ["ollama.service"], {}),
    ([found("m", loaded=OLD)], [NEW], [], [], ["m"], [], {}),
    ([found("m", loaded="")], [NEW], [], [], [], [], {}),
]


@pytest.mark.parametrize(("models", "held", "needs"), [(case[0], case[1], case[2:]) for case in WORK])
def test_what_one_node_needs(models, held, needs):
    work = sync.node_work("ollama", peer("n", "m")["models"], node(*models, held=tuple(held)))
    work["switch"] = [each["name"] for each in work["switch"]]
    assert tuple(work[key] for key in ("fetch", "switch", "load", "restart", "back")) == needs


def test_a_model_that_is_not_preloaded_may_be_out_of_memory_or_old_in_it():
    models = peer("n", "m", preload=False)["models"]
    assert sync.node_work("ollama", models, node(found("m", loaded=OLD)))["load"] == []


def test_going_back_is_all_or_nothing():
    work = sync.node_work("ollama", peer("n", "m", "x")["models"], node(old()))
    assert [each["name"] for each in work["switch"]] == ["m", "x"]
    assert work["back"] == {}


@pytest.mark.parametrize(
    "model", [found("m", "corrupt"), found("m", loaded=OLD), found("m", loaded=NEW + " (replaced)")]
)
def test_an_instance_restarts_that_has_something_else_in_memory(model):
    work = sync.node_work("llama_cpp", peer("n", "m")["models"], node(model))
    assert work["restart"] == ["llama-cpp@m-unit.service"]
    assert work["back"] == {}


def test_nothing_to_do():
    plan = make({"n1": node(found("m")), "n2": node(found("m"))}, info("n1", "n2"))
    assert (plan["order"], plan["fetch"], plan["serial"], plan["refused"], plan["mark"]) == ([], [], [], [], [])


def test_one_after_the_other():
    plan = make({name: node(old()) for name in ("n1", "n2", "n3")}, info("n1", "n2", "n3"))
    assert plan["batches"] == [["n1"], ["n2"], ["n3"]]
    assert plan["fetch"] == ["n1", "n2", "n3"]
    assert plan["serial"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("batch", "least", "batches"),
    [
        (2, 1, [["n1", "n2"], ["n3", "n4"]]),
        (4, 1, [["n1", "n2", "n3"], ["n4"]]),  # one must stay
        (4, 2, [["n1", "n2"], ["n3", "n4"]]),
        (4, 3, [["n1"], ["n2"], ["n3"], ["n4"]]),
        (4, 0, [["n1", "n2", "n3", "n4"]]),
        (0, 0, [["n1"], ["n2"], ["n3"], ["n4"]]),
    ],
)
def test_batches_leave_enough_nodes(batch, least, batches):
    names = ("n1", "n2", "n3", "n4")
    assert make({name: node(old()) for name in names}, info(*names), batch=batch, least=least)["batches"] == batches


def test_a_batch_takes_nodes_of_different_models():
    peers = [peer("n1", "m"), peer("n2", "m"), peer("n3", "x"), peer("n4", "x")]
    stats = {"n1": node(old()), "n2": node(old()), "n3": node(old("x")), "n4": node(old("x"))}
    view = info("n1", "n2")
    view["nodes"].update(info("n3", "n4", models=("x",))["nodes"])
    assert make(stats, view, batch=2, peers=peers)["batches"] == [["n1", "n3"], ["n2", "n4"]]


def test_who_serves_nothing_goes_first():
    stats = {name: node(old()) for name in ("n1", "n2", "n3")}
    plan = make(stats, info("n1", "n2", "n3", drains=[("n3", "operator")], n2="down"))
    assert plan["order"] == ["n2", "n3", "n1"]
    assert plan["nodes"]["n3"]["drained_by"] == ["operator"]


def test_a_node_that_serves_nothing_makes_room():
    # Only n1 serves, but n2 will once it is switched.
    plan = make({"n1": node(old()), "n2": node(old())}, info("n1", "n2", n2="down"))
    assert (plan["order"], plan["refused"]) == (["n2", "n1"], [])


def test_a_node_that_stays_drained_makes_none():
    plan = make({"n1": node(old()), "n2": node(old())}, info("n1", "n2", drains=[("n2", "operator")]))
    (refused,) = plan["refused"]
    assert "m is served by n1 only" in refused
    assert "llm_sync_min_available to 0" in refused


def test_every_balancer_counts():
    stats = {"n1": node(old()), "n2": node(found("m"))}
    assert make(stats, [info("n1", "n2"), info("n1", "n2")])["refused"] == []
    assert make(stats, [info("n1", "n2"), info("n1", "n2", n2="down")])["refused"] != []


def test_a_peer_that_lacks_the_model_does_not_count():
    view = info("n1", "n2")
    view["nodes"]["n2"][0]["lacks"] = ["m"]
    assert make({"n1": node(old()), "n2": node(found("m"))}, view)["refused"]


def test_a_model_on_one_node_needs_leave():
    assert "would be left" in make({"n1": node(old())}, info("n1"))["refused"][0]
    assert make({"n1": node(old())}, info("n1"), least=0)["batches"] == [["n1"]]


def test_without_balancers_nobody_is_drained_or_counted():
    plan = sync.plan([peer("n1", "m")], {"n1": node(old())}, {}, batch=1, min_available=1, run="R")
    assert (plan["order"], plan["refused"]) == (["n1"], [])
    assert plan["nodes"]["n1"]["balancers"] == []


def test_a_lost_balancer_forbids_switching_and_nothing_else():
    assert "c can't be asked" in make({"n1": node(old()), "n2": node(old())}, [info("n1", "n2"), None])["refused"][0]
    plan = make({"n1": node(found("m"))}, [info("n1"), None])
    assert (plan["refused"], plan["lost"]) == ([], ["c"])


def test_what_an_interrupted_sync_left_is_checked_again():
    plan = make({"n1": node(found("m")), "n2": node(found("m"))}, info("n1", "n2", drains=[("n1", "sync")]))
    assert plan["order"] == ["n1"]
    assert plan["nodes"]["n1"]["leftover"]
    assert plan["nodes"]["n1"]["drained_by"] == []


def test_an_operators_drain_alone_is_no_work():
    assert make({"n1": node(found("m"))}, info("n1", drains=[("n1", "operator")]))["order"] == []


@pytest.mark.parametrize(
    ("gone", "why"),
    [(None, "can't be reached"), ({"models": None, "unread": [{"part": "models", "reason": "no disk"}]}, "no disk")],
)
def test_a_node_of_unknown_versions_is_marked_while_others_are_switched(gone, why):
    stats = {"n1": node(old()), "n2": node(old()), "n3": gone}
    plan = make(stats, info("n1", "n2", "n3"))
    assert (plan["mark"], plan["order"]) == (["n3"], ["n1", "n2"])
    assert why in plan["unknown"]["n3"]


def test_a_node_out_of_reach_does_not_count_as_serving():
    plan = make({"n1": node(old()), "n2": None}, info("n1", "n2"))
    assert "n2 can't be reached" in plan["refused"][0]


@pytest.mark.parametrize(
    "peers",
    [
        [peer("n1", "m"), peer("n2", "m"), peer("n3", "x")],  # it serves nothing that changes
        [peer("n1", "m"), peer("n2", "m"), peer("n3", "m")],  # no balancer knows it
    ],
)
def test_nodes_out_of_reach_that_need_no_mark(peers):
    view = info("n1", "n2", "n3") if peers[2]["models"][0]["name"] == "x" else info("n1", "n2")
    assert make({"n1": node(old()), "n2": node(old()), "n3": None}, view, peers=peers)["mark"] == []


def test_nothing_to_switch_marks_nobody():
    plan = make({"n1": node(found("m")), "n2": None}, info("n1", "n2"))
    assert (plan["mark"], list(plan["unknown"])) == ([], ["n2"])


def test_without_a_lock_nothing_is_planned():
    (refused,) = make({"n1": node(found("m"))}, info("n1"), peers=[peer("n1", "m", digest=None)])["refused"]
    assert refused == "No version is locked for m (ollama): run lock.yml first."


def test_the_preview_says_what_changes():
    peers = [peer(name, "m") for name in ("n1", "n2", "n3", "n4")]
    stats = {"n1": node(old()), "n2": node(found("m")), "n3": None, "n4": node(found("m", loaded=OLD))}
    view = info("n1", "n2", "n3", "n4", drains=[("n1", "operator"), ("n2", "sync")])
    rows, notes = sync.preview(make(stats, view, peers=peers), peers)
    assert rows == [["n1", "m", "a" * 12, "b" * 12, "fetch, switch"], ["n4", "m", "b" * 12, "b" * 12, "load"]]
    assert notes == [
        "n1 is drained by operator and stays so.",
        "n2 is still drained by an earlier sync: it is checked and taken back.",
        "Order: n1, then n2, then n4.",
        "n3: can't be reached, so it is kept out of rotation.",
    ]


def test_the_preview_of_nothing():
    peers = [peer("n1", "m")]
    assert sync.preview(make({"n1": node(found("m"))}, info("n1")), peers) == ([], ["Nothing is to be switched."])


def test_a_shortage_is_named():
    view = info("n1", "n2", n2="down")
    assert sync.shortage(view, ["m"], ["n1"], 1) == [
        "m would be left with 0 of the 1 nodes that llm_sync_min_available asks for while n1 is switched"
    ]
    assert sync.shortage(view, ["m"], ["n1"], 0) == []
    assert sync.shortage(view, ["m"], ["n2"], 1) == []  # it serves nothing that it could be missed for


def test_peers_at_other_versions():
    before = [peer("n1", "m", "x")]
    after = sync.at_versions(before, {"m": OLD})
    assert [model["digest"] for model in after[0]["models"]] == [OLD, NEW]
    assert [model["source"] for model in after[0]["models"]] == [{}, {}]
    assert before[0]["models"][0]["digest"] == NEW


def test_who_is_asked():
    mixed = peer("n1", "loaded", "idle", "switched")
    for model in mixed["models"][1:]:
        model["preload"] = False
    (asked,) = sync.asked_peers([mixed], ["switched"])
    assert [model["name"] for model in asked["models"]] == ["switched", "loaded"]
    assert all(model["preload"] for model in asked["models"])


@pytest.mark.parametrize(
    ("preload", "loaded", "words"),
    [
        (True, NEW, []),
        (True, "", ["m is not in memory"]),
        (True, OLD, [f"m is in memory as {'a' * 12}, not as {'b' * 12}"]),
        (False, "", []),
        (False, OLD, [f"m is in memory as {'a' * 12}, not as {'b' * 12}"]),
    ],
)
def test_what_memory_must_hold(preload, loaded, words):
    assert sync.not_loaded([peer("n", "m", preload=preload)], node(found("m", loaded=loaded))) == words


def table(**peers: list[str]) -> dict[str, Any]:
    return {"schema": 1, "peers": [{"name": name, "node": name, "models": models} for name, models in peers.items()]}


def models_of(given: dict[str, Any]) -> dict[str, list[str]]:
    return {each["name"]: each["models"] for each in given["peers"]}


def test_the_table_follows_what_nodes_have():
    stats = {
        "n1": node(found("m"), found("x", "missing", "")),
        "n2": node(found("x", "missing", "")),
        "n3": node(found("x")),
    }
    after = sync.followed(table(n1=["m", "x"], n2=["x"], n3=["x"]), stats, [info("n1")])
    assert models_of(after) == {"n1": ["m"], "n3": ["x"]}


def test_a_model_that_no_node_has_keeps_its_place():
    after = sync.followed(table(n1=["m"], n2=["x"]), {"n1": node(found("m")), "n2": node()}, [])
    assert models_of(after) == {"n1": ["m"], "n2": ["x"]}


def test_a_node_that_nobody_looked_at_keeps_what_the_table_says():
    stats = {"n1": None, "n2": node(found("m"))}
    after = sync.followed(table(n1=["m", "x"], n2=["m"], n3=["m"]), stats, [info("n1", models=("x",))])
    assert models_of(after) == {"n1": ["x"], "n2": ["m"]}


def test_a_table_is_put_only_if_a_peer_has_other_models():
    assert sync.same_models(table(n1=["m"]), info("n1"))
    assert not sync.same_models(table(n1=["m", "x"]), info("n1"))
    assert not sync.same_models(table(n1=["m"], n2=["m"]), info("n1"))
    assert not sync.same_models(table(), info("n1"))


def test_where_things_stand():
    peers = [peer(name, "m") for name in ("n1", "n2", "n3", "n4")]
    stats = {"n1": node(found("m")), "n2": node(old()), "n3": node(old()), "n4": None}
    plan = make({**stats, "n1": node(old())}, info("n1", "n2", "n3"), peers=peers)
    ended = {"n1": "switched", "n2": "went back to the version before"}
    assert sync.standing(plan, peers, stats, ended) == [
        ["n1", "m", "b" * 12, "as locked; switched"],
        ["n2", "m", "a" * 12, "not as locked; went back to the version before"],
        ["n3", "m", "a" * 12, "not as locked; its turn has not come"],
        ["n4", None, None, "can't be reached"],
    ]


def test_a_model_without_a_service_is_site_ymls():
    new = {"name": "new", "status": "missing", "digest": "", "held": False, "loaded": "", "set_up": False}
    peers = [peer("a", "m", "new", engine="llama_cpp"), peer("b", "m", engine="llama_cpp")]
    plan = make({"a": node(found("m"), new), "b": node(found("m"))}, info("a", "b"), peers=peers)
    assert plan["refused"] == ["a has no service for new yet: run site.yml, which sets new models up."]
    plan = make({"a": node(found("m"), {**new, "set_up": True}), "b": node(found("m"))}, info("a", "b"), peers=peers)
    assert plan["refused"] == []
