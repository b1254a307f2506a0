# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are: the cluster's folder, the collection, and what belongs to the user rather than to the folder."""

from __future__ import annotations

import configparser
import os
import sys
import sysconfig
from pathlib import Path

from ._errors import ClusterError, UsageError

NODES_FILE = "nodes.yml"
VARIABLE = "LLM_CLUSTER_DIR"
# What the playbooks write beside the inventory is none, whatever an operator's ansible.cfg says: patterns for Ansible.
WRITTEN = (r"^models\.lock\.yml$", r"^result\.json$")


def find(given: str | Path | None = None) -> Path:
    """Return the cluster's folder: the given one, that of LLM_CLUSTER_DIR, else the current folder or one above it."""
    named = given or os.environ.get(VARIABLE)
    if named:
        folder = Path(named).expanduser().absolute()
        if not (folder / NODES_FILE).is_file():
            where = "--dir" if given else VARIABLE
            raise UsageError(
                f"{where} says {folder}, where no cluster is ({NODES_FILE} is missing). "
                f"To make one: llm cluster init {named}"
            )
        return folder
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / NODES_FILE).is_file():
            return folder
    raise UsageError(
        f"There is no cluster in {here} or a folder above it: none has a {NODES_FILE}. "
        f"Make one with: llm cluster init; or say where it is with --dir or {VARIABLE}."
    )


def config_home() -> Path:
    """Return the folder of the user's settings for this program."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "llm-cluster"


def logs_home() -> Path:
    """Return the folder of the user's logs of this program."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llm-cluster"


def collections_path() -> Path:
    """Return the folder to give to Ansible as collections path: the wheel's own, or the checkout's."""
    bundled = Path(__file__).parent / "_collection"
    if (bundled / "ansible_collections" / "llm" / "cluster" / "meta" / "runtime.yml").is_file():
        return bundled
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "galaxy.yml").is_file():
        return checkout / "collections"
    raise ClusterError(f"The collection is missing from {bundled}. Install llm-cluster-ops again (docs/cli.md).")


def collection() -> Path:
    """Return the collection's own folder."""
    return collections_path() / "ansible_collections" / "llm" / "cluster"


def ansible_settings(folder: Path) -> dict[str, str]:
    """Return the environment in which Ansible works on a cluster: its ansible.cfg, our collection."""
    paths = [str(collections_path()), "~/.ansible/collections", "/usr/share/ansible/collections"]
    made = {
        "ANSIBLE_COLLECTIONS_PATH": ":".join(paths),
        "ANSIBLE_INVENTORY_IGNORE_REGEX": ",".join([*ignored(folder), *WRITTEN]),
        "ANSIBLE_NOCOLOR": "1",
    }
    if (folder / "ansible.cfg").is_file():
        made["ANSIBLE_CONFIG"] = str(folder / "ansible.cfg")
    return made


def ignored(folder: Path) -> list[str]:
    """Return what else a cluster's ansible.cfg says is no inventory, although it lies there."""
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    settings.read(folder / "ansible.cfg", encoding="utf-8")
    places = (("defaults", "inventory_ignore_patterns"), ("inventory", "ignore_patterns"))
    listed = next((found for section, name in places if (found := settings.get(section, name, fallback=""))), "")
    return [pattern.strip() for pattern in listed.split(",") if pattern.strip() and pattern.strip() not in WRITTEN]


def program(name: str) -> Path:
    """Return one of Ansible's programs, of the same installation as this one; it need not be on PATH."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        if os.access(folder / name, os.X_OK):
            return folder / name
    raise ClusterError(
        f"{name} is missing beside {sys.executable}. It belongs to ansible-core, which comes with llm-cluster-ops: "
        "install that again (docs/cli.md)."
    )


def check_vault(folder: Path) -> None:
    """Say it now if there is a vault whose password nobody will know."""
    vaults = [path for path in (folder / "group_vars", folder / "host_vars") if path.is_dir()]
    files = [file for path in vaults for file in path.rglob("*") if file.is_file() and is_vault(file)]
    if not files:
        return
    source = os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    settings.read(folder / "ansible.cfg", encoding="utf-8")
    if not source:
        if settings.get("defaults", "vault_identity_list", fallback="") or os.environ.get(
            "ANSIBLE_VAULT_IDENTITY_LIST"
        ):
            return
        source = settings.get("defaults", "vault_password_file", fallback="")
    shown = files[0].relative_to(folder)
    cure = (
        f"Set vault_password_file in {folder / 'ansible.cfg'} to a file that holds it, or ANSIBLE_VAULT_PASSWORD_FILE."
    )
    if not source:
        raise ClusterError(f"{shown} is encrypted, and no password for it is set. {cure}")
    if not (folder / Path(os.path.expandvars(source)).expanduser()).exists():
        raise ClusterError(
            f"{shown} is encrypted, and the file with its password is not here: {source}. "
            f"Get that file from where the cluster was made. {cure}"
        )


def is_vault(file: Path) -> bool:
    """Whether Ansible's vault encrypted a file."""
    try:
        with file.open("rb") as stream:
            return stream.read(14) == b"$ANSIBLE_VAULT"
    except OSError:
        return False
