# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make other versions of a GGUF file: python3 molecule/sync/versions.py FILE FOLDER

v1.gguf      the file itself
v2.gguf      the same model under another name: its metadata's general.name has one other letter, so that only the
             digest tells the two apart
broken.gguf  only the first half of it, so that no engine can load it
gemma.gguf   a link to v1.gguf, if there is none yet
"""

from __future__ import annotations

import shutil
import struct
import sys
from pathlib import Path

MAGIC = b"GGUF"
KEY = b"general.name"
STRING = 8  # GGUF's type number


def renamed(content: bytes) -> bytes:
    """Return the file with the last letter of general.name changed, at the same length.

    :raises SystemExit: when it is no GGUF file with that key
    """
    key = struct.pack("<Q", len(KEY)) + KEY + struct.pack("<I", STRING)
    at = content.find(key, 0, 1 << 20)
    if not content.startswith(MAGIC) or at < 0:
        raise SystemExit("This is no GGUF file with a general.name.")
    begin = at + len(key) + 8
    last = begin + struct.unpack_from("<Q", content, at + len(key))[0] - 1
    return content[:last] + bytes([content[last] ^ 1]) + content[last + 1 :]


def make(source: Path, folder: Path) -> None:
    """Write the versions into the folder."""
    content = source.read_bytes()
    shutil.copyfile(source, folder / "v1.gguf")
    (folder / "v2.gguf").write_bytes(renamed(content))
    (folder / "broken.gguf").write_bytes(content[: len(content) // 2])
    point(folder, "v1.gguf", only_new=True)


def point(folder: Path, version: str, *, only_new: bool = False) -> None:
    """Have gemma.gguf be this version."""
    link = folder / "gemma.gguf"
    if only_new and link.exists():
        return
    new = folder / "gemma.gguf.new"
    new.symlink_to(version)
    new.replace(link)


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
