# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The SIMULATED internet of a test: a release server and a model registry in one process.

python3 -m simulated.upstream --address 0.0.0.0 --release 0.33.2 --release 0.33.3 --model library/tiny:1
python3 -m simulated.upstream --write FOLDER --release 0.33.3      # writes the release's files and ends
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from pathlib import Path

from .registry import Registry, made_up
from .releases import Releases, release


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="simulated.upstream", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--releases-port", type=int, default=8080)
    parser.add_argument("--registry-port", type=int, default=5000)
    parser.add_argument("--release", action="append", default=[], help="a version to serve")
    parser.add_argument("--model", action="append", default=[], help="namespace/model:tag[=CONTENT] to serve")
    parser.add_argument("--write", type=Path, help="write the releases' files to this folder instead")
    options = parser.parse_args(arguments)

    if options.write:
        for version in options.release:
            folder = options.write / f"v{version}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in release(version).items():
                (folder / name).write_bytes(content)
        return 0

    releases = Releases((options.address, options.releases_port))
    registry = Registry((options.address, options.registry_port))
    checksums = {version: releases.publish(version) for version in options.release}
    models = {}
    for model in options.model:
        # Another content under the same tag is another version: that is how a tag moves.
        name, _, content = model.partition("=")
        models[name] = registry.publish(name, made_up(content, 200_000) if content else None).digest
    print(json.dumps({"simulated": True, "releases": checksums, "models": models}), flush=True)
    releases.start()
    registry.start()
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
