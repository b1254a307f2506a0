# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts, labels and folders as users write them."""

from __future__ import annotations

import configparser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from llm_cluster_ops import Cluster, _create, _folder, _inventory, _models, _use
from llm_cluster_ops._errors import ClusterError, UsageError
from llm_cluster_ops.cluster import parse_host, parse_labels

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "settings", "name", "variables"),
    [
        ("node1", {}, "node1", {}),
        ("192.0.2.1:2222", {}, "192.0.2.1", {"ansible_port": 2222}),
        ("192.0.2.1", {"name": "n"}, "n", {"ansible_host": "192.0.2.1"}),
        ("[2001:db8::1]:22", {"name": "n"}, "n", {"ansible_host": "2001:db8::1", "ansible_port": 22}),
        ("2001:db8::1", {"name": "n", "user": "ops"}, "n", {"ansible_host": "2001:db8::1", "ansible_user": "ops"}),
        ("n", {"backup": True, "weight": 2}, "n", {"llm_node_backup": True, "llm_node_weight": 2}),
    ],
)
def test_hosts(text: str, settings: dict[str, Any], name: str, variables: dict[str, Any]) -> None:
    node = parse_host(text, **settings)
    assert node.name == name
    assert node.variables() == variables


@pytest.mark.parametrize("text", ["2001:db8::1", "h:", "h:0", "h:70000", "h:x", "[::1", "[::1]22", "", "a b"])
def test_hosts_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_host(text)


def test_labels() -> None:
    wanted = {"rack": "b", "gpus": 2, "speed": 1.5, "fast": True, "zone": "on", "sizes": [1, "x"], "hex": "0x1f"}
    pairs = ["rack=b", "gpus=2", "speed=1.5", "fast=true", "zone=on", "sizes=1,x", "hex=0x1f"]
    assert parse_labels(pairs) == wanted


@pytest.mark.parametrize("pairs", [["rack"], ["=b"], ["rack="], ["a-b=c"], ["a=1", "a=2"]])
def test_labels_that_are_none(pairs: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_labels(pairs)


def test_folders_are_found_from_below_or_by_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "office" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "office" / "nodes.yml").write_text("llm_nodes:\n")
    monkeypatch.delenv("LLM_CLUSTER_DIR", raising=False)
    monkeypatch.chdir(tmp_path / "office" / "deep" / "er")
    assert _folder.find() == tmp_path / "office"
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match="llm cluster init"):
        _folder.find()
    monkeypatch.setenv("LLM_CLUSTER_DIR", str(tmp_path / "office"))
    assert Cluster().name == "office"
    with pytest.raises(UsageError, match="--dir says"):
        _folder.find(tmp_path)


def test_new_folders_have_the_checkouts_settings_of_ansible() -> None:
    def settings(text: str) -> dict[str, dict[str, str]]:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(text)
        return {name: dict(parser[name]) for name in ("defaults", "ssh_connection")}

    made = settings(_create.ANSIBLE_CFG.format(password_file="x", name="n", written="w"))
    assert made["defaults"]["inventory_ignore_patterns"] == "w"
    for own in ("inventory", "inventory_ignore_patterns", "vault_password_file"):
        del made["defaults"][own]
    checkout = settings((ROOT / "ansible.cfg").read_text())
    del checkout["defaults"]["collections_path"]
    assert made == checkout


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "[defaults]\nforks = 5\ninventory_ignore_patterns = ^old\\.yml$\n",
        "[inventory]\nignore_patterns = ^old\\.yml$\n",
    ],
)
def test_what_playbooks_write_is_no_inventory_whatever_the_operators_ansible_cfg_says(
    tmp_path: Path, settings: str
) -> None:
    (tmp_path / "nodes.yml").write_text("llm_nodes:\n  hosts:\n    node1:\nall:\n  vars:\n    a: 1\n")
    (tmp_path / "hosts.ini").write_text("[llm_balancers]\nbalancer\n")
    (tmp_path / "old.yml").write_text("llm_nodes:\n  hosts:\n    node9:\n")
    (tmp_path / "models.lock.yml").write_text("models:\n  hosts:\n    gemma3:4b:\n")
    (tmp_path / "result.json").write_text('{"models": {"hosts": {"other": {}}}}')
    if settings:
        (tmp_path / "ansible.cfg").write_text(settings)
    nodes = ["node1"] if settings else ["node1", "node9"]
    assert _inventory.read(tmp_path).members("llm_nodes") == nodes
    assert sorted(_inventory.read(tmp_path).hosts) == sorted(["balancer", *nodes])
    assert sorted(_models.host_variables(tmp_path)) == sorted(["balancer", *nodes])


def test_a_program_that_knows_the_vaults_password_gets_what_it_needs_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    needed = {"GNUPGHOME": "/g", "PASSWORD_STORE_DIR": "/p", "VAULT_ADDR": "https://v", "HTTPS_PROXY": "http://p"}
    for name, value in {**needed, "OPENAI_API_KEY": "secret", "VAULT_TOKEN": "secret"}.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "office"
    folder.mkdir()
    (folder / "nodes.yml").write_text("llm_nodes: {hosts: {node1: {ansible_connection: local}}}\n")
    (folder / "ansible.cfg").write_text("[defaults]\nvault_password_file = password.sh\n")
    (folder / "password.sh").write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho password\n")
    (folder / "password.sh").chmod(0o755)
    (tmp_path / "nothing.yml").write_text("- name: Nothing\n  hosts: llm_nodes\n  gather_facts: false\n")

    def seen() -> dict[str, str]:
        found = dict(line.partition("=")[::2] for line in (tmp_path / "seen").read_text().splitlines())
        (tmp_path / "seen").unlink()
        return found

    _models.host_variables(folder)
    load = seen()
    Cluster(folder).play(tmp_path / "nothing.yml", "nothing")
    for environment in (load, seen()):
        assert environment.items() >= needed.items()
        assert "secret" not in environment.values()


def test_from_a_checkout_the_checkouts_collection_runs() -> None:
    assert _folder.collections_path() == ROOT / "collections"
    assert (_folder.collection() / "galaxy.yml").samefile(ROOT / "galaxy.yml")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("", "no password for it is set"),
        ("[defaults]\nvault_password_file = gone\n", "is not here: gone"),
        ("[defaults]\nvault_password_file = there\n", ""),
        ("[defaults]\nvault_identity_list = a@b\n", ""),
    ],
)
def test_vaults_need_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, problem: str) -> None:
    for name in ("ANSIBLE_VAULT_PASSWORD_FILE", "ANSIBLE_VAULT_IDENTITY_LIST"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "there").write_text("x")
    (tmp_path / "ansible.cfg").write_text(settings)
    _folder.check_vault(tmp_path)  # nothing is encrypted
    (tmp_path / "group_vars" / "all.yml").write_text("$ANSIBLE_VAULT;1.1;AES256\n00\n")
    if problem:
        with pytest.raises(ClusterError, match=problem):
            _folder.check_vault(tmp_path)
    else:
        _folder.check_vault(tmp_path)


def test_certificates_that_are_trusted_anyway_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    (tmp_path / "own.pem").write_text("own\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
    bundle = _use.trust("office", "theirs\n")
    assert bundle is not None
    assert bundle.read_text() == "own\n# office\ntheirs\n"
    # Now it is what SSL_CERT_FILE names, as it was said; it is not put into itself.
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setattr(_use, "CERTIFICATES", (str(tmp_path / "own.pem"),))
    monkeypatch.setattr("ssl.get_default_verify_paths", lambda: SimpleNamespace(openssl_cafile="/nowhere"))
    assert _use.trust("office", "new\n") == bundle
    assert bundle.read_text() == "own\n# office\nnew\n"
    assert _use.trust("office", "") is None
    assert not bundle.exists()
