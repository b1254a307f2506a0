# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The models in the inventory: which there are, and one more.

``llm cluster load`` adds to the list ``llm_models`` in ``nodes.yml``. Variables in ``group_vars`` are stronger; where
they hold the list it is the operator's, and the lines to write are said instead.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from . import _folder, _inventory
from ._environment import for_ansible
from ._errors import ClusterError, UsageError, near
from ._inventory import EditRefusedError, Group, Inventory

LIST = "llm_models"
# Where the list is looked for in nodes.yml, and where it is made.
GROUPS = ("all", _inventory.NODES)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True)
class NewModel:
    """A model as one asks for it. Without a source the engine's registry has it under its name."""

    name: str
    source: str | None = None
    digest: str | None = None

    def entry(self, folder: Path) -> dict[str, Any]:
        """Return its entry in the list."""
        if not NAME.fullmatch(self.name):
            raise UsageError(f"{self.name!r} can't be a model's name: use letters, digits, and . _ : / @ -")
        made: dict[str, Any] = {"name": self.name}
        if self.source:
            made["source"] = self.where(folder)
        if self.digest:
            found = DIGEST.fullmatch(self.digest)
            if not found:
                raise UsageError(f"{self.digest!r} is no digest: write sha256: and 64 hexadecimal digits.")
            made["digest"] = f"sha256:{found[1]}"
        return made

    def where(self, folder: Path) -> dict[str, str]:
        """Return the source: a URL, a file here, or another name in the registry."""
        source = str(self.source)
        if "{{" in source or "{%" in source:
            raise UsageError(f"{source!r} can't be a source: Ansible would take it for a template.")
        if re.match(r"https?://", source):
            return {"url": source}
        file, here = Path(source).expanduser().resolve(), folder.resolve()
        if file.is_file():
            return {
                "file": f"{{{{ inventory_dir }}}}/{file.relative_to(here)}" if file.is_relative_to(here) else str(file)
            }
        if source.startswith(("/", ".", "~")) or source.lower().endswith(".gguf"):
            raise UsageError(
                f"There is no file {file}. A source is a file here, a URL, or a name in Ollama's registry."
            )
        if not NAME.fullmatch(source):
            raise UsageError(f"{source!r} is no source: name a file here, a URL, or a model in Ollama's registry.")
        return {"registry": source}


def host_variables(folder: Path, *more: Path) -> dict[str, dict[str, Any]]:
    """Return each host's variables as Ansible has them, templates as they are written.

    :param more: inventories besides the cluster's own
    """
    _folder.check_vault(folder)
    command = [str(_folder.program("ansible-inventory")), "--list"]
    for source in (folder, *more):
        command += ["-i", str(source)]
    done = subprocess.run(
        command,
        cwd=folder,
        env=for_ansible(os.environ, {**_folder.ansible_settings(folder), "LC_ALL": "C.UTF-8"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"The inventory can't be read: {done.stderr.strip()}")
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["_meta"]["hostvars"]
    return found


def named(variables: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a host's models, or None where only Ansible can tell."""
    models = variables.get(LIST, [])
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        return None
    return [str(model.get("name")) for model in models]


def known(hosts: Mapping[str, Mapping[str, Any]], nodes: list[str]) -> list[str] | None:
    """Return the names of all nodes' models, or None where only Ansible can tell."""
    found = [named(hosts.get(node, {})) for node in nodes]
    if None in found:
        return None
    return list(dict.fromkeys(name for names in found for name in names or []))


def unknown(name: str, names: list[str]) -> UsageError:
    """Return what there is to say of a model that the inventory does not have."""
    return UsageError(
        f"There is no model {name!r} in {LIST}. {near(name, names, 'model')}\n"
        f"To add it, from Ollama's registry: llm cluster load {name} --add\n"
        f"To add it from elsewhere: llm cluster load {name} --source URL or FILE"
    )


def holder(inventory: Inventory) -> str:
    """Return the group whose variables in nodes.yml hold the list, or should."""
    return next((name for name in GROUPS if LIST in inventory.groups.get(name, Group()).variables), GROUPS[0])


def with_model(inventory: Inventory, group: str, entry: Mapping[str, Any]) -> Inventory:
    """Return what an inventory is to be once a model has been added."""
    wanted = copy.deepcopy(inventory)
    variables = wanted.groups[group].variables
    variables[LIST] = [*(variables.get(LIST) or []), dict(entry)]
    return wanted


def text_with_model(text: str, group: str, entry: Mapping[str, Any]) -> str:
    """Return ``nodes.yml`` with one more model."""
    data = _inventory.load(text, _folder.NODES_FILE)
    if not isinstance(data, CommentedMap):
        raise ClusterError("it is not a mapping of groups")
    found = _inventory.find_group(data, group)
    if found is None:
        found = CommentedMap()
        data.insert(0, group, found)
    if not isinstance(found.get("vars"), CommentedMap):
        found["vars"] = CommentedMap()
    models = found["vars"].get(LIST)
    if not models:
        models = found["vars"][LIST] = CommentedSeq()
    if not isinstance(models, CommentedSeq):
        raise ClusterError(f"{LIST} is not a list there")
    # As PyYAML writes it, which Ansible reads with: a model called yes needs its quotes.
    models.append(_inventory.load(_inventory.dump(dict(entry)), "entry"))
    return _inventory.dump_like(data, text)


def pasted(entry: Mapping[str, Any]) -> str:
    """Return what an operator can write by hand to add a model."""
    return f"{LIST}:\n" + textwrap.indent(_inventory.dump([dict(entry)]), "  ")


def setters(folder: Path) -> list[str]:
    """Return the files besides nodes.yml that set the list, as far as one can see."""
    files = [file for kind in ("group_vars", "host_vars") for file in sorted((folder / kind).rglob("*"))]
    return [
        str(file.relative_to(folder))
        for file in [*files, *sorted(folder.glob("[!.]*.y*ml"))]
        if file.is_file()
        and file.name != _folder.NODES_FILE
        and not _folder.is_vault(file)
        and re.search(rf"^\s*{LIST}\s*:", _inventory.text_of(file), re.MULTILINE)
    ]


def check_effect(folder: Path, nodes: list[str], entry: Mapping[str, Any], draft: Path) -> None:
    """Refuse an edit that would change nothing, because stronger variables hold the list.

    :param draft: an inventory with what nodes.yml is to say
    """
    hosts = host_variables(folder, draft)
    deaf = [node for node in nodes if entry["name"] not in (named(hosts.get(node, {})) or [])]
    if deaf:
        files = setters(folder)
        raise UsageError(
            f"{LIST} of {', '.join(deaf)} is set in {' and '.join(files) or 'variables'} that are stronger than "
            f"{_folder.NODES_FILE}, and that are yours. Nothing was changed. These are the lines to add there; then: "
            f"llm cluster deploy\n\n{pasted(entry)}"
        )


def edited(folder: Path, entry: Mapping[str, Any]) -> str:
    """Return what nodes.yml is to be, or refuse and say why."""
    path = folder / _folder.NODES_FILE
    before = _inventory.parse(path)
    group = holder(before)
    try:
        text = text_with_model(_inventory.text_of(path), group, entry)
        _inventory.check_edit(path, text, with_model(before, group, entry))
    except ClusterError as error:
        raise EditRefusedError(
            f"{path} was left as it is ({error}). These are the lines to add by hand:", pasted(entry)
        ) from error
    return text


def add_model(folder: Path, entry: Mapping[str, Any]) -> None:
    """Write a model into nodes.yml, or change nothing and say why."""
    with _inventory.locked(folder):
        _inventory.replace(folder / _folder.NODES_FILE, edited(folder, entry))
