# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures: a file to pass on, and clusters of nodes that are namespaces."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from distribution.cluster import Cluster
from distribution.lan import NoNamespacesError, leftovers

SIZE = 40_000_000


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file at the origin."""
    path = tmp_path_factory.mktemp("origin") / "model.gguf"
    path.write_bytes(hashlib.shake_256(b"weights").digest(SIZE))
    return path


@pytest.fixture
def cluster(model: Path, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters, and removes them at the end."""
    made: list[Cluster] = []

    def make(nodes: int, rate_mbit: int = 80) -> Cluster:
        try:
            made.append(Cluster(tmp_path / str(len(made)), model, nodes, rate_mbit))
        except NoNamespacesError as error:
            pytest.skip(f"no network namespaces with caps here: {error}")
        return made[-1]

    yield make
    for each in made:
        each.destroy()
    if made:
        assert leftovers() == []
