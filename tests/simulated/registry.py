# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A SIMULATED model registry: manifests and blobs as Ollama's registry serves them, with made-up models.

Ollama wants a Location header on the answer to a blob (it goes on from there with Range requests): 200 with Location
pointing to the blob itself is the least that works, and is what this registry does.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from ._faults import Document, FaultyServer

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"


class Published(NamedTuple):
    name: str  # namespace/model:tag
    digest: str  # sha256:… of the manifest, what /api/tags shows (there without "sha256:")
    blobs: list[str]


class Registry(FaultyServer):
    def publish(self, name: str, content: bytes | None = None, size: int = 200_000) -> Published:
        """Put a model there, or move its tag: the same name with other content is another digest."""
        repository, _, tag = name.partition(":")
        if "/" not in repository:
            repository = f"library/{repository}"
        weights = content if content is not None else made_up(name, size)
        config = json.dumps(
            {
                "model_format": "gguf",
                "model_family": "simulated",
                "model_families": ["simulated"],
                "model_type": "1M",
                "file_type": "Q8_0",
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [digest_of(weights)]},
            }
        ).encode()
        layers = [{"mediaType": "application/vnd.ollama.image.model", **self._blob(repository, weights)}]
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": {
                    "mediaType": "application/vnd.docker.container.image.v1+json",
                    **self._blob(repository, config),
                },
                "layers": layers,
            },
            separators=(",", ":"),
        ).encode()
        self.documents[f"/v2/{repository}/manifests/{tag or 'latest'}"] = Document(manifest, MANIFEST_TYPE)
        blobs = [digest_of(weights), digest_of(config)]
        return Published(f"{repository}:{tag or 'latest'}", digest_of(manifest), blobs)

    def _blob(self, repository: str, content: bytes) -> dict[str, str | int]:
        digest = digest_of(content)
        path = f"/v2/{repository}/blobs/{digest}"
        self.documents[path] = Document(content, headers={"Location": path})
        return {"digest": digest, "size": len(content)}


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def made_up(seed: str, size: int) -> bytes:
    """Bytes that stand in for weights: always the same for the same seed, so a digest can be written down."""
    return (b"GGUF-simulated:" + hashlib.shake_256(seed.encode()).digest(size))[:size]
