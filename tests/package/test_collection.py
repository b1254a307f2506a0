# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as Galaxy would ship it: built, installed away from the checkout, used, and put to ansible-test."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# ansible-test downloads pip's bootstrap script from a host that closed networks do not reach, unless it is in its
# cache. This one does the same from what Python itself carries. (In a process of its own, because ensurepip switches
# pip's configuration off for the process it runs in.)
GET_PIP = """\
import subprocess
import sys

subprocess.check_call([sys.executable, "-m", "ensurepip"])
wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *wanted]))
"""


def run(*argv: str, folder: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of the virtual environment with a home of its own and without the checkout's configuration."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
    environment.update(HOME=str(home), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def tarball(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    done = run("ansible-galaxy", "collection", "build", "--output-path", str(folder), folder=ROOT, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("llm-cluster-*.tar.gz")
    return built


@pytest.fixture(scope="module")
def installed(tarball: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed collection's folder, in a collections path that is nowhere near the checkout."""
    path = tmp_path_factory.mktemp("collections")
    arguments = ["install", "--offline", "-p", str(path), str(tarball)]
    done = run("ansible-galaxy", "collection", *arguments, folder=path, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    return path / "ansible_collections" / "llm" / "cluster"


def test_the_tarball_holds_what_users_need_and_nothing_else(tarball: Path) -> None:
    with tarfile.open(tarball) as archive:
        files = {member.name for member in archive.getmembers() if member.isfile()}
    needed = {
        "README.md",
        "LICENSE",
        "meta/runtime.yml",
        "playbooks/site.yml",
        "plugins/modules/ask.py",
        "roles/balancer/files/lua/llm_cluster/proxy.lua",
        "roles/llama_cpp/tasks/main.yml",
        "inventories/example/hosts.yml",
    }
    assert needed - files == set()
    allowed = (
        "docs/",
        "inventories/example/",
        "meta/",
        "playbooks/",
        "plugins/",
        "roles/",
        "changelogs/changelog.yaml",
    )
    top = {"README.md", "LICENSE", "CHANGELOG.md", "site.yml", "MANIFEST.json", "FILES.json"}
    assert [name for name in files if not name.startswith(allowed) and name not in top] == []
    assert [name for name in files if "demo" in name or name.endswith(".pyc")] == []


def test_its_playbooks_run_by_name(installed: Path, home: Path, tmp_path: Path) -> None:
    environment_file = tmp_path / "ansible.cfg"
    environment_file.write_text(f"[defaults]\ncollections_path = {installed.parents[2]}\n")
    arguments = ["-i", str(installed / "inventories/example"), "--syntax-check"]
    for playbook in ("site", "verify", "remove"):
        done = run("ansible-playbook", f"llm.cluster.{playbook}", *arguments, folder=tmp_path, home=home)
        assert done.returncode == 0, done.stdout + done.stderr


def test_its_modules_are_documented(installed: Path, home: Path, tmp_path: Path) -> None:
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\ncollections_path = {installed.parents[2]}\n")
    modules = [f"llm.cluster.{path.stem}" for path in (installed / "plugins/modules").glob("*.py")]
    assert len(modules) >= 3
    done = run("ansible-doc", *modules, folder=tmp_path, home=home)
    assert done.returncode == 0, done.stderr


def test_ansible_test_sanity(installed: Path, home: Path) -> None:
    cache = home / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True)
    (cache / "get_pip_24_2.py").write_text(GET_PIP)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    done = run("ansible-test", "sanity", "--python", version, "--venv", "--color", "no", folder=installed, home=home)
    errors = [
        line for line in done.stdout.splitlines() + done.stderr.splitlines() if line.startswith(("ERROR", "FATAL"))
    ]
    assert done.returncode == 0, "\n".join(errors)
