# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results: a line a point while a run goes on, so that it can go on after a kill; one document when it is over."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import count
from pathlib import Path
from typing import Any

from bench.point import Figures, Point, Row

TRIES = 2  # of a point that fails, in one run: a run in which one always fails comes to its end all the same


@dataclasses.dataclass(frozen=True)
class Record:
    """What became of a point. missing: why it cannot be measured here; error: what went wrong.

    date, revision: when, and of which checkout; empty where an old run did not note it. tries: how often it was tried.
    """

    point: Point
    figures: Figures
    seconds: float = 0.0
    missing: str = ""
    error: str = ""
    date: str = ""
    revision: str = ""
    tries: int = 1

    def document(self) -> dict[str, Any]:
        return {
            "scenario": self.point.scenario,
            "system": self.point.system,
            "settings": dict(self.point.settings),
            "figures": {name: rounded(value) for name, value in self.figures.items()},
            "seconds": round(self.seconds, 1),
            **{name: value for name in NOTES if (value := getattr(self, name))},
            **({"tries": self.tries} if self.tries > 1 else {}),
        }

    @classmethod
    def read(cls, document: dict[str, Any]) -> Record:
        point = Point.of(document["scenario"], document["system"], **document["settings"])
        notes = {name: document.get(name, "") for name in NOTES}
        return cls(point, document["figures"], document["seconds"], tries=document.get("tries", 1), **notes)


NOTES = ("missing", "error", "date", "revision")


def rounded(value: float | str) -> float | str:
    return value if isinstance(value, (str, int)) else float(f"{value:.5g}")


class Run:
    """A run's file. Its first line says what the run is; a line that was cut off by a kill is dropped."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.head: dict[str, Any] = {}
        self.records: dict[str, Record] = {}
        if file.exists():
            lines = []
            for line in file.read_text().splitlines():
                try:
                    lines.append(json.loads(line))
                except ValueError:
                    break
            if lines:
                self.head = lines[0]
                self.records = {record.point.key: record for record in map(Record.read, lines[1:])}

    def differs(self, head: dict[str, Any]) -> str:
        """Why what would be measured now must not stand beside what is there; empty where it may."""
        for name, said in (("code", "what measures or is measured"), ("machine", "the machine"), ("form", "the form")):
            if self.head.get(name) != head.get(name):
                return f"{said} is another"
        ours, theirs = self.head.get("versions", {}), head["versions"]
        changed = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        return f"another version of {', '.join(changed)} is installed" if changed else ""

    def begin(self, head: dict[str, Any]) -> Path | None:
        """Begin anew; what was there is kept beside it, under the name that is returned."""
        kept = None
        if self.file.exists():
            kept = self.beside()
            self.file.rename(kept)
        self.head, self.records = head, {}
        self.write()
        return kept

    def beside(self) -> Path:
        """A name that no file has yet, with the date of this run."""
        date = re.sub(r"[^0-9]+", "-", self.head.get("date", "")).strip("-") or "old"
        names = (self.file.with_name(f"{self.file.stem}.{date}.{number}.jsonl") for number in count(1))
        return next(name for name in names if not name.exists())

    def go_on(self, head: dict[str, Any]) -> None:
        """Go on with what is there; what failed is tried anew.

        A system that cannot run any more keeps what was measured of it.
        """
        begun: dict[str, Any] = {name: self.head[name] for name in ("date", "revision") if name in self.head}
        if (before := self.head.get("command", "")) and head["command"] not in before.split("; "):
            begun["command"] = f"{before}; {head['command']}"
        self.records = {key: each for key, each in self.records.items() if not each.error}
        both = {name: self.head.get(name, {}) | head[name] for name in ("versions", "about")}
        self.head = head | both | begun
        self.write()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = [self.head, *(record.document() for record in self.records.values())]
        new = self.file.with_suffix(".new")
        new.write_text("".join(json.dumps(line) + "\n" for line in lines))
        new.replace(self.file)

    def add(self, record: Record) -> None:
        before = self.records.get(record.point.key)
        record = dataclasses.replace(record, tries=1 + (before.tries if before else 0))
        self.records[record.point.key] = record
        with self.file.open("a") as file:
            file.write(json.dumps(record.document()) + "\n")

    def is_whole(self, points: list[Point]) -> bool:
        """Has each of them been measured, or cannot be here?"""
        found = [self.records.get(point.key) for point in points]
        return all(each and not each.error for each in found)

    def left(self, points: list[Point]) -> list[Point]:
        """Those that are to be measured yet; what failed is tried once more, after the others."""
        new = [point for point in points if point.key not in self.records]
        return new + [point for point in points if self.failed(point) and self.records[point.key].tries < TRIES]

    def failed(self, point: Point) -> bool:
        return point.key in self.records and bool(self.records[point.key].error)


@dataclasses.dataclass
class Published:
    """The last results of each scenario: {"scenario": {"run": head of its run, "points": [...]}}."""

    file: Path

    def read(self) -> dict[str, Any]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def take(self, run: Run) -> None:
        """Replace what was known of the scenarios that this run measured: points of two runs are never mixed."""
        known = self.read()
        for name in dict.fromkeys(record.point.scenario for record in run.records.values()):
            records = [record for record in run.records.values() if record.point.scenario == name]
            known[name] = {"run": run.head, "points": [record.document() for record in records]}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")


def rows(known: dict[str, Any], scenario: str) -> list[Row]:
    """What was measured of a scenario."""
    records = [Record.read(document) for document in known.get(scenario, {}).get("points", [])]
    return [Row(record.point, record.figures) for record in records if not record.missing and not record.error]
