# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a node's peers to what the module takes."""

from __future__ import annotations

from typing import Any

from ansible_collections.llm.cluster.plugins.filter import models
from ansible_collections.llm.cluster.plugins.module_utils import _topology
from ansible_collections.llm.cluster.plugins.modules import model as module

DEFAULTS: dict[str, Any] = {
    "llm_node_port": 8000,
    "llm_node_slots": 4,
    "llm_node_weight": 1,
    "llm_node_backup": False,
    "llm_node_labels": {},
}
FILE = {"name": "Gemma3:270m", "source": {"file": "/srv/a.gguf"}}
URL = {"name": "b", "source": {"url": "http://x/b"}, "digest": "AB", "preload": False}


def peers(engine: str, *wanted: dict[str, Any]) -> list[dict[str, Any]]:
    values = {**DEFAULTS, "llm_engine": engine, "llm_models": list(wanted), "llm_address": "192.0.2.1"}
    return _topology.node_peers("node1", values, DEFAULTS)


def test_each_model_with_its_address_and_port() -> None:
    first, second = models.module_models(peers("llama_cpp", FILE, URL))
    common = {"address": "192.0.2.1", "insecure": False, "size": None}
    expected = {"name": "Gemma3:270m", "port": 8000, "digest": None, "source": FILE["source"], "unit": "gemma3-270m"}
    assert first == {**common, **expected}
    expected = {"name": "b", "port": 8001, "digest": "sha256:ab", "source": URL["source"], "unit": "b"}
    assert second == {**common, **expected}


def test_only_what_is_to_be_preloaded() -> None:
    assert [entry["name"] for entry in models.preloaded_models(peers("llama_cpp", FILE, URL))] == ["Gemma3:270m"]


def test_ollama_and_no_model() -> None:
    (entry,) = models.module_models(peers("ollama", {"name": "gemma3:270m"}))
    assert entry["source"] == {"registry": "gemma3:270m"}
    assert models.module_models(peers("ollama")) == []


def test_the_module_knows_every_key() -> None:
    assert set(models.module_models(peers("ollama", {"name": "a"}))[0]) <= set(module.MODEL)
