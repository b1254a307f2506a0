# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._stats import UnreadableError
from ansible_collections.llm.cluster.plugins.module_utils._stats._gpus import Gpu, read_gpus

MIB, GIB = 1 << 20, 1 << 30
# As nvidia-smi prints memory.used, memory.total, utilization.gpu and name without units.
TWO = "452, 24564, 3, NVIDIA GeForce RTX 4090\n81029, 81559, 100, NVIDIA H100 80GB HBM3\n"
# A GPU that shares the memory of its processor, and one whose utilisation is hidden by partitioning.
NOT_TOLD = "[N/A], [N/A], 7, NVIDIA GB10\n1, 40960, [N/A], NVIDIA A100-SXM4-40GB\n"


@pytest.fixture
def drm(tmp_path: Path) -> Path:
    (tmp_path / "drm").mkdir()
    return tmp_path / "drm"


def nvidia_smi(folder: Path, script: str) -> str:
    """Put an nvidia-smi there that runs this shell script."""
    command = folder / "nvidia-smi"
    command.write_text("#!/bin/sh\n" + script)
    command.chmod(0o755)
    return str(command)


def printing(folder: Path, text: str) -> str:
    (folder / "printed").write_text(text)
    expected = "--query-gpu=memory.used,memory.total,utilization.gpu,name"
    return nvidia_smi(
        folder, f"test $1 = {expected} && test $2 = --format=csv,noheader,nounits && cat {folder}/printed"
    )


def card(drm: Path, number: int, **files: str) -> None:
    device = drm / f"card{number}/device"
    device.mkdir(parents=True)
    for name, text in files.items():
        (device / name).write_text(text + "\n")


def test_nvidia(tmp_path: Path, drm: Path) -> None:
    assert read_gpus(printing(tmp_path, TWO), 5, drm) == [
        Gpu("nvidia", "NVIDIA GeForce RTX 4090", 452 * MIB, 24564 * MIB, 3.0),
        Gpu("nvidia", "NVIDIA H100 80GB HBM3", 81029 * MIB, 81559 * MIB, 100.0),
    ]


def test_what_nvidia_does_not_tell_is_unknown(tmp_path: Path, drm: Path) -> None:
    assert read_gpus(printing(tmp_path, NOT_TOLD), 5, drm) == [
        Gpu("nvidia", "NVIDIA GB10", None, None, 7.0),
        Gpu("nvidia", "NVIDIA A100-SXM4-40GB", MIB, 40960 * MIB, None),
    ]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'NVIDIA-SMI has failed because it couldn'\"'\"'t communicate with the driver'; exit 9", "has failed"),
        ("exec sleep 30", "timed out after 0.3 s"),
    ],
)
def test_a_driver_that_fails_or_hangs(tmp_path: Path, drm: Path, script: str, words: str) -> None:
    began = time.monotonic()
    with pytest.raises(UnreadableError, match=words):
        read_gpus(nvidia_smi(tmp_path, script), 0.3, drm)
    assert time.monotonic() - began < 2


def test_no_driver_there(tmp_path: Path, drm: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        read_gpus(str(tmp_path / "nvidia-smi"), 1, drm)


def test_amd_where_there_is_none_of_nvidia(tmp_path: Path, drm: Path) -> None:
    used, total = str(3 * GIB), str(16 * GIB)
    card(drm, 0, mem_info_vram_total=str(512 * MIB), mem_info_vram_used="1", device="0x1636")  # in a processor
    card(drm, 1, mem_info_vram_total=total, mem_info_vram_used=used, gpu_busy_percent="42", device="0x744c")
    card(drm, 2, mem_info_vram_total=total, product_name="Instinct MI210")  # asleep: tells nothing else
    (drm / "card1-DP-1").mkdir()
    amd = [Gpu("amd", "AMD 0x744c", 3 * GIB, 16 * GIB, 42.0), Gpu("amd", "Instinct MI210", None, 16 * GIB, None)]
    assert read_gpus(None, 5, drm) == amd
    assert read_gpus(nvidia_smi(tmp_path, "echo 'No devices were found'; exit 6"), 5, drm) == amd
    assert [gpu.vendor for gpu in read_gpus(printing(tmp_path, TWO), 5, drm)] == ["nvidia", "nvidia"]


def test_none(drm: Path) -> None:
    assert read_gpus(None, 5, drm) == []
    assert read_gpus(None, 5, drm / "nowhere") == []
