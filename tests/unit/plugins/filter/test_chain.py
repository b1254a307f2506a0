# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import Any

from ansible_collections.llm.cluster.plugins.filter.chain import chain

DIGEST = "sha256:" + "a" * 64


def host(address: str, *, has: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "llm_address": address,
        "llm_engine": "llama_cpp",
        "llm_models": [{"name": "m:1b", "source": {"url": "https://mirror/m"}, "digest": DIGEST}],
        "llm_node_stats": {
            "models": [{"name": "m:1b", "digest": "", "wanted": DIGEST, "status": "missing"}],
            "held": {DIGEST: 9} if has else {},
        },
        **more,
    }


def test_models_addresses_and_who_is_away() -> None:
    hostvars = {
        "n1": host("192.0.2.1"),
        "n2": host("2001:db8::2", llm_share_port=9090),
        "n3": host("192.0.2.3", has=True, llama_cpp_data_dir="/data"),
        "down": {"llm_address": "192.0.2.4", "llm_node_stats": {"unreachable": True}},
    }
    plan = chain(["n1", "n2"], hostvars, ["n1", "n2", "n3", "down"])
    assert plan["fetch"]["n2"] == [
        {
            "name": "m:1b",
            "address": "2001:db8::2",
            "port": 8000,
            "digest": DIGEST,
            "size": None,
            "source": {"url": "https://mirror/m"},
            "insecure": False,
            "unit": "m-1b",
            "peers": ["http://192.0.2.1:8090", "http://192.0.2.3:8090"],
            "patience": 10.0,
        }
    ]
    assert [entry["peers"] for entry in plan["fetch"]["n1"]] == [["http://192.0.2.3:8090"]]
    assert plan["serve"] == ["n1", "n2"]
    assert plan["away"] == [
        {
            "host": "n3",
            "address": "192.0.2.3",
            "models_dir": "/data/models",
            "partial_dir": "/data/partial",
        }
    ]
    assert plan["addresses"] == ["192.0.2.1", "2001:db8::2", "192.0.2.3"]
    # Without the third one, the second gets it from the first at its own port.
    del hostvars["n3"]
    plan = chain(["n1", "n2"], hostvars, ["n2", "n1"])
    assert [entry["peers"] for entry in plan["fetch"]["n1"]] == [["http://[2001:db8::2]:9090"]]
    assert plan["away"] == []


def test_nothing_to_do() -> None:
    hostvars = {"n1": host("192.0.2.1", has=True), "n2": host("192.0.2.2", has=True)}
    empty: dict[str, Any] = {"fetch": {}, "send": {}, "serve": [], "away": [], "addresses": []}
    assert chain(["n1", "n2"], hostvars, ["n1", "n2"]) == empty
