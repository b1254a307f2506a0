# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The wheel: what is in it, what it costs every call of ``llm``, and that it lives together with another plugin."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import ROOT, Place, pip

INSIDE = "llm_cluster_ops/_collection/ansible_collections/llm/cluster/"
# In the unit of -X importtime, microseconds.
ALLOWED = 10_000
# A collection of three texts, two of which are alike, as the other plugin wants it.
EMBEDDINGS = """
import llm, sqlite_utils
class Two(llm.EmbeddingModel):
    model_id = "two"
    def embed_batch(self, items):
        return [[float(len(item)), 1.0] for item in items]
db = sqlite_utils.Database(llm.user_dir() / "embeddings.db")
llm.Collection("texts", db, model=Two()).embed_multi([("a", "x"), ("b", "xx"), ("c", "x" * 99)], store=True)
"""


def test_it_carries_the_files_that_galaxy_gets_and_no_others(wheel: Path, tmp_path: Path) -> None:
    galaxy = Path(sys.executable).parent / "ansible-galaxy"
    argv = [str(galaxy), "collection", "build", "--output-path", str(tmp_path)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    (tarball,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(tarball) as archive:
        shipped = {member.name for member in archive.getmembers() if member.isfile()} - {"MANIFEST.json", "FILES.json"}
    with zipfile.ZipFile(wheel) as packed:
        carried = {name.removeprefix(INSIDE) for name in packed.namelist() if name.startswith(INSIDE)}
        other = [name for name in packed.namelist() if not name.startswith(("llm_cluster_ops/", "llm_cluster_ops-"))]
    assert carried == shipped
    assert other == []


def test_a_source_archive_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT / "cli", check=True, capture_output=True)
    (source,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    subprocess.run([*build, "-t", "wheel"], cwd=source.with_suffix("").with_suffix(""), check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_it_depends_on_what_it_uses_within_ranges(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith("METADATA"))
        about = email.message_from_bytes(packed.read(name))
    ranges = about.get_all("Requires-Dist") or []
    wanted = {"llm", "ansible-core", "ansible-runner", "rich", "ruamel-yaml"}
    assert {re.split(r"[<>=]", one)[0].replace(".", "-") for one in ranges} == wanted
    assert all(">=" in one and "<" in one for one in ranges)
    assert about["Requires-Python"] == ">=3.11"
    version = re.search(r"^version: (.+)$", (ROOT / "galaxy.yml").read_text(), re.M)
    assert version
    assert about["Version"] == version.group(1)


def test_every_call_of_llm_stays_as_fast(place: Place) -> None:
    def cost() -> int:
        # Imported by name, because llm's own way of loading plugins leaves no line.
        program = "import llm.cli; import llm_cluster_ops.plugin"
        done = place.run("python", "-X", "importtime", "-c", program, LLM_LOAD_PLUGINS="")
        # The middle number is of a module with all that it was the first to import.
        line = re.search(r"^import time: +\d+ \| +(\d+) \| +llm_cluster_ops\.plugin$", done.stderr, re.M)
        assert line, done.stderr
        return int(line.group(1))

    assert min(cost() for _ in range(3)) <= ALLOWED
    heavy = "('ansible', 'ansible_runner', 'llm_cluster_ops.commands', 'rich.live', 'ruamel.yaml')"
    loaded = f"print('llm_cluster_ops.plugin' in sys.modules, [name for name in {heavy} if name in sys.modules])"
    assert place.run("python", "-c", f"import sys, llm.cli; {loaded}").stdout.strip() == "True []"


def test_it_runs_the_collection_that_it_carries(place: Place) -> None:
    found = place.run("python", "-c", "from llm_cluster_ops import _folder; print(_folder.collection())").stdout.strip()
    assert str(ROOT) not in found
    assert (Path(found) / "playbooks" / "site.yml").is_file()


def test_python_has_the_same_operations(place: Place, folder: Path) -> None:
    program = (
        "from llm_cluster_ops import Cluster, ClusterError\n"
        "cluster = Cluster()\n"
        "print(cluster.name, cluster.nodes())\n"
        "print([(node.name, node.slots_busy) for node in cluster.status().nodes])\n"
        "try:\n    cluster.resume('nodeX')\nexcept ClusterError as error:\n    print(error.exit_code, error)\n"
    )
    done = place.run("python", "-c", program, cwd=folder)
    assert done.stdout.splitlines() == [
        "office ['node1', 'node2']",
        "[('node1', 0), ('node2', 0)]",
        "2 There is no node 'nodeX'. Did you mean node2 or node1?",
    ], done.stderr


@pytest.fixture
def with_the_other(place: Place, tmp_path: Path) -> Place:
    """The user with an environment of their own, in which llm-cluster was installed after ours."""
    made = place.python.parents[1]
    shutil.copytree(made, tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    for script in python.parent.iterdir():
        if script.is_file() and not script.is_symlink():
            script.write_bytes(script.read_bytes().replace(str(made).encode(), str(tmp_path / "venv").encode()))
    pip(python, "install", "--no-compile", "llm-cluster>=0.2,<0.3")
    return Place(python, place.home)


def test_the_other_plugin_of_that_name_goes_on_working(with_the_other: Place, wheel: Path, folder: Path) -> None:
    place = with_the_other
    filled = place.run("python", "-c", EMBEDDINGS)
    assert filled.returncode == 0, filled.stderr
    # Their latest release imports a name that llm no longer has there; with it, it works.
    (place.home / "sitecustomize.py").write_text("import llm, llm.cli\nllm.cli.get_key = llm.get_key\n")
    mended: dict[str, Any] = {"PYTHONPATH": str(place.home)}

    def both_work() -> None:
        clustered = place.cluster("texts", "2", **mended)
        assert clustered.returncode == 0, clustered.stderr
        assert sorted(clustered.stdout.count(f'"id": "{name}"') for name in "abc") == [1, 1, 1]
        listed = place.cluster("--help").stdout
        assert "cluster*" in listed
        assert "add-node" in listed
        assert "no node 'zzz'" in place.cluster("drain", "zzz", cwd=folder).stderr

    both_work()
    # The other way round: theirs first, then ours. Files and records are made anew in that order.
    pip(place.python, "uninstall", "--yes", "llm-cluster-ops", "llm-cluster")
    assert place.cluster("texts", "2", **mended).returncode == 2  # neither is there
    pip(place.python, "install", "--no-deps", "llm-cluster>=0.2,<0.3")
    assert place.cluster("texts", "2", **mended).returncode == 0
    pip(place.python, "install", "--no-deps", str(wheel))
    both_work()
