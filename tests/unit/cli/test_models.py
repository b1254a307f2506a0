# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One model more in nodes.yml: exactly that, or nothing and the lines to write by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from llm_cluster_ops import _create, _inventory, _models
from llm_cluster_ops._errors import UsageError
from llm_cluster_ops._inventory import EditRefusedError
from llm_cluster_ops._models import NewModel

from .test_inventory import NAMES, inventories, written

DIGEST = "a" * 64
FULL = f"sha256:{DIGEST}"


@given(inventories(), NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_adding_changes_exactly_that(
    tmp_path_factory: pytest.TempPathFactory, written_as: tuple[str, dict[str, Any]], name: str
) -> None:
    text, _nodes = written_as
    folder = written(tmp_path_factory, text)
    before = _inventory.parse(folder / "nodes.yml")
    source = {"url": "https://x/y.gguf"}
    for entry in ({"name": name}, {"name": "b", "source": source}):
        _models.add_model(folder, entry)
    after = _inventory.parse(folder / "nodes.yml")
    assert after.groups["all"].variables.pop("llm_models") == [{"name": name}, {"name": "b", "source": source}]
    assert _inventory.same(after, before)
    for comment in ("# ours", "# those we have"):
        assert (comment in text) == (comment in (folder / "nodes.yml").read_text())


def test_comments_of_the_models_that_are_there_stay(tmp_path: Path) -> None:
    main, models = _create.main_variables("ops")
    assert "llm_models:" not in main
    text = _create.NODES_TEXT.format(nodes="llm_nodes", balancers="b", clients="c", balancer="", models=models)
    (tmp_path / "nodes.yml").write_text(text)
    _models.add_model(tmp_path, {"name": "qwen3:8b"})
    new = (tmp_path / "nodes.yml").read_text()
    assert new == text.replace("llm_nodes:\n  hosts", "      - name: qwen3:8b\nllm_nodes:\n  hosts", 1)


def test_a_list_of_the_nodes_own_is_extended_there(tmp_path: Path) -> None:
    (tmp_path / "nodes.yml").write_text("llm_nodes:\n  vars:\n    llm_models: [{name: a}]\n  hosts:\n    node1:\n")
    _models.add_model(tmp_path, {"name": "b"})
    found = _inventory.parse(tmp_path / "nodes.yml")
    assert found.groups["llm_nodes"].variables["llm_models"] == [{"name": "a"}, {"name": "b"}]
    assert "all" not in (tmp_path / "nodes.yml").read_text()


@pytest.mark.parametrize(
    "text",
    [
        'all:\n  vars:\n    llm_models: "{{ ours }}"\nllm_nodes:\n  hosts:\n    node1:\n',
        "all:\n  vars: &shared\n    llm_models: [{name: a}]\nllm_nodes:\n  vars: *shared\n  hosts:\n    node1:\n",
        "# nothing yet\n",
    ],
)
def test_what_can_not_be_edited_safely_is_left_with_the_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "nodes.yml").write_text(text)
    with pytest.raises(EditRefusedError, match="left as it is") as refused:
        _models.add_model(tmp_path, {"name": "b", "source": {"url": "https://x"}})
    assert (tmp_path / "nodes.yml").read_text() == text
    assert refused.value.lines == "llm_models:\n  - name: b\n    source:\n      url: https://x\n"


@pytest.mark.parametrize(
    ("model", "entry"),
    [
        (NewModel("qwen3:8b"), {"name": "qwen3:8b"}),
        (NewModel("hf.co/a/b:Q4_K_M"), {"name": "hf.co/a/b:Q4_K_M"}),
        (
            NewModel("a", "https://x/y.gguf", DIGEST),
            {"source": {"url": "https://x/y.gguf"}, "digest": FULL},
        ),
        (NewModel("a", "FOLDER/files/a.gguf"), {"source": {"file": "{{ inventory_dir }}/files/a.gguf"}}),
        (NewModel("a", "FOLDER/../other.gguf"), {"source": {"file": "PARENT/other.gguf"}}),
        (
            NewModel("a", "qwen3:8b", FULL),
            {"source": {"registry": "qwen3:8b"}, "digest": FULL},
        ),
    ],
)
def test_entries(tmp_path: Path, model: NewModel, entry: dict[str, Any]) -> None:
    folder = tmp_path / "office"
    (folder / "files").mkdir(parents=True)
    for file in (folder / "files" / "a.gguf", tmp_path / "other.gguf"):
        file.write_text("GGUF")
    source = model.source.replace("FOLDER", str(folder)) if model.source else None
    made = NewModel(model.name, source, model.digest).entry(folder)
    assert str(made).replace(str(tmp_path), "PARENT") == str({"name": model.name, **entry})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (NewModel("a b"), "can't be a model's name"),
        (NewModel("{{ x }}"), "can't be a model's name"),
        (NewModel("a", "./gone"), "There is no file"),
        (NewModel("a", "gone.gguf"), "There is no file"),
        (NewModel("a", "{{ x }}"), "take it for a template"),
        (NewModel("a", "ftp://x y"), "is no source"),
        (NewModel("a", None, "sha256:123"), "is no digest"),
    ],
)
def test_models_that_can_not_be(tmp_path: Path, model: NewModel, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        model.entry(tmp_path)


def test_unknown_models_get_the_nearest_names_and_the_ways_to_add_them() -> None:
    said = str(_models.unknown("gema3", ["gemma3:4b"]))
    assert "Did you mean gemma3:4b?" in said
    assert "llm cluster load gema3 --add" in said


@pytest.mark.parametrize(
    ("hosts", "names"),
    [
        ({"n1": {"llm_models": [{"name": "a"}]}, "n2": {"llm_models": [{"name": "b"}, {"name": "a"}]}}, ["a", "b"]),
        ({"n1": {}}, []),
        ({"n1": {"llm_models": "{{ ours }}"}}, None),
        ({"n1": {"llm_models": ["{{ one }}"]}}, None),
    ],
)
def test_the_models_there_are(hosts: dict[str, Any], names: list[str] | None) -> None:
    assert _models.known(hosts, ["n1", "n2"]) == names


def test_who_sets_the_list_is_named(tmp_path: Path) -> None:
    for name in ("nodes.yml", "more.yml", ".new-x.yml", "group_vars/all/main.yml", "group_vars/all/other.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# llm_models: here\n" if "other" in name else "llm_models:\n  - name: a\n")
    assert _models.setters(tmp_path) == ["group_vars/all/main.yml", "more.yml"]
