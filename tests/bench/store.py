# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Results: a line a point while a run goes on, so that it can go on after a kill; one document when it is over."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bench.point import Figures, Point, Row


@dataclasses.dataclass(frozen=True)
class Record:
    """What became of a point. missing: why it cannot be measured here; error: what went wrong."""

    point: Point
    figures: Figures
    seconds: float = 0.0
    missing: str = ""
    error: str = ""

    def document(self) -> dict[str, Any]:
        return {
            "scenario": self.point.scenario,
            "system": self.point.system,
            "settings": dict(self.point.settings),
            "figures": {name: rounded(value) for name, value in self.figures.items()},
            "seconds": round(self.seconds, 1),
            **({"missing": self.missing} if self.missing else {}),
            **({"error": self.error} if self.error else {}),
        }

    @classmethod
    def read(cls, document: dict[str, Any]) -> Record:
        point = Point.of(document["scenario"], document["system"], **document["settings"])
        return cls(
            point, document["figures"], document["seconds"], document.get("missing", ""), document.get("error", "")
        )


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

    def begin(self, head: dict[str, Any]) -> None:
        """Forget what was there."""
        self.head, self.records = head, {}
        self.write()

    def write(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = [self.head, *(record.document() for record in self.records.values())]
        self.file.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def add(self, record: Record) -> None:
        self.records[record.point.key] = record
        with self.file.open("a") as file:
            file.write(json.dumps(record.document()) + "\n")

    def left(self, points: list[Point]) -> list[Point]:
        """Those that are to be measured yet; what failed is tried again."""
        return [p for p in points if p.key not in self.records or self.records[p.key].error]


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
