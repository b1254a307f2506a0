# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a cluster's folder: an ordinary Ansible inventory, from the collection's example."""

from __future__ import annotations

import configparser
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

from . import _folder
from ._errors import ClusterError, UsageError
from ._inventory import BALANCERS, CLIENTS, HOST_NAME, NODES, Node, dump, load

NODES_TEXT = """\
---
# The hosts of this cluster and its models. llm cluster add-node and remove-node edit the hosts of llm_nodes, and
# host_vars/NODE.yml; llm cluster load adds to llm_models. Everything else here and in group_vars is yours.
all:
  vars:
    # The models that every node serves. With Ollama the name is the registry's.
{models}
{nodes}:
  hosts:
# nginx, in front of the nodes. Needs no GPU and little memory.
{balancers}:
  hosts:{balancer}
# Hosts whose users get the llm command set up. The balancer's own host is a good first one.
{clients}:
  hosts:{balancer}
"""
ANSIBLE_CFG = """\
# For ansible-playbook in this folder; llm cluster reads it too.
[defaults]
inventory = .
# What the playbooks write beside the inventory is none.
inventory_ignore_patterns = {written}
# Outside this folder, so that it is never committed. Any file or program that gives the password can take its place.
vault_password_file = {password_file}
forks = 50
gathering = explicit
interpreter_python = auto_silent
callback_result_format = yaml
display_skipped_hosts = false

[ssh_connection]
# Pipelining saves two of three round trips of every task; the keep-alives let a long download live behind a firewall.
pipelining = true
ssh_args = -o ControlMaster=auto -o ControlPersist=10m -o ServerAliveInterval=15 -o ServerAliveCountMax=8

[llm_cluster]
name = {name}
"""
GITIGNORE = """\
.nodes.lock
.new-*
*.removed
*.retry
result.json
.vault_pass*
"""


def name_of(folder: Path) -> str:
    """Return a cluster's name: what ansible.cfg says, else the folder's."""
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    settings.read(folder / "ansible.cfg", encoding="utf-8")
    return settings.get("llm_cluster", "name", fallback="") or folder.resolve().name


def example(path: str) -> str:
    """Return a file of the collection's example inventory."""
    return (_folder.collection() / "inventories" / "example" / path).read_text(encoding="utf-8")


def main_variables(user: str) -> tuple[str, str]:
    """Return ``group_vars/all/main.yml``, and the lines with the models, which belong into nodes.yml.

    Both are the example's, with the user to log in as.
    """
    text = example("group_vars/all/main.yml")
    text, users = re.subn(r"^ansible_user: .*$", f"ansible_user: {user}", text, flags=re.M)
    models = re.search(r"^# The models that .*\n(?P<list>llm_models:\n(?: .*\n)+)", text, re.M)
    if users != 1 or not models:
        raise ClusterError("The collection's example inventory is not the one this program knows: install again.")
    told = (
        "# The models are in nodes.yml, where llm cluster load can add to them. Set here, llm_models is yours alone.\n"
    )
    return text.replace(models[0], told), textwrap.indent(models["list"].rstrip(), "    ")


def vault_variables() -> str:
    """Return the vault's content: the example's keys with values that nobody knows."""
    names = load(example("group_vars/all/vault.yml"), "inventories/example/group_vars/all/vault.yml")
    return "---\n# To edit: ansible-vault edit group_vars/all/vault.yml\n" + dump(
        {name: secrets.token_hex(24) for name in names}
    )


def encrypt(content: str, target: Path, settings: Path) -> None:
    """Write an encrypted file with a folder's ansible.cfg; the content is on no command line and in no other file."""
    command = [str(_folder.program("ansible-vault")), "encrypt", "--output", str(target), "-"]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(settings), "LC_ALL": "C.UTF-8"}
    for other in ("ANSIBLE_VAULT_PASSWORD_FILE", "ANSIBLE_VAULT_IDENTITY_LIST"):
        environment.pop(other, None)
    done = subprocess.run(command, input=content, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"The vault could not be encrypted: {done.stderr.strip()}")


def new_password(name: str) -> Path:
    """Make a vault password that only this user can read, and return its file."""
    folder = _folder.config_home()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = folder / f"{name}-{secrets.token_hex(4)}.vault"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(secrets.token_urlsafe(32) + "\n")
    return file


def shown_path(path: Path) -> str:
    """Return a path with ~ for the home folder, so that it fits another user's too."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def create(folder: Path, name: str, user: str, balancer: Node | None) -> Path:
    """Make the folder; all of it or nothing.

    :returns: the file with the vault's password
    """
    if not HOST_NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't be a cluster's name: use letters, digits, '.', '-' and '_'.")
    if balancer is not None:
        balancer.check()
    folder.mkdir(parents=True, exist_ok=True)
    ours = (_folder.NODES_FILE, "group_vars", "host_vars", "ansible.cfg", ".gitignore")
    there = [one for one in ours if (folder / one).exists()]
    if _folder.NODES_FILE in there:
        raise UsageError(f"There is a cluster in {folder} already.")
    if there:
        raise UsageError(f"{folder} holds {', '.join(there)} already: choose an empty folder, or move them away.")
    password = new_password(name)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        (staging / "group_vars" / "all").mkdir(parents=True)
        (staging / "host_vars").mkdir()
        host = f"\n    {balancer.name}:" if balancer else ""
        main, models = main_variables(user)
        (staging / _folder.NODES_FILE).write_text(
            NODES_TEXT.format(nodes=NODES, balancers=BALANCERS, clients=CLIENTS, balancer=host, models=models),
            encoding="utf-8",
        )
        if balancer and balancer.variables():
            (staging / "host_vars" / f"{balancer.name}.yml").write_text("---\n" + dump(balancer.variables()))
        (staging / "group_vars" / "all" / "main.yml").write_text(main, encoding="utf-8")
        written = ", ".join(_folder.WRITTEN)
        (staging / "ansible.cfg").write_text(
            ANSIBLE_CFG.format(password_file=shown_path(password), name=name, written=written), encoding="utf-8"
        )
        encrypt(vault_variables(), staging / "group_vars" / "all" / "vault.yml", staging / "ansible.cfg")
        (staging / ".gitignore").write_text(GITIGNORE, encoding="utf-8")
        # The file that makes it a cluster comes last.
        for item in reversed(ours):
            (staging / item).replace(folder / item)
    except BaseException:
        password.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return password
