# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""On the host: the last lines of a log file or of the journal, or what came after those that were read before.

Runs on the host's own Python, 3.8 or newer.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: read_log
short_description: Read a log
description: Reads the last lines of a log file or of the journal, or waits for what comes after them.
options:
  path: {type: path, description: The log file.}
  units: {type: list, elements: str, description: Units whose journal is read instead.}
  lines: {type: int, default: 50, description: How many of the last lines, where there is no cursor.}
  cursor: {type: dict, description: Where the last reading ended, as it was returned.}
  wait: {type: float, default: 0, description: Seconds to wait for lines if there are none.}
author: [llm.cluster contributors]
"""
EXAMPLES = r"""
- name: The last ten lines
  read_log: {path: /var/log/nginx/llm-access.log, lines: 10}
"""

# Bytes of one reading at most; the next one goes on from there.
ROOM = 512 * 1024
BLOCK = 64 * 1024
PAUSE = 0.5


class Reading(NamedTuple):
    """Lines, and where to go on: ``{inode, offset}`` of a file, ``{journal}``, or None if nothing was there."""

    lines: list[str]
    cursor: dict[str, Any] | None


def decoded(lines: list[bytes], cursor: dict[str, Any]) -> Reading:
    """Return lines as text, whatever is in them."""
    return Reading([line.decode("utf-8", "replace") for line in lines], cursor)


def tail(stream: IO[bytes], count: int) -> tuple[list[bytes], int]:
    """Return the last whole lines of a file, and the offset behind them."""
    size = stream.seek(0, os.SEEK_END)
    back, data = 0, b""
    while back < size and data.count(b"\n") <= count:
        back = min(size, max(BLOCK, back * 2))
        stream.seek(size - back)
        data = stream.read(back)
    whole, newline, rest = data.rpartition(b"\n")
    lines = whole.split(b"\n") if newline else []
    return lines[max(0, len(lines) - count) :], size - len(rest)


def read_from(path: Path, offset: int) -> tuple[list[bytes], int]:
    """Return the whole lines behind an offset, and the offset behind them."""
    with path.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(ROOM)
    whole, newline, rest = data.rpartition(b"\n")
    if not newline and len(data) == ROOM:
        return [data], offset + ROOM  # one endless line
    return (whole.split(b"\n") if newline else []), offset + len(data) - len(rest)


def former(path: Path, inode: int) -> Path | None:
    """Return where a file is that was rotated away, if it is still there as it was."""
    return next((other for other in path.parent.glob(path.name + "?*") if other.stat().st_ino == inode), None)


def last_of_file(path: Path, count: int) -> Reading:
    """Return the last lines of a log file, also those that were rotated away just now."""
    with path.open("rb") as stream:
        lines, offset = tail(stream, count)
        cursor = {"inode": os.fstat(stream.fileno()).st_ino, "offset": offset}
    before = path.with_name(path.name + ".1")
    if len(lines) < count and before.exists():
        with before.open("rb") as stream:
            lines = tail(stream, count - len(lines))[0] + lines
    return decoded(lines, cursor)


def rest_of_file(path: Path, cursor: dict[str, Any]) -> Reading:
    """Return what was written since; to the end of the old file first, if it was rotated."""
    inode, offset = cursor["inode"], cursor["offset"]
    now = path.stat() if path.exists() else None  # between two names there is none
    if now is None or now.st_ino != inode:
        old = former(path, inode)
        lines, end = read_from(old, offset) if old else ([], offset)
        # Whoever writes goes on in the old file until it has opened the new one.
        if now is None or (old and (lines or not now.st_size)):
            return decoded(lines, {"inode": inode, "offset": end})
        inode, offset = now.st_ino, 0
    elif now.st_size < offset:
        offset = 0  # emptied in its place
    lines, offset = read_from(path, offset)
    return decoded(lines, {"inode": inode, "offset": offset})


def of_journal(text: str, cursor: dict[str, Any] | None) -> Reading:
    """Return entries of journalctl as JSON lines, those after a cursor as far as there is room, and where they end."""
    lines: list[str] = []
    room = ROOM
    for line in text.split("\n")[:-1]:
        room -= len(line)
        if cursor and lines and room < 0:
            break
        lines.append(line)
    return Reading(lines, {"journal": json.loads(lines[-1])["__CURSOR"]} if lines else cursor)


def journal(module: AnsibleModule, cursor: dict[str, Any] | None, count: int) -> Reading:
    """Read the journal of some units."""
    argv = [
        "journalctl",
        "--quiet",
        "--no-pager",
        "--output=json",
        "--output-fields=MESSAGE,_SYSTEMD_UNIT,UNIT,PRIORITY",
    ]
    argv += [f"--unit={unit}" for unit in module.params["units"]]
    # Without any line there would be no cursor to go on from.
    argv.append(f"--after-cursor={cursor['journal']}" if cursor else f"--lines={max(1, count)}")
    _code, output, _errors = module.run_command(argv, check_rc=True)
    found = of_journal(output, cursor)
    return found if cursor or count else Reading([], found.cursor)


def patiently(read: Callable[[dict[str, Any] | None], Reading], cursor: dict[str, Any] | None, wait: float) -> Reading:
    """Read until there is something, at most so many seconds; what comes at once comes together."""
    deadline = time.monotonic() + wait
    while True:
        if wait:
            time.sleep(PAUSE)
        found = read(cursor)
        if found.lines or time.monotonic() >= deadline:
            return found
        cursor = found.cursor


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path"},
            "units": {"type": "list", "elements": "str"},
            "lines": {"type": "int", "default": 50},
            "cursor": {"type": "dict"},
            "wait": {"type": "float", "default": 0},
        },
        required_one_of=[("path", "units")],
        supports_check_mode=True,
    )
    path, count = Path(module.params["path"] or ""), module.params["lines"]

    def read(cursor: dict[str, Any] | None) -> Reading:
        if not module.params["path"]:
            return journal(module, cursor, count)
        return rest_of_file(path, cursor) if cursor else last_of_file(path, count)

    try:
        found = patiently(read, module.params["cursor"], module.params["wait"])
    except FileNotFoundError:
        module.fail_json(msg=f"There is no {path}: has this balancer been deployed, is balancer_access_log right?")
    except OSError as error:
        module.fail_json(msg=f"{path}: {error.strerror}. Reading logs needs root: see ansible_become.")
    module.exit_json(lines=found.lines, **({"cursor": found.cursor} if found.cursor else {}))


if __name__ == "__main__":
    main()
