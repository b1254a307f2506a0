# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's stores passed on from node to node, with their real shares and a SIMULATED registry."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._engines import Fetch, Look, ModelSpec, Settings
from ansible_collections.llm.cluster.plugins.module_utils._engines.ollama import Ollama
from ansible_collections.llm.cluster.plugins.module_utils._fetch import HttpOptions
from ansible_collections.llm.cluster.plugins.module_utils._share_server import Files, Share
from simulated.registry import Registry

TOKEN = "a-token-of-forty-characters-or-so"


class Node:
    """A node without a server: its store, and its share."""

    def __init__(self, folder: Path) -> None:
        (folder / "models").mkdir(parents=True)
        (folder / "token").write_text(TOKEN, encoding="ascii")
        settings = Settings(
            models_dir=str(folder / "models"),
            partial_dir=str(folder / "partial"),
            token_file=str(folder / "token"),
            http=HttpOptions(timeout=10, retries=1, pause=0.01),
        )
        self.engine = Ollama(settings, "127.0.0.1", 9)
        files = Files(settings.models_dir, settings.partial_dir)
        self.share = Share(("127.0.0.1", 0), TOKEN.encode(), files, ["127.0.0.1"], 0)
        self.url = f"http://127.0.0.1:{self.share.server_address[1]}"
        Thread(target=self.share.serve_forever, args=(0.01,), daemon=True).start()

    def fetch(self, digest: str, registry: str, peers: list[Node]) -> tuple[Look, Fetch]:
        spec = ModelSpec(
            "tiny:1",
            state="fetched",
            engine="ollama",
            digest=digest,
            registry=f"{registry}/library/tiny:1",
            insecure=True,
            peers=tuple(peer.url for peer in peers),
            patience=10,
            unit="tiny-1",
        )
        look = self.engine.look(spec)
        return look, self.engine.fetch(spec, look)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    made = [Node(tmp_path / str(number)) for number in range(3)]
    yield made
    for node in made:
        node.share.shutdown()
        node.share.server_close()


def test_one_copy_leaves_the_registry(nodes: list[Node], registry: Registry) -> None:
    published = registry.publish("tiny:1", size=3_000_000)
    first, second, third = nodes
    with ThreadPoolExecutor() as pool:
        jobs = [
            pool.submit(node.fetch, published.digest, registry.netloc, peers)
            for node, peers in ((third, [second, first]), (second, [first]), (first, []))
        ]
        for job in jobs:
            job.result(60)
    for node in nodes:
        assert node.engine.inspect([], verify=True).held[published.digest] > 3_000_000
    asked = [path for _, path, _ in registry.requests]
    assert sorted(asked) == sorted(
        ["/v2/library/tiny/manifests/1", *(f"/v2/library/tiny/blobs/{digest}" for digest in published.blobs)]
    )


def test_a_version_that_only_another_node_has(nodes: list[Node], registry: Registry) -> None:
    """As after a pull by hand: the node never fetched it itself, so that its share has to be told of the manifest."""
    digest = registry.publish("tiny:1").digest
    old, new, _ = nodes
    old.fetch(digest, registry.netloc, [])
    shared = Path(old.engine.store.shared_manifest(digest))
    shared.unlink()
    old.engine.store.share_all()
    assert shared.exists()
    registry.documents.clear()
    registry.requests.clear()
    new.fetch(digest, registry.netloc, [old])
    assert digest in new.engine.inspect([], verify=True).held
    assert registry.requests == []


def test_a_node_that_dies_is_left_for_the_registry(nodes: list[Node], registry: Registry) -> None:
    published = registry.publish("tiny:1", size=500_000)
    first, second, _ = nodes
    first.share.shutdown()
    first.share.server_close()
    _, fetched = second.fetch(published.digest, registry.netloc, [first])
    assert fetched.moved > 500_000
    assert published.digest in second.engine.inspect([], verify=True).held
