# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock file: which version of each model every node must serve, as text that people review and comment on.

Pure functions, for the controller: nodes have no YAML and read no lock. A lock is
``{model: {engine: {"digest": …, "size": …, "source": {…}}}}``; by engine, because the digest of a GGUF file is another
one than that of a manifest in Ollama's registry.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.llm.cluster.plugins.module_utils._topology import ENGINES, locked

with contextlib.suppress(ImportError):
    import yaml

__all__ = ["LockError", "locked", "read_lock", "write_lock"]

FIELDS = ("digest", "size", "source")
SOURCES = ("url", "file", "registry")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CONFLICT = re.compile(r"(<<<<<<<|\|\|\|\|\|\|\||>>>>>>>)( |$)|=======$")
PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./:@+=&%~-]*")
HEADER = """\
# The version of each model that every node must serve. Written by playbooks/lock.yml; keep it under version control.
# Comments stay where they are.
"""


class LockError(Exception):
    """The text is no lock; the message says where and what to do."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")
        self.line = line


def read_lock(text: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the lock that a text holds; nothing if it is empty."""
    models = _models_node(text)
    if models is None:
        return {}
    lock: dict[str, dict[str, dict[str, Any]]] = {}
    for name, engines in _pairs(models, "models").items():
        lock[name] = {}
        for engine, entry in _pairs(engines, name, ENGINES).items():
            lock[name][engine] = _entry(f"{name}, {engine}", entry)
    return lock


def write_lock(old_text: str, wanted: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the text of the wanted lock, sorted, with the comments of the old text on what is still there."""
    if old_text.strip() and read_lock(old_text) == wanted:
        return old_text
    notes = _Notes(old_text)
    lines = notes.head
    lines.append("models:" + (notes.beside.get(("models",)) or ("" if wanted else " {}")))
    for name, engines in sorted(wanted.items()):
        lines += notes.key(name)
        for engine, entry in sorted(engines.items()):
            lines += notes.key(name, engine)
            for field in FIELDS:
                lines += notes.field(name, engine, field, entry.get(field))
            lines += notes.under.get((name, engine), [])
        lines += notes.under.get((name,), [])
    return "\n".join(lines + notes.tail) + "\n"


# Reading


def _models_node(text: str) -> Any:
    """Return the YAML node of ``models``, None in an empty file."""
    for number, line in enumerate(text.split("\n"), 1):
        if CONFLICT.match(line):
            raise LockError(
                number, "two versions of the file conflict here. Resolve that in your version control, then run again."
            )
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise LockError(mark.line + 1 if mark else 1, f"this is no YAML: {error.problem}. Correct the line.") from error
    except yaml.YAMLError as error:
        raise LockError(1, f"this is no YAML: {error}. Restore the file from your version control.") from error
    if root is None:
        return None
    models = _pairs(root, "the file", ("models",)).get("models")
    return None if models is None or _is_null(models) else models


def _pairs(node: Any, where: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return keys and value nodes of a mapping, in which no key may come twice or be another than those known."""
    if not isinstance(node, yaml.MappingNode):
        raise LockError(_line(node), f"{where} must be a mapping. Restore the file from your version control.")
    found: dict[str, Any] = {}
    for key, value in node.value:
        name = str(key.value)
        if name in found:
            raise LockError(_line(key), f"{name} is there twice. Remove one of the two, then run lock.yml.")
        if known and name not in known:
            raise LockError(_line(key), f"{where}: {name} is not known here; there is {', '.join(known)}.")
        found[name] = value
    return found


def _entry(where: str, node: Any) -> dict[str, Any]:
    """Return what is locked for one model and engine."""
    values = {field: (value, _plain(value)) for field, value in _pairs(node, where, FIELDS).items()}
    digest, size, source = (values.get(field, (node, None)) for field in FIELDS)
    if not isinstance(digest[1], str) or not DIGEST.fullmatch(digest[1]):
        raise LockError(
            _line(digest[0]),
            f"{where}: the digest must be sha256: and 64 hexadecimal digits in lower case. Correct it, or remove the "
            "entry and run lock.yml.",
        )
    if size[1] is not None and (not isinstance(size[1], int) or isinstance(size[1], bool) or size[1] < 0):
        raise LockError(_line(size[0]), f"{where}: the size must be a number of bytes.")
    found = {} if source[1] is None else source[1]
    if not isinstance(found, dict) or not set(found) <= set(SOURCES) or len(found) > 1:
        raise LockError(_line(source[0]), f"{where}: the source takes one of {', '.join(SOURCES)}.")
    return {"digest": digest[1], "size": size[1], "source": {kind: str(value) for kind, value in found.items()}}


def _plain(node: Any) -> Any:
    return yaml.SafeLoader("").construct_object(node, deep=True)


def _is_null(node: Any) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


# Writing


def _scalar(text: str) -> str:
    """Return a text as YAML: plain where that is read as the same text again."""
    if PLAIN.fullmatch(text) and not text.endswith(":") and yaml.safe_load(f"{{k: {text}}}") == {"k": text}:
        return text
    return json.dumps(text, ensure_ascii=False)


class _Notes:
    """The comments of a lock file by what they belong to; a path is (model, engine, field) or the first of these.

    Lines of comments above a key are its own. Those below an entry that are set deeper than the next key are the
    entry's. What comes before ``models`` and after the last entry stays there.
    """

    def __init__(self, text: str) -> None:
        self.above: dict[tuple[str, ...], list[str]] = {}
        self.under: dict[tuple[str, ...], list[str]] = {}
        self.beside: dict[tuple[str, ...], str] = {}
        self.head = (text if text.strip() else HEADER).rstrip("\n").split("\n")
        self.tail: list[str] = []
        keys = self._keys(text)
        if not keys:
            return
        lines = text.rstrip("\n").split("\n")
        ends = self._ends(text)
        begin = min(keys)
        self.head = lines[:begin]
        waiting: list[str] = []
        last: tuple[str, ...] = ("models",)
        for number, line in enumerate(lines[begin:], begin):
            path = keys.get(number)
            if not line.strip() or line.lstrip().startswith("#"):
                waiting.append(line)
                continue
            if path:
                self._place(waiting, path, last)
                waiting, last = [], path
            rest = line[ends.get(number, len(line)) :]
            if rest.strip().startswith("#"):
                self.beside[last] = self.beside.get(last, "") + rest.rstrip()
        self._place(waiting, (), last)

    @staticmethod
    def _keys(text: str) -> dict[int, tuple[str, ...]]:
        """Return by line the path of the first key that begins there; ``models`` itself is ``("models",)``."""
        root = yaml.compose(text, Loader=yaml.SafeLoader) if text.strip() else None
        found: dict[int, tuple[str, ...]] = {}
        for top, models in root.value if root else []:
            found[top.start_mark.line] = ("models",)
            for name, engines in [] if _is_null(models) else models.value:
                found.setdefault(name.start_mark.line, ("", name.value))
                for engine, entry in engines.value:
                    found.setdefault(engine.start_mark.line, ("", name.value, engine.value))
                    for field, _value in entry.value:
                        found.setdefault(field.start_mark.line, ("", name.value, engine.value, field.value))
        return {line: path if path == ("models",) else path[1:] for line, path in found.items()}

    @staticmethod
    def _ends(text: str) -> dict[int, int]:
        """Return by line where its last token ends: what follows is a comment."""
        ends: dict[int, int] = {}
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            mark = token.end_mark
            ends[mark.line] = max(mark.column, ends.get(mark.line, 0))
        return ends

    def _place(self, lines: list[str], path: tuple[str, ...], last: tuple[str, ...]) -> None:
        """Give lines of comments to the entry above them as far as they are set deeper than what follows."""
        owner = last[: max(len(path), 1)] if last != ("models",) else ()
        depth = 2 * max(len(path), 1)
        own = 0
        if owner and len(path) < len(last):
            for number, line in enumerate(lines, 1):
                if line.strip():
                    if len(line) - len(line.lstrip()) <= depth:
                        break
                    own = number
        if own:
            self.under.setdefault(owner, []).extend(lines[:own])
        if path:
            self.above[path] = lines[own:]
        else:
            self.tail = lines[own:]

    def key(self, *path: str) -> list[str]:
        """Return the lines of a model's or engine's key."""
        return [*self.above.get(path, []), "  " * len(path) + _scalar(path[-1]) + ":" + self.beside.get(path, "")]

    def field(self, name: str, engine: str, field: str, value: Any) -> list[str]:
        """Return the lines of a field, only its comments if it has no value."""
        path = (name, engine, field)
        above = self.above.get(path, [])
        if value is None or value == {}:
            return above
        if isinstance(value, Mapping):
            shown = "{" + ", ".join(f"{kind}: {_scalar(str(one))}" for kind, one in value.items()) + "}"
        else:
            shown = str(value)
        return [*above, f"      {field}: {shown}{self.beside.get(path, '')}"]
