# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the collection into the wheel: exactly the files that galaxy.yml allows."""

from __future__ import annotations

import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CHECKOUT = Path(__file__).resolve().parent.parent
INSIDE = PurePosixPath("llm_cluster_ops/_collection/ansible_collections/llm/cluster")


def fits(file: PurePosixPath, pattern: str) -> bool:
    """Whether a path below the root fits a pattern, in which * stays within a folder."""
    shape = PurePosixPath(pattern)
    return len(file.parts) == len(shape.parts) and all(map(fnmatch.fnmatch, file.parts, shape.parts))


def apply(directive: str, files: set[PurePosixPath], chosen: set[PurePosixPath]) -> set[PurePosixPath]:
    """Return what is chosen after one directive of a manifest (those of Python's MANIFEST.in that galaxy.yml uses)."""
    word, *arguments = directive.split()
    if word in ("include", "exclude"):
        named = {file for file in files for pattern in arguments if fits(file, pattern)}
        return chosen | named if word == "include" else chosen - named
    if word == "recursive-include":
        folder, *patterns = arguments
        inside = {file for file in files if PurePosixPath(folder) in file.parents}
        return chosen | {file for file in inside for pattern in patterns if fnmatch.fnmatch(file.name, pattern)}
    if word == "global-exclude":
        return {file for file in chosen if not any(fnmatch.fnmatch(file.name, pattern) for pattern in arguments)}
    raise ValueError(f"galaxy.yml has the directive {directive!r}, which hatch_build.py does not know: add it there.")


def collection_files(root: Path) -> list[PurePosixPath]:
    """Return the collection's files, relative to its root, as the allow-list in galaxy.yml has them."""
    directives = yaml.safe_load((root / "galaxy.yml").read_text(encoding="utf-8"))["manifest"]["directives"]
    # Only the folders that the list names are looked into: others hold environments, links to here and much else.
    tops = {PurePosixPath(argument).parts[0] for directive in directives for argument in directive.split()[1:]}
    found = [path for top in sorted(tops) for path in (root / top, *(root / top).rglob("*")) if path.is_file()]
    files = {PurePosixPath(path.relative_to(root).as_posix()) for path in found}
    chosen: set[PurePosixPath] = set()
    for directive in directives:
        chosen = apply(directive, files, chosen)
    return sorted(chosen)


class CollectionHook(BuildHookInterface):
    """Called by hatchling for the wheel and for the source archive."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable" or not (CHECKOUT / "galaxy.yml").is_file():
            return
        for file in collection_files(CHECKOUT):
            build_data["force_include"][str(CHECKOUT / file)] = str(INSIDE / file)
