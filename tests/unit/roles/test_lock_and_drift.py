# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""playbooks/lock.yml and drift.yml run for real on this machine, with a SIMULATED registry; one node can't be reached.

What a node serves is read from its store on the disk, so no engine is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from simulated.registry import Published, Registry

ROOT = Path(__file__).resolve().parents[3]
LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "llm_address": "127.0.0.1"}
GONE = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
GGUF = b"GGUF" + bytes(100)


class Cluster:
    """An inventory of this machine, and the playbooks that run on it."""

    def __init__(self, folder: Path, registry: Registry) -> None:
        self.folder, self.registry = folder, registry
        self.lock = folder / "models.lock.yml"
        (folder / "x.gguf").write_bytes(GGUF)
        self.models = [
            {"name": f"{name}:1b", "source": {"registry": f"{registry.netloc}/library/{name}:1b"}, "insecure": True}
            for name in ("tiny", "small")
        ]
        self.nodes: dict[str, dict[str, Any]] = {
            "gone": GONE,
            "node1": {**LOCAL, "ollama_models_path": str(folder / "store")},
        }

    def run(self, playbook: str, *arguments: str, **variables: Any) -> tuple[int, str]:
        inventory = {"llm_nodes": {"hosts": self.nodes, "vars": {"llm_models": self.models, "llm_node_port": 9}}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory, sort_keys=False))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", str(self.folder / "hosts.yml")]
        extra = ["-e", json.dumps(variables)] if variables else []
        done = subprocess.run(
            [*command, *arguments, *extra, str(ROOT / "playbooks" / f"{playbook}.yml")],
            env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "HOME": str(self.folder)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    def locked(self) -> dict[str, Any]:
        models: dict[str, Any] = yaml.safe_load(self.lock.read_text())["models"]
        return models

    def serve(self, name: str, published: Published) -> None:
        """Put a version into the node's store."""
        store = self.folder / "store"
        repository, _, tag = published.name.partition(":")
        raw = self.registry.documents[f"/v2/{repository}/manifests/{tag}"].content
        manifest = store / "manifests/registry.ollama.ai/library" / name.replace(":", "/")
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_bytes(raw)
        (store / "blobs").mkdir(exist_ok=True)
        for blob in published.blobs:
            content = self.registry.documents[f"/v2/{repository}/blobs/{blob}"].content
            (store / "blobs" / blob.replace(":", "-")).write_bytes(content)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    registry = Registry()
    registry.start()
    yield Cluster(tmp_path, registry)
    registry.stop()


def test_locking_updating_and_checking(cluster: Cluster) -> None:
    tiny, small = (
        cluster.registry.publish(f"{name}:1b", size=size) for name, size in (("tiny", 2000), ("small", 3000))
    )
    cluster.nodes["node2"] = {
        **LOCAL,
        "llm_engine": "llama_cpp",
        "llm_models": [{"name": "x", "source": {"file": str(cluster.folder / "x.gguf")}}],
    }
    code, output = cluster.run("lock", "--check", "--diff")
    assert code == 2, output
    assert "models.lock.yml is not up to date. Run lock.yml without --check" in output
    assert not cluster.lock.exists()

    code, output = cluster.run("lock")
    assert code == 0, output
    assert {name: list(engines) for name, engines in cluster.locked().items()} == {
        "small:1b": ["ollama"],
        "tiny:1b": ["ollama"],
        "x": ["llama_cpp"],
    }
    assert cluster.locked()["tiny:1b"]["ollama"]["digest"] == tiny.digest
    assert cluster.locked()["x"]["llama_cpp"] == {
        "digest": "sha256:" + hashlib.sha256(GGUF).hexdigest(),
        "size": len(GGUF),
        "source": {"file": "x.gguf"},
    }

    # What is locked is not asked for again, however tags move.
    text = cluster.lock.read_text().replace("  small:1b:", "  # Anna: the one for questions.\n  small:1b:")
    cluster.lock.write_text(text)
    moved, _other = (cluster.registry.publish(f"{name}:1b", b"new") for name in ("tiny", "small"))
    cluster.registry.requests.clear()
    code, output = cluster.run("lock", "--check")
    assert (code, cluster.registry.requests) == (0, []), output
    assert "is up to date" in output

    code, output = cluster.run("lock", lock_update=["tiny:1b"])
    assert code == 0, output
    assert f"tiny:1b (ollama): {tiny.digest} → {moved.digest}" in output
    before, after = (lock["tiny:1b"]["ollama"]["size"] for lock in (yaml.safe_load(text)["models"], cluster.locked()))
    assert cluster.lock.read_text() == text.replace(tiny.digest, moved.digest).replace(
        f"size: {before}", f"size: {after}"
    )
    assert cluster.locked()["small:1b"]["ollama"]["digest"] == small.digest


def test_what_cannot_be_locked_is_told_and_the_rest_is_locked(cluster: Cluster) -> None:
    tiny = cluster.registry.publish("tiny:1b")
    code, output = cluster.run("lock")
    assert code == 2
    assert "small:1b (ollama): http" in output
    assert "answered 404" in output
    assert list(cluster.locked()) == ["tiny:1b"]

    cluster.lock.write_text("<<<<<<< HEAD\n" + cluster.lock.read_text())
    before = cluster.lock.read_text()
    code, output = cluster.run("lock", lock_update="all")
    assert code == 2
    assert "models.lock.yml, line 1: two versions of the file conflict here" in output
    assert cluster.lock.read_text() == before

    # Nobody else can be reached: the controller asks.
    cluster.lock.unlink()
    cluster.nodes = {"gone": GONE}
    cluster.models = cluster.models[:1]
    code, output = cluster.run("lock")
    assert code == 0, output
    assert cluster.locked()["tiny:1b"]["ollama"]["digest"] == tiny.digest


def test_versions_from_a_node_and_drift(cluster: Cluster) -> None:
    tiny = cluster.registry.publish("tiny:1b")
    cluster.serve("tiny:1b", tiny)
    cluster.registry.publish("tiny:1b", b"moved")
    cluster.models = cluster.models[:1]
    code, output = cluster.run("lock", lock_from="gone")
    assert code == 2
    assert "gone can't be asked what it serves, so nothing was written" in output
    code, output = cluster.run("lock", lock_from="node1")
    assert code == 0, output
    assert cluster.locked()["tiny:1b"]["ollama"]["digest"] == tiny.digest

    result = cluster.folder / "result.json"
    code, output = cluster.run("drift", "--check")
    assert code == 2
    assert "gone: can't be reached" in output
    found = json.loads(result.read_text())
    assert (found["ok"], found["drift"], found["unreachable"], found["unlocked"]) == (False, [], ["gone"], [])
    assert found["nodes"]["node1"]["models"][0]["kind"] == "ok"

    del cluster.nodes["gone"]
    code, output = cluster.run("drift", result_file=str(cluster.folder / "other.json"))
    assert code == 0, output
    assert json.loads((cluster.folder / "other.json").read_text())["ok"] is True

    (cluster.folder / "store/blobs" / tiny.blobs[0].replace(":", "-")).write_bytes(b"damaged")
    cluster.models.append({"name": "small:1b"})
    code, output = cluster.run("drift")
    assert code == 2
    assert "node1: the models are not those of the lock file" in output
    assert "does not settle the version of small:1b (ollama). Lock it with" in output
    found = json.loads(result.read_text())
    kinds = {model["name"]: model["kind"] for model in found["nodes"]["node1"]["models"]}
    assert (found["drift"], kinds) == (["node1"], {"tiny:1b": "corrupt", "small:1b": "missing"})
