# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put a directory of Lua files in place at once: written aside, then renamed, so that it is whole or not there.

Arguments: the directory. Standard input: a JSON object, file name -> text.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path


def main() -> None:
    directory, files = Path(sys.argv[1]), json.load(sys.stdin)
    directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".lua-", dir=str(directory.parent)))
    try:
        module = aside / "new" / "llm_cluster"
        module.mkdir(parents=True)
        for name, text in files.items():
            (module / name).write_bytes(text.encode("utf-8"))
            (module / name).chmod(0o644)
        for path in (aside / "new", module):
            path.chmod(0o755)
        if directory.exists():
            directory.rename(aside / "old")
        (aside / "new").rename(directory)
    finally:
        shutil.rmtree(str(aside))


if __name__ == "__main__":
    main()
