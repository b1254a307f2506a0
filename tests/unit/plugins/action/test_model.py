# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files on the controller, sent by a real ansible-playbook run to this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.llm.cluster.plugins.action import model as action

ROOT = Path(__file__).resolve().parents[4]
CONTENT = b"GGUF" + hashlib.shake_256(b"model").digest(3_000_000)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(CONTENT)
    return path


class Controller:
    """Runs a playbook, in which each task is the module's, and returns what the tasks registered.

    One playbook for several steps, because starting one takes seconds.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def store(self, name: str) -> Path:
        return self.folder / name / "models"

    def served(self, name: str) -> bytes:
        return (self.store(name) / "current" / "tiny.gguf").read_bytes()

    def put_part(self, name: str, content: bytes) -> Path:
        path = self.folder / name / "partial" / (DIGEST.replace(":", "-") + ".gguf.part")
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return path

    def task(self, node: str, file: Path | str, digest: str | None = None) -> dict[str, Any]:
        entry = {"name": "tiny", "source": {"file": str(file)}, **({"digest": digest} if digest else {})}
        options = {"engine": "llama_cpp", "models_dir": str(self.store(node)), "models": [entry]}
        return {"llm.cluster.model": options, "ignore_errors": True}

    def run(self, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
        names = [f"done{number}" for number in range(len(tasks))]
        answers = "{{ [" + ", ".join(names) + "] | to_json }}"
        write = {"ansible.builtin.copy": {"content": answers, "dest": str(self.folder / "done"), "mode": "0600"}}
        steps = [{**task, "register": name} for task, name in zip(tasks, names, strict=True)]
        play = [{"hosts": "localhost", "gather_facts": False, "tasks": [*steps, write]}]
        (self.folder / "play.yml").write_text(yaml.safe_dump(play))
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_PYTHON_INTERPRETER": sys.executable,
            "ANSIBLE_REMOTE_TMP": str(self.folder / "remote"),
            "ANSIBLE_ASYNC_DIR": str(self.folder / "async"),
            "HOME": str(self.folder),
        }
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local", "-v"]
        ran = subprocess.run(
            [*command, "play.yml"], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        self.output = ran.stdout
        assert (self.folder / "done").exists(), ran.stdout + ran.stderr
        result: list[dict[str, Any]] = json.loads((self.folder / "done").read_text())
        return result


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path)


def test_a_file_is_sent_once(controller: Controller, source: Path) -> None:
    step = controller.task("one", source)
    check = {**step, "check_mode": True}
    predicted, applied, again, checked = controller.run(check, step, step, check)
    assert predicted["changed"]
    assert predicted["diff"] == applied["diff"]
    assert predicted["models"][0]["bytes"] == 0
    assert applied["changed"]
    assert (applied["models"][0]["bytes"], applied["models"][0]["resumed"]) == (len(CONTENT), 0)
    assert controller.served("one") == CONTENT
    assert not again["changed"]
    assert not checked["changed"]
    assert controller.output.count("Sending tiny") == 1
    assert list((controller.folder / "remote").glob("**/chunk")) == []


def test_parts_and_files_that_cannot_be_meant(controller: Controller, source: Path) -> None:
    controller.put_part("resumed", CONTENT[:2_000_000])
    wrong = controller.put_part("wrong", b"?" * 2_000_000)
    pointer = controller.folder / "pointer.gguf"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    resumed, thrown_away, healed, behind, other, no_model, nothing = controller.run(
        controller.task("resumed", source.name),
        controller.task("wrong", source),
        controller.task("wrong", source),
        {**controller.task("behind", source), "async": 60, "poll": 1},
        controller.task("refused", source, digest="sha256:" + "0" * 64),
        controller.task("refused", pointer),
        controller.task("refused", "/none.gguf"),
    )
    assert (resumed["models"][0]["bytes"], resumed["models"][0]["resumed"]) == (len(CONTENT) - 2_000_000, 2_000_000)
    assert controller.served("resumed") == CONTENT

    assert thrown_away["failed"]
    assert DIGEST in thrown_away["msg"]
    assert healed["changed"]
    assert not wrong.exists()
    assert controller.served("wrong") == CONTENT

    assert behind["changed"]
    assert controller.served("behind") == CONTENT

    for failed, says in (
        (other, "Nothing was sent"),
        (no_model, "not a GGUF file"),
        (nothing, "source.file of this model"),
    ):
        assert failed["failed"]
        assert says in failed["msg"]
    assert not controller.store("refused").exists()


@pytest.mark.parametrize(
    ("total", "size"), [(1, 64 * 2**20), (10 * 2**30, 10 * 2**30 // 100), (200 * 2**30, 512 * 2**20)]
)
def test_chunks(total: int, size: int) -> None:
    assert action.chunk_size(total) == size


def test_a_file_is_hashed_once_for_all_hosts(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def slow(path: str) -> str:
        hashed.append(path)
        time.sleep(0.1)
        return DIGEST

    monkeypatch.setattr(action, "sha256_file", slow)
    cache = str(tmp_path / "cache")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: action.known_digest(str(source), cache), range(8))) == {DIGEST}
    assert len(hashed) == 1
    os.utime(source, ns=(1, 1))
    action.known_digest(str(source), cache)
    assert len(hashed) == 2
    (tmp_path / "file").touch()
    action.known_digest(str(source), str(tmp_path / "file" / "cache"))
    assert len(hashed) == 3
