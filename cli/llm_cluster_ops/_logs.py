# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the logs say: lines of the balancers' access logs and of the engines' journals, read through Ansible.

Through Ansible, so that hosts are reached however the inventory says. Following is a playbook of many looks, each of
which waits on the host for something new; when they are used up another playbook goes on where they ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ._errors import RunFailedError
from ._runner import Silent

if TYPE_CHECKING:
    from ._runner import Run

ACCESS, JOURNAL = "access", "journal"
# Looks of one playbook, and how long each waits on the host for something new, in seconds.
ROUNDS, PATIENCE = 100, 10
# Before hosts that could not be reached are tried again, in seconds.
PAUSE = 2.0


@dataclass(frozen=True)
class LogLine:
    """One line: whose log it is of, what it holds (empty if it is no JSON), and as it is written."""

    host: str
    kind: str
    data: dict[str, Any]
    raw: str

    @property
    def time(self) -> datetime:
        """When it was written; a line that doesn't say so comes first."""
        try:
            if self.kind == JOURNAL:
                return datetime.fromtimestamp(int(self.data["__REALTIME_TIMESTAMP"]) / 1e6, UTC).astimezone()
            return datetime.fromisoformat(self.data["time"]).astimezone()
        except (KeyError, TypeError, ValueError):
            return datetime.fromtimestamp(0, UTC)

    def text(self, several: bool = False) -> str:
        """Return it for people.

        :param several: whether to name the balancer, where there are several
        """
        if not self.data:
            return self.raw
        if self.kind == JOURNAL:
            unit = str(self.data.get("_SYSTEMD_UNIT") or self.data.get("UNIT") or "").removesuffix(".service")
            return f"{self.time:%Y-%m-%d %H:%M:%S}  {unit}  {message(self.data.get('MESSAGE'))}"
        values = access_values(self)
        return "  ".join(
            f"{value:{'>' if name in RIGHT else '<'}{width}}"
            for (name, width), value in zip(COLUMNS, values, strict=True)
            if several or name != "balancer"
        ).rstrip()


# Of the access log's table; a value that is wider pushes the rest aside.
COLUMNS = (
    ("time", 19),
    ("balancer", 12),
    ("status", 6),
    ("seconds", 7),
    ("tokens", 10),
    ("model", 18),
    ("peer", 18),
    ("key", 12),
    ("error", 0),
)
RIGHT = ("status", "seconds", "tokens")


def heading(several: bool) -> str:
    """Return the line above the access log's table."""
    return "  ".join(
        f"{name:{'>' if name in RIGHT else '<'}{width}}" for name, width in COLUMNS if several or name != "balancer"
    ).rstrip()


def access_values(line: LogLine) -> list[str]:
    """Return the table's values of a line, in the order of COLUMNS."""
    data = line.data
    tokens = [data.get(name) for name in ("prompt_tokens", "completion_tokens")]
    seconds = data.get("total")
    return [
        f"{line.time:%Y-%m-%d %H:%M:%S}",
        line.host,
        str(data.get("status", "")),
        f"{seconds:.2f}" if isinstance(seconds, int | float) else "-",
        "+".join("?" if count is None else str(count) for count in tokens) if any(tokens) else "-",
        *(plain(data.get(name)) for name in ("model", "peer", "key")),
        plain(data.get("error")) if data.get("error") else "",
    ]


def plain(value: Any) -> str:
    """Return what a client may have chosen without what a terminal would take for commands."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(value)) if value else "-"


def message(value: Any) -> str:
    """Return a journal's message, which is a list of bytes where it isn't plain text."""
    if isinstance(value, list):
        value = bytes(value).decode("utf-8", "replace")
    return "\n".join(map(plain, str(value or "").splitlines()))


class Reader:
    """Takes what the hosts read, and knows where each of them is."""

    def __init__(self, kind: str, take: Callable[[list[LogLine]], None]) -> None:
        self.kind = kind
        self.take = take
        self.cursors: dict[str, Any] = {}
        self.answered = False

    def result(self, host: str, result: Mapping[str, Any]) -> None:
        """Take what one look on one host found."""
        if "lines" not in result:
            return
        self.answered = True
        if result.get("cursor"):
            self.cursors[host] = result["cursor"]
        if result["lines"]:
            self.take([parsed(host, self.kind, line) for line in result["lines"]])

    def variables(self, hosts: str, lines: int, follow: bool) -> dict[str, Any]:
        """Return what the playbook is to be told."""
        return {
            "log_hosts": hosts,
            "log_kind": self.kind,
            "log_lines": lines,
            "log_wait": PATIENCE if follow else 0,
            "log_rounds": ROUNDS if follow else 1,
            "log_cursors": self.cursors,
        }


def parsed(host: str, kind: str, raw: str) -> LogLine:
    """Return a line with what it holds."""
    try:
        data = json.loads(raw)
    except ValueError:
        data = {}
    return LogLine(host, kind, data if isinstance(data, dict) else {}, raw)


class Complaints(Silent):
    """Tells of hosts that fail, once each, while the others are followed."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.told: set[str] = set()
        self.tell = say

    def step(self, run: Run, host: str) -> None:
        for failure in run.failures:
            if failure.host == host and host not in self.told:
                self.told.add(host)
                self.tell(f"{host}: {'not reached' if failure.unreachable else 'failed'}: {failure.reason}")


def follow(look: Callable[[dict[str, Any]], Run], reader: Reader, hosts: str, lines: int) -> None:
    """Look again and again, until somebody ends it or no host answers.

    :param look: runs the playbook with these variables
    """
    while True:
        reader.answered = False
        try:
            look(reader.variables(hosts, lines, follow=True))
        except RunFailedError as error:
            if error.run.interrupted or not reader.answered:
                raise
            time.sleep(PAUSE)
