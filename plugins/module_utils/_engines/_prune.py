# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is no longer needed on a node: names that nobody wants there, versions that nobody may go back to.

Pure: engines say what there is, and delete what is found here.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Stock:
    """What is on a node.

    names: which version each name serves. versions: all that are there, and their bytes. previous: for wanted names the
    versions they served before, newest first. loaded: versions in memory. busy: names that cannot be removed now.
    """

    names: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    previous: dict[str, list[str]] = field(default_factory=dict)
    loaded: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """What goes, and which versions stay although none of their names does."""

    names: list[str]
    versions: list[str]
    needed: frozenset[str]


def surplus(stock: Stock, wanted: dict[str, str], keep: frozenset[str], keep_previous: int) -> Plan:
    """Return what goes. wanted: names and their versions, ``""`` for any; keep: versions that stay in any case."""
    extra = [name for name in stock.names if name not in wanted and name not in stock.busy]
    staying = {digest for name, digest in stock.names.items() if name not in extra}
    # What is in memory for a name that goes leaves the memory with it.
    leaving = {stock.names[name] for name in extra} - staying
    needed = {*keep, *wanted.values(), *staying, *(stock.loaded - leaving)}
    for name, digest in wanted.items():
        serving = (digest, stock.names.get(name, ""))
        former = [old for old in stock.previous.get(name, []) if old in stock.versions and old not in serving]
        needed.update(former[:keep_previous])
    needed.discard("")
    return Plan(sorted(extra), sorted(set(stock.versions) - needed), frozenset(needed))


@dataclass
class Pruned:
    """What was removed, or would be, what stays, and which services have to be stopped first."""

    removed: list[dict[str, object]] = field(default_factory=list)
    staying: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    freed: int = 0

    def remove(self, kind: str, *, name: str = "", digest: str = "", freed: int = 0) -> None:
        """Note that something goes."""
        self.removed.append({"kind": kind, "name": name, "digest": digest, "bytes": freed})
        self.freed += freed

    @property
    def diff(self) -> dict[str, str]:
        """What there was and what stays, a line each."""
        gone = [line_of(str(item["kind"]), str(item["name"]), str(item["digest"])) for item in self.removed]
        return {
            "before": "".join(f"{line}\n" for line in sorted([*self.staying, *gone])),
            "after": "".join(f"{line}\n" for line in sorted(self.staying)),
        }


def line_of(kind: str, name: str, digest: str) -> str:
    """Return one thing on a node as a line of the diff."""
    return " ".join(part for part in (kind, name, digest) if part)
