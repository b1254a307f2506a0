# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A SIMULATED release server: archives laid out and named like Ollama's, with sha256sum.txt beside them.

bin/ollama in them is the simulated Ollama (ollama.py) under the version asked for. The archives are the same bytes each
time they are built, and no zstd program is needed to build them.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path

from ._faults import Document, FaultyServer

ARCHITECTURES = ("amd64", "arm64")


def archive_name(architecture: str, variant: str = "") -> str:
    return f"ollama-linux-{architecture}{f'-{variant}' if variant else ''}.tar.zst"


def archive(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A .tar.zst of path → (content, mode)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, (content, mode) in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), mode, 1_700_000_000
            tar.addfile(info, io.BytesIO(content))
    return zstd_frame(buffer.getvalue())


def zstd_frame(content: bytes) -> bytes:
    """A valid zstd frame that stores its content as it is (RFC 8878, raw blocks)."""
    blocks = [content[start : start + 131072] for start in range(0, len(content), 131072)] or [b""]
    frame = b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + len(content).to_bytes(8, "little")
    for number, block in enumerate(blocks):
        last = number == len(blocks) - 1
        frame += (len(block) << 3 | int(last)).to_bytes(3, "little") + block
    return frame


def release(version: str, padding: int = 300_000) -> dict[str, bytes]:
    """File name → content of one release."""
    program = Path(__file__).with_name("ollama.py").read_text(encoding="utf-8")
    program, replaced = re.subn(r'^VERSION = ".*?"', f'VERSION = "{version}"', program, count=1, flags=re.MULTILINE)
    if not replaced:
        raise ValueError("ollama.py has no VERSION line")
    padding_of = hashlib.shake_256  # so that a download can be cut half-way
    files = {}
    for architecture in ARCHITECTURES:
        files[archive_name(architecture)] = archive(
            {
                "bin/ollama": (program.encode(), 0o755),
                "lib/ollama/libsimulated.so": (padding_of((version + architecture).encode()).digest(padding), 0o644),
            }
        )
        rocm = {"lib/ollama/rocm/libsimulated-rocm.so": (b"simulated\n", 0o644)}
        files[archive_name(architecture, "rocm")] = archive(rocm)
    # The real file is the output of find | xargs sha256sum: names begin with "./", in no order.
    sums = [f"{hashlib.sha256(content).hexdigest()}  ./{name}\n" for name, content in files.items()]
    files["sha256sum.txt"] = "".join(reversed(sums)).encode()
    return files


class Releases(FaultyServer):
    def publish(self, version: str) -> dict[str, str]:
        """Serve a release at /vVERSION/; returns file name → "sha256:…"."""
        files = release(version)
        for name, content in files.items():
            self.documents[f"/v{version}/{name}"] = Document(content)
        return {name: "sha256:" + hashlib.sha256(content).hexdigest() for name, content in files.items()}
