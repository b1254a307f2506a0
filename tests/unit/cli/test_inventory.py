# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Edits of the inventory: whatever an operator may have written, only what was asked changes, or nothing does."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llm_cluster_ops import ClusterError, _inventory
from llm_cluster_ops._errors import UsageError
from llm_cluster_ops._inventory import EditRefusedError, Node

PLAIN = """\
---
# our office
llm_nodes:
  hosts:
    node1:
      llm_node_slots: 3  # small
    node2:
llm_balancers:
  hosts:
    balancer:
"""
NESTED = """\
all:
    vars: {site: "a"}
    children:
        llm_nodes:
            hosts:
                node1:
                "12": {llm_node_slots: 3}
        llm_balancers:
            hosts: {balancer: }
"""
# Names that YAML might take for numbers or truth, and plain ones.
NAMES = st.one_of(
    st.sampled_from(["12", "1e3", "0x1f", "yes", "null", "10.0.0.1", "1.5", "on", "NO", "node-1", "a.example.com"]),
    st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True),
)
VALUES = st.one_of(st.integers(-5, 99), st.booleans(), st.none(), st.sampled_from(["x", "a: b", "{{ y }}", "#", "1"]))
VARIABLES = st.dictionaries(st.sampled_from(["llm_node_slots", "ansible_host", "rack", "note"]), VALUES, max_size=2)
HOSTS = st.dictionaries(NAMES, st.none() | VARIABLES, max_size=5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nodes.yml").write_text(PLAIN)
    return tmp_path


def written(folders: pytest.TempPathFactory, text: str) -> Path:
    """A new folder with a nodes.yml; many examples of one test have one each."""
    folder = folders.mktemp("written")
    (folder / "nodes.yml").write_text(text)
    return folder


@st.composite
def inventories(draw: Any) -> tuple[str, dict[str, Any]]:
    """A nodes.yml in one of the styles that operators write, and the hosts of llm_nodes in it."""
    nodes = draw(HOSTS)
    groups: dict[str, Any] = {
        "llm_nodes": draw(st.sampled_from([{"hosts": nodes}, {"hosts": nodes, "vars": {"a": 1}}])) if nodes else None,
        "llm_balancers": {"hosts": {"balancer-x": None}},
        "others": {"vars": draw(VARIABLES), "hosts": {}},
    }
    if draw(st.booleans()):
        groups = {"all": {"vars": {"b": "2"}, "children": groups}}
    text = _inventory.dump(groups)
    if draw(st.booleans()):
        text = text.replace("hosts:", "hosts: # those we have")
    if draw(st.booleans()):
        text = "---\n# ours\n" + text
    if draw(st.booleans()):
        text = "".join(" " * (len(line) - len(line.lstrip(" "))) + line for line in text.splitlines(True))
    return text, nodes


@given(inventories(), NAMES, st.integers(1, 64))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_adding_and_removing_changes_exactly_that(
    tmp_path_factory: pytest.TempPathFactory, written_as: tuple[str, dict[str, Any]], name: str, slots: int
) -> None:
    text, nodes = written_as
    folder = written(tmp_path_factory, text)
    path = folder / "nodes.yml"
    before = _inventory.parse(path)
    if name.lower() in {host.lower() for host in before.hosts}:
        with pytest.raises(UsageError):
            _inventory.add_node(folder, Node(name, slots=slots))
        assert path.read_text() == text
        return
    _inventory.add_node(folder, Node(name, slots=slots))
    after = _inventory.parse(path)
    assert after.members("llm_nodes") == [*before.members("llm_nodes"), name]
    assert after.hosts == {**before.hosts, name: {}}
    assert {key: group.variables for key, group in after.groups.items() if group.variables} == {
        key: group.variables for key, group in before.groups.items() if group.variables
    }
    for comment in ("# ours", "# those we have"):
        assert (comment in text) == (comment in path.read_text())
    if nodes:
        _inventory.remove_node(folder, name)
        assert _inventory.same(_inventory.parse(path), before)
        assert not list((folder / "host_vars").iterdir())


@given(st.binary(max_size=60) | st.text("abc:{}[]&*- \n#'\"llm_nodeshosts", max_size=80).map(str.encode))
@example(content=b"+_")
@settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_the_file_holds_it_is_edited_rightly_or_left_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    folder = written(tmp_path_factory, "")
    path = folder / "nodes.yml"
    path.write_bytes(content)
    try:
        before = _inventory.parse(path)
        _inventory.add_node(folder, Node("fresh"))
    except ClusterError:
        assert path.read_bytes() == content
        assert [item.name for item in folder.iterdir() if not item.name.startswith(".nodes")] == ["nodes.yml"]
        return
    assert _inventory.same(_inventory.parse(path), _inventory.with_node(before, "fresh"))


def test_comments_and_the_order_of_lines_stay(folder: Path) -> None:
    _inventory.add_node(folder, Node("node3"))
    assert (folder / "nodes.yml").read_text() == PLAIN.replace("    node2:\n", "    node2:\n    node3:\n")
    assert not (folder / "host_vars").exists()


def test_a_nodes_settings_go_into_a_file_of_its_own(folder: Path) -> None:
    node = Node("node3", host="10.0.0.3", port=2222, user="ops", engine="llama_cpp", slots=8, weight=1.5, backup=True)
    _inventory.add_node(folder, node)
    assert _inventory.load((folder / "host_vars" / "node3.yml").read_text(), "") == {
        "ansible_host": "10.0.0.3",
        "ansible_port": 2222,
        "ansible_user": "ops",
        "llm_engine": "llama_cpp",
        "llm_node_slots": 8,
        "llm_node_weight": 1.5,
        "llm_node_backup": True,
    }


def test_groups_may_be_nested_and_indented_as_they_like(tmp_path: Path) -> None:
    (tmp_path / "nodes.yml").write_text(NESTED)
    _inventory.add_node(tmp_path, Node("node3"))
    assert '                "12": {llm_node_slots: 3}\n                node3:\n' in (tmp_path / "nodes.yml").read_text()
    assert _inventory.read(tmp_path).members("llm_nodes") == ["node1", "12", "node3"]


def test_what_an_edit_would_change_besides_is_noticed_and_the_lines_are_given(tmp_path: Path) -> None:
    # The alias makes the node a member of both groups.
    text = "llm_nodes:\n  hosts: &all {node1: }\nllm_balancers:\n  hosts: *all\n"
    (tmp_path / "nodes.yml").write_text(text)
    with pytest.raises(EditRefusedError, match="left as it is") as refused:
        _inventory.add_node(tmp_path, Node("node2", slots=3))
    assert (tmp_path / "nodes.yml").read_text() == text
    assert not (tmp_path / "host_vars").exists()
    assert "llm_nodes:\n  hosts:\n    node2:\n" in refused.value.lines
    assert "llm_node_slots: 3" in refused.value.lines


def test_a_node_that_another_file_names_is_not_removed_by_halves(folder: Path) -> None:
    (folder / "more.yml").write_text("llm_nodes:\n  hosts:\n    far1:\n")
    with pytest.raises(EditRefusedError, match="by hand"):
        _inventory.remove_node(folder, "far1")
    assert (folder / "nodes.yml").read_text() == PLAIN


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llm_nodes:\n  hosts: [\n", r"nodes\.yml:3: this is not YAML"),
        ("llm_nodes: 1\nllm_nodes: 2\n", r"nodes\.yml:2: this is not YAML: found duplicate key"),
        ("a:\n\tb: 1\n", r"nodes\.yml:2: this is not YAML"),
        ("- node1\n", "Ansible can't read this inventory"),
        ("llm_nodes:\n  hosts: [node1]\n", "Ansible can't read this inventory"),
    ],
)
def test_broken_files_are_named_with_the_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "nodes.yml").write_text(text)
    with pytest.raises(ClusterError, match=words):
        _inventory.add_node(tmp_path, Node("node1"))
    assert (tmp_path / "nodes.yml").read_text() == text


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (Node("no de"), "can't be a node's name"),
        (Node("node[1:3]"), "can't be a node's name"),
        (Node("-x"), "can't be a node's name"),
        (Node("../x"), "can't be a node's name"),
        (Node("n", engine="olama"), "Did you mean ollama"),
        (Node("n", engine="vllm"), "no engine"),
        (Node("n", port=0), "port is 0; it must be from 1 to 65535"),
        (Node("n", slots=0), "slots is 0"),
        (Node("n", weight=0), "weight is 0"),
        (Node("node1"), "in the inventory already"),
        (Node("NODE1"), "node1 is in the inventory already"),
        (Node("balancer"), "To make it a node too"),
    ],
)
def test_nodes_that_can_not_be_are_refused(folder: Path, node: Node, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        _inventory.add_node(folder, node)
    assert (folder / "nodes.yml").read_text() == PLAIN


def test_unknown_nodes_get_the_nearest_names(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"Did you mean node\d or node\d\?"):
        _inventory.remove_node(folder, "nod")
    with pytest.raises(UsageError, match="The nodes are node1, node2"):
        _inventory.remove_node(folder, "zzz")


def test_the_only_node_and_a_node_with_other_duties_stay(folder: Path) -> None:
    _inventory.remove_node(folder, "node1")
    with pytest.raises(UsageError, match="only node"):
        _inventory.remove_node(folder, "node2")
    (folder / "more.yml").write_text("llm_clients:\n  hosts:\n    node2:\nllm_nodes:\n  hosts:\n    far1:\n")
    with pytest.raises(UsageError, match="also in llm_clients"):
        _inventory.remove_node(folder, "node2")


def test_variables_that_an_operator_added_are_kept(folder: Path) -> None:
    (folder / "host_vars").mkdir()
    (folder / "host_vars" / "node1.yml").write_text("llm_node_slots: 3\nollama_gpu: true\n")
    kept = _inventory.remove_node(folder, "node1")
    assert kept is not None
    assert kept.read_text() == "llm_node_slots: 3\nollama_gpu: true\n"
    assert kept.suffix == ".removed"


def test_a_failed_write_leaves_the_old_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _inventory.replace

    def full(path: Path, text: str) -> None:
        if path.name == "nodes.yml":
            raise OSError(28, "No space left on device", str(path))
        real(path, text)

    monkeypatch.setattr(_inventory, "replace", full)
    with pytest.raises(OSError, match="No space"):
        _inventory.add_node(folder, Node("node3", slots=2))
    assert (folder / "nodes.yml").read_text() == PLAIN
    assert not list((folder / "host_vars").iterdir())


def test_replacing_fails_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        _inventory.replace(folder / "nodes.yml", "half")
    assert (folder / "nodes.yml").read_text() == PLAIN
    assert [item.name for item in folder.iterdir()] == ["nodes.yml"]


def test_one_edit_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_inventory, "LOCK_PATIENCE", 0.2)
    with (folder / ".nodes.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ClusterError, match="Another llm cluster command"):
            _inventory.add_node(folder, Node("node3"))
    _inventory.add_node(folder, Node("node3"))
    assert "node3" in _inventory.read(folder).members("llm_nodes")
