# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.module_utils._topology import FACT_LABELS
from ansible_collections.llm.cluster.plugins.modules import node_facts

MEMINFO = "MemTotal:       65790912 kB\nMemFree:         1234567 kB\n"
ALWAYS = {"memory_gb": 63, "cpus": os.cpu_count(), "architecture": platform.machine()}
GIB = 1 << 30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return the root of a machine that has a /proc/meminfo and no GPU."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path


def nvidia_smi(root: Path, script: str) -> str:
    """Put an nvidia-smi there that runs this shell script."""
    command = root / "nvidia-smi"
    command.write_text("#!/bin/sh\n" + script)
    command.chmod(0o755)
    return str(command)


def amd_cards(root: Path, *sizes: int) -> None:
    for number, size in enumerate(sizes):
        device = root / f"sys/class/drm/card{number}/device"
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text(f"{size}\n")
        (root / f"sys/class/drm/card{number}-DP-1").mkdir()


def test_a_machine_without_gpu_has_none(root: Path) -> None:
    assert node_facts.node_facts(None, root) == {**ALWAYS, "gpus": 0, "gpu_memory_gb": 0}


@pytest.mark.parametrize(
    ("printed", "gpus"),
    [
        ("24564\n", {"gpus": 1, "gpu_memory_gb": 24}),
        ("81559\n81559\n", {"gpus": 2, "gpu_memory_gb": 159}),
        ("[N/A]\n", {"gpus": 1}),
        ("24564\n[N/A]\n", {"gpus": 2}),
        ("No devices were found\n", {"gpus": 0, "gpu_memory_gb": 0}),
    ],
)
def test_nvidia_gpus_are_added_up(root: Path, printed: str, gpus: dict[str, int]) -> None:
    (root / "printed").write_text(printed)
    command = nvidia_smi(root, f"test $1 = --query-gpu=memory.total && cat {root}/printed")
    assert node_facts.node_facts(command, root) == {**ALWAYS, **gpus}


def test_amd_gpus_are_added_up_but_not_those_in_a_processor(root: Path) -> None:
    amd_cards(root, 16 * GIB - (1 << 20), 512 << 20, 16 * GIB)
    assert node_facts.node_facts(None, root) == {**ALWAYS, "gpus": 2, "gpu_memory_gb": 32}


def test_beside_an_nvidia_gpu_those_of_amd_do_not_count(root: Path) -> None:
    amd_cards(root, 16 * GIB)
    assert node_facts.node_facts(nvidia_smi(root, "echo 24564"), root)["gpu_memory_gb"] == 24


@pytest.mark.parametrize(
    ("script", "words"),
    [("echo 'NVIDIA-SMI has failed'; exit 9", "NVIDIA-SMI has failed"), ("exec sleep 9", "timed out")],
)
def test_a_driver_that_fails_is_no_machine_without_gpu(
    root: Path, script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_facts, "NVIDIA_SECONDS", 0.2)
    with pytest.raises(node_facts.UnreadableError) as raised:
        node_facts.node_facts(nvidia_smi(root, script), root)
    assert words in raised.value.args[0]
    assert raised.value.args[1] == ALWAYS


def test_sizes_do_not_change_with_a_little_memory_more_or_less() -> None:
    sizes = {node_facts.memory_gb(f"MemTotal: {kilobytes} kB\n") for kilobytes in range(65700000, 65900000, 10000)}
    assert sizes == {63}


def test_what_the_module_returns_is_what_labels_are_made_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": {}}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        node_facts.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert not result["changed"]
    assert set(result["ansible_facts"]["llm_node_facts"]) <= set(FACT_LABELS)
    assert result["ansible_facts"]["llm_node_facts"]["cpus"] == os.cpu_count()
