# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory: read as Ansible reads it, edited so that nothing else in it changes.

The commands edit ``nodes.yml`` and ``host_vars/NODE.yml`` only. What an edit makes of ``nodes.yml`` is parsed by
Ansible's own parser before it replaces the old file: the difference must be exactly what was asked.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import io
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from ._errors import ClusterError, UsageError, near
from ._folder import NODES_FILE, ignored, is_vault
from ._folder import WRITTEN as WRITTEN_BY_PLAYBOOKS

NODES, BALANCERS, CLIENTS = "llm_nodes", "llm_balancers", "llm_clients"
LOCK_FILE = ".nodes.lock"
LOCK_PATIENCE = 10.0
ENGINES = ("ollama", "llama_cpp")
# What is a host name for sure, for YAML, for Ansible's patterns and for a file's name.
HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
# The variables that add_node writes.
WRITTEN = {
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "llm_engine",
    "llm_node_slots",
    "llm_node_weight",
    "llm_node_backup",
    "llm_node_labels",
}


class EditRefusedError(ClusterError):
    """The file is written in a way that can't be edited safely; ``lines`` is what the operator can do by hand."""

    def __init__(self, message: str, lines: str) -> None:
        super().__init__(f"{message}\n\n{lines}")
        self.lines = lines


@dataclass(frozen=True)
class Group:
    """A group as it is written: its hosts in order, the groups in it, its variables."""

    hosts: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Inventory:
    """What Ansible makes of inventory files: groups, and the variables that are written beside hosts."""

    groups: dict[str, Group]
    hosts: dict[str, dict[str, Any]]

    def members(self, group: str) -> list[str]:
        """Return the hosts of a group and of the groups in it, in the inventory's order."""
        if group not in self.groups:
            return []
        found = list(self.groups[group].hosts)
        for child in self.groups[group].children:
            found += self.members(child)
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Node:
    """A node as one asks for it. None stands for the cluster's default."""

    name: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    engine: str | None = None
    slots: int | None = None
    weight: float | None = None
    backup: bool | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what Ansible or the cluster could not use."""
        if not HOST_NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} can't be a node's name: use letters, digits, '.', '-' and '_'. "
                "An address of another form goes with a name: llm cluster add-node ADDRESS --name NAME"
            )
        if self.engine is not None and self.engine not in ENGINES:
            raise UsageError(f"{self.engine!r} is no engine. {near(self.engine, ENGINES, 'engine')}")
        for what, value, lowest, highest in (
            ("port", self.port, 1, 65535),
            ("slots", self.slots, 1, 1024),
            ("weight", self.weight, 0.01, 1000),
        ):
            if value is not None and not lowest <= value <= highest:
                raise UsageError(f"{what} is {value:g}; it must be from {lowest:g} to {highest:g}.")

    def variables(self) -> dict[str, Any]:
        """Return what ``host_vars/NODE.yml`` says."""
        values = {
            "ansible_host": self.host if self.host != self.name else None,
            "ansible_port": self.port,
            "ansible_user": self.user,
            "llm_engine": self.engine,
            "llm_node_slots": self.slots,
            "llm_node_weight": self.weight,
            "llm_node_backup": self.backup,
            "llm_node_labels": dict(self.labels) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


def yaml(text: str = "") -> YAML:
    """Return a YAML reader and writer that keeps comments, quotes, order and the indentation of a text."""
    found = re.search(r"^( +)\S", text, re.MULTILINE)
    handler = YAML()
    handler.preserve_quotes = True
    handler.width = 4096
    handler.explicit_start = text.lstrip().startswith("---") or None
    handler.indent(mapping=len(found.group(1)) if found else 2, sequence=4, offset=2)
    return handler


def load(text: str, shown: Path | str, twice: bool = False) -> Any:
    """Parse YAML; what is broken is said with file and line.

    :param twice: whether a key may be there twice, of which Ansible only warns
    """
    handler = yaml(text)
    handler.allow_duplicate_keys = twice
    try:
        return handler.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{shown}:{mark.line + 1}" if mark else str(shown)
        raise ClusterError(
            f"{where}: this is not YAML: {error.problem or error.context}. Mend the file first."
        ) from error
    except (YAMLError, ValueError, IndexError) as error:  # ruamel.yaml raises the latter two on odd numbers such as +_
        raise ClusterError(f"{shown}: this is not YAML: {str(error).splitlines()[0]}. Mend the file first.") from error


def check_variables(folder: Path) -> None:
    """Name broken files in group_vars and host_vars with their line, which Ansible says less plainly and later."""
    for kind in ("group_vars", "host_vars"):
        for file in sorted((folder / kind).rglob("*")):
            if file.is_file() and file.suffix in ("", ".yml", ".yaml") and not is_vault(file):
                load(text_of(file), file, twice=True)


def text_of(path: Path) -> str:
    """Return a file's text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ClusterError(f"{path}: this is not UTF-8 text ({error.reason}). Mend the file first.") from error


def dump(data: Any) -> str:
    """Return data of our own as YAML that Ansible reads as it is meant: PyYAML, which it reads with, writes it too."""
    import yaml as pyyaml

    return str(pyyaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=4096))


def dump_like(data: Any, text: str) -> str:
    """Return what was loaded from a text as YAML, in the style of that text."""
    stream = io.StringIO()
    yaml(text).dump(data, stream)
    return stream.getvalue()


def as_key(name: str) -> str:
    """Return a host's name as a key that Ansible reads as that name; not as a number, or ``yes`` as true."""
    return name if dump({name: 0}) == f"{name}: 0\n" else SingleQuotedScalarString(name)


def parse(path: Path) -> Inventory:
    """Read one inventory file with Ansible's own parser for YAML."""
    # Here, because it takes half a second.
    from ansible.errors import AnsibleError
    from ansible.inventory.data import InventoryData
    from ansible.parsing.dataloader import DataLoader
    from ansible.plugins.loader import inventory_loader

    data = InventoryData()
    if load(text_of(path), path) is None:
        return to_inventory(data)  # nothing but comments, which the parser refuses
    plugin = inventory_loader.get("yaml")
    try:
        with quiet_display():
            plugin.parse(data, DataLoader(), str(path), cache=False)
    except AnsibleError as error:
        raise ClusterError(f"{path}: Ansible can't read this inventory: {error.message}") from error
    return to_inventory(data)


def read(folder: Path) -> Inventory:
    """Read the whole inventory of a cluster: every file in its folder that Ansible would read, also programs."""
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader

    sources = inventory_files(folder)
    for file in sources:
        if file.suffix in (".yml", ".yaml"):
            load(text_of(file), file)
    parse(folder / NODES_FILE)
    with quiet_display():
        manager = InventoryManager(loader=DataLoader(), sources=[str(source) for source in sources])
    return to_inventory(manager._inventory)


def inventory_files(folder: Path) -> list[Path]:
    """Return what in a cluster's folder is inventory, by its own ansible.cfg rather than that of this process."""
    from ansible.inventory.manager import IGNORED

    own = re.compile("|".join([*ignored(folder), *WRITTEN_BY_PLAYBOOKS]))
    return [
        path
        for path in sorted(folder.iterdir())
        if not IGNORED.search(path.name.encode()) and not own.search(path.name)
    ]


@contextlib.contextmanager
def quiet_display() -> Iterator[None]:
    """Keep Ansible's warnings off the terminal: an empty group and the like are no news here."""
    from ansible.utils.display import Display

    display = Display()
    kept = display.display
    display.display = lambda *_arguments, **_options: None
    try:
        yield
    finally:
        display.display = kept


def to_inventory(data: Any) -> Inventory:
    """Return Ansible's inventory as plain data."""
    own = ("inventory_file", "inventory_dir")
    return Inventory(
        groups={
            name: Group(
                [host.name for host in group.hosts],
                [child.name for child in group.child_groups],
                dict(group.vars),
            )
            for name, group in data.groups.items()
        },
        hosts={
            name: {key: value for key, value in host.vars.items() if key not in own}
            for name, host in data.hosts.items()
        },
    )


def with_node(inventory: Inventory, name: str) -> Inventory:
    """Return what an inventory is to be once a node has been added."""
    wanted = copy.deepcopy(inventory)
    wanted.groups.setdefault(NODES, Group()).hosts.append(name)
    wanted.hosts.setdefault(name, {})
    return wanted


def without_node(inventory: Inventory, name: str) -> Inventory:
    """Return what an inventory is to be once a node has been taken out."""
    wanted = copy.deepcopy(inventory)
    wanted.groups[NODES].hosts.remove(name)
    del wanted.hosts[name]
    return wanted


def same(one: Inventory, other: Inventory) -> bool:
    """Whether two inventories mean the same: groups, hosts in their order, variables."""

    def essence(inventory: Inventory) -> Any:
        # Groups that Ansible makes itself from the others, and groups that are empty, say nothing.
        groups = {
            name: (group.hosts, group.children if name != "all" else [], group.variables)
            for name, group in inventory.groups.items()
            if name not in ("all", "ungrouped")
        }
        root = inventory.groups.get("all", Group())
        return (
            {name: content for name, content in groups.items() if any(content)},
            root.variables,
            sorted(inventory.groups.get("ungrouped", Group()).hosts),
            inventory.hosts,
        )

    return bool(essence(one) == essence(other))


def find_group(data: Any, name: str) -> CommentedMap | None:
    """Return the mapping of a group, wherever it is; the one with hosts if it is there twice."""
    found = list(all_groups(data, name))
    return next((group for group in found if group.get("hosts")), found[0] if found else None)


def all_groups(data: Any, name: str) -> Iterator[CommentedMap]:
    """Yield the mappings of a group."""
    if not isinstance(data, CommentedMap):
        return
    for key, value in data.items():
        if key == name and isinstance(value, CommentedMap):
            yield value
        if isinstance(value, CommentedMap):
            yield from all_groups(value.get("children"), name)


def text_with_node(text: str, name: str) -> str:
    """Return ``nodes.yml`` with one more node."""
    data = load(text, NODES_FILE)
    if data is None:
        # Comments alone: they stay above.
        return (text if text.endswith("\n") or not text else text + "\n") + node_lines(name)
    if not isinstance(data, CommentedMap):
        raise ClusterError("it is not a mapping of groups")
    group = find_group(data, NODES)
    if group is None:
        group = CommentedMap()
        if NODES in data or not any(True for _ in all_groups(data, "all")):
            data[NODES] = group
        else:
            top = next(all_groups(data, "all"))
            if not isinstance(top.get("children"), CommentedMap):
                top["children"] = CommentedMap()
            top["children"][NODES] = group
    if not isinstance(group.get("hosts"), CommentedMap):
        if group.get("hosts"):
            raise ClusterError(f"the hosts of {NODES} are not a mapping")
        group["hosts"] = CommentedMap()
    group["hosts"][as_key(name)] = None
    return dump_like(data, text)


def text_without_node(text: str, name: str) -> str:
    """Return ``nodes.yml`` without a node."""
    data = load(text, NODES_FILE)
    for group in all_groups(data, NODES):
        hosts = group.get("hosts")
        key = next((key for key in hosts if str(key) == name), None) if isinstance(hosts, CommentedMap) else None
        if key is not None:
            del hosts[key]
            if not hosts:
                group["hosts"] = None
            return dump_like(data, text)
    raise ClusterError(f"{name} is not among the hosts of {NODES} in {NODES_FILE}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: one edit at a time."""
    with (folder / LOCK_FILE).open("a") as handle:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"Another llm cluster command is editing {folder / NODES_FILE}. Nothing was changed; try again."
                    ) from None
                time.sleep(0.05)
        yield


def replace(path: Path, text: str) -> None:
    """Replace a file at once, or leave it as it was. A link is followed; rights are kept."""
    target = path.resolve()
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o644
    handle, draft = tempfile.mkstemp(prefix=".new-", dir=target.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(draft).replace(target)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def check_edit(old_path: Path, text: str, wanted: Inventory) -> None:
    """Parse what is to be written as Ansible will, and refuse it unless it is exactly what was asked."""
    with tempfile.TemporaryDirectory(prefix="llm-cluster-") as scratch:
        draft = Path(scratch) / old_path.name
        draft.write_text(text, encoding="utf-8")
        if not same(parse(draft), wanted):
            raise ClusterError("the edit would have changed something else too")


def node_lines(name: str) -> str:
    """Return the lines that put a node into an inventory."""
    return dump({NODES: {"hosts": {name: None}}}).replace(": null\n", ":\n")


def pasted(node: str, variables: Mapping[str, Any]) -> str:
    """Return what an operator can write by hand to add a node."""
    lines = f"In {NODES_FILE}:\n\n{node_lines(node)}"
    return lines + (f"\nIn host_vars/{node}.yml:\n\n{dump(dict(variables))}" if variables else "")


def host_vars_files(folder: Path, name: str) -> list[Path]:
    """Return the files or folders with a host's own variables."""
    return sorted(path for path in (folder / "host_vars").glob("*") if path.name in host_vars_names(name))


def host_vars_names(name: str) -> set[str]:
    """Return the names that Ansible looks for in host_vars."""
    return {name, *(name + ending for ending in (".yml", ".yaml", ".json"))}


def add_node(folder: Path, node: Node) -> None:
    """Write a node into the inventory, or change nothing and say why."""
    node.check()
    with locked(folder):
        whole = read(folder)
        check_new(folder, whole, node.name)
        path, variables = folder / NODES_FILE, node.variables()
        try:
            text = text_with_node(text_of(path), node.name)
            check_edit(path, text, with_node(parse(path), node.name))
        except ClusterError as error:
            raise EditRefusedError(
                f"{path} was left as it is ({error}). These are the lines to add by hand:",
                pasted(node.name, variables),
            ) from error
        own = folder / "host_vars" / f"{node.name}.yml"
        if variables:
            own.parent.mkdir(exist_ok=True)
            replace(own, "---\n" + dump(variables))
        try:
            replace(path, text)
        except BaseException:
            own.unlink(missing_ok=True)
            raise


def check_new(folder: Path, whole: Inventory, name: str) -> None:
    """Refuse a node that is there already, under this or nearly this name."""
    for known in whole.hosts:
        if known.lower() == name.lower():
            groups = [group for group in (NODES, BALANCERS, CLIENTS) if known in whole.members(group)]
            also = "" if NODES in groups else f" To make it a node too, write it below {NODES} in {NODES_FILE}."
            raise UsageError(
                f"{known} is in the inventory already ({', '.join(groups) or 'in no group of ours'}).{also}"
            )
    files = host_vars_files(folder, name)
    if files:
        raise UsageError(f"{files[0]} is there already, although {name} is not in the inventory: move it away first.")


def check_known(whole: Inventory, name: str) -> None:
    """Refuse a name that is no node's."""
    nodes = whole.members(NODES)
    if name not in nodes:
        raise UsageError(f"There is no node {name!r}. {near(name, nodes, 'node')}")


def check_removable(whole: Inventory, name: str) -> None:
    """Refuse to take out what the cluster can't do without."""
    check_known(whole, name)
    if whole.members(NODES) == [name]:
        raise UsageError(f"{name} is the only node: a cluster needs one. Add another first.")
    others = [group for group in (BALANCERS, CLIENTS) if name in whole.members(group)]
    if others:
        raise UsageError(
            f"{name} is also in {' and '.join(others)}, and removing it would remove that too. "
            "Take it out of there first, or take the node out by hand."
        )


def remove_node(folder: Path, name: str) -> Path | None:
    """Take a node out of the inventory, or change nothing and say why.

    :returns: where its variables were put, if they held more than add_node writes
    """
    with locked(folder):
        check_removable(read(folder), name)
        path = folder / NODES_FILE
        try:
            text = text_without_node(text_of(path), name)
            check_edit(path, text, without_node(parse(path), name))
        except (ClusterError, KeyError, ValueError) as error:
            raise EditRefusedError(
                f"{path} was left as it is ({error}). This is to be done by hand:",
                f"Take {name} out of {NODES}" + f" and of every other group, and remove host_vars/{name}.yml.",
            ) from error
        replace(path, text)
        return put_away(folder, name)


def put_away(folder: Path, name: str) -> Path | None:
    """Remove a host's variables; what an operator added to them is kept under a name that Ansible doesn't read."""
    kept = None
    for own in host_vars_files(folder, name):
        if own.is_file() and own.suffix == ".yml":
            with contextlib.suppress(ClusterError):
                content = text_of(own)
                if not content.startswith("$ANSIBLE_VAULT") and set(load(content, own) or {}) <= WRITTEN:
                    own.unlink()
                    continue
        kept = own.with_name(own.name + ".removed")
        own.replace(kept)
    return kept
