# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit tests of the llm_client module: its pure functions, then whole runs on a home directory in tmp_path."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.llm.cluster.plugins.modules import llm_client

BASE = "http://balancer/v1"
GEMMA: list[dict[str, Any]] = [{"model_id": "gemma3:270m", "model_name": None, "aliases": [], "can_stream": True}]
OWN = '- model_id: mine\n  model_name: mine  # my note\n  api_base: "http://elsewhere/v1"\n'


def merge(text: str, models: list[dict[str, Any]] | None = None, key_name: str = "llm-cluster") -> str:
    return llm_client.merge_models(text, "llm-cluster", models or GEMMA, BASE, key_name)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://b", "http://b/v1"),
        ("http://b/", "http://b/v1"),
        ("https://b:8443/v1", "https://b:8443/v1"),
        ("https://b/llm/v1/", "https://b/llm/v1"),
    ],
)
def test_api_base(url: str, base: str) -> None:
    assert llm_client.api_base(url) == base


def test_new_file_holds_what_llm_reads() -> None:
    assert yaml.safe_load(merge("")) == [
        {"model_id": "gemma3:270m", "model_name": "gemma3:270m", "api_base": BASE, "api_key_name": "llm-cluster"}
    ]


def test_every_key_of_a_model() -> None:
    model = {
        "model_id": 'odd "name": #1',
        "model_name": "real",
        "aliases": ["a", "b"],
        "can_stream": False,
        "supports_tools": True,
        "supports_schema": False,
        "vision": True,
    }
    assert yaml.safe_load(merge("", [model], key_name="")) == [
        {
            "model_id": 'odd "name": #1',
            "model_name": "real",
            "api_base": BASE,
            "aliases": ["a", "b"],
            "can_stream": False,
            "supports_tools": True,
            "vision": True,
        }
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]\n",
        "---\n",
        "# only a note\n",
        "# a note\n[]\n",
        OWN,
        OWN.rstrip("\n"),
        "---\n# mine\n" + OWN,
        "".join("  " + line for line in OWN.splitlines(True)),
    ],
)
def test_merging_keeps_own_entries_is_idempotent_and_can_be_undone(text: str) -> None:
    own = yaml.safe_load(text) or []
    merged = merge(text)
    assert [entry["model_id"] for entry in yaml.safe_load(merged)] == [e["model_id"] for e in own] + ["gemma3:270m"]
    assert ("# my note" in merged) == ("# my note" in text)
    assert merge(merged) == merged
    removed = llm_client.remove_models(merged, "llm-cluster")
    if removed is None:
        assert not own and "#" not in text
    else:
        assert yaml.safe_load(removed) == own
        assert merge(removed) == merged


def test_changed_models_replace_the_block_where_it_stands() -> None:
    text = merge(OWN) + "# after\n- model_id: later\n  model_name: later\n"
    changed = merge(text, [{"model_id": "qwen"}, {"model_id": "llama"}])
    assert [entry["model_id"] for entry in yaml.safe_load(changed)] == ["mine", "qwen", "llama", "later"]


def test_two_endpoints_side_by_side() -> None:
    text = llm_client.merge_models(merge(""), "llm-cluster-b", [{"model_id": "b"}], BASE, "")
    assert [entry["model_id"] for entry in yaml.safe_load(text)] == ["gemma3:270m", "b"]
    left = llm_client.remove_models(text, "llm-cluster")
    assert left is not None
    assert [entry["model_id"] for entry in yaml.safe_load(left)] == ["b"]


@pytest.mark.parametrize("text", ["[{model_id: a, model_name: b}]\n", "model_id: a\n"])
def test_files_in_another_form_are_refused(text: str) -> None:
    with pytest.raises(llm_client.ClientError, match="one '- ' line per entry"):
        merge(text)


def test_a_block_without_its_end_is_refused() -> None:
    with pytest.raises(llm_client.ClientError, match=r"END llm\.cluster llm-cluster"):
        merge("# BEGIN llm.cluster llm-cluster\n" + OWN)


def test_removing_from_a_file_without_a_block_changes_nothing() -> None:
    assert llm_client.remove_models(OWN, "llm-cluster") == OWN


def test_keys_are_merged() -> None:
    text = llm_client.merge_key('{"openai": "sk-1"}', "llm-cluster", "secret")
    assert text is not None
    assert json.loads(text) == {"openai": "sk-1", "llm-cluster": "secret"}
    assert llm_client.merge_key(text, "llm-cluster", "secret") == text
    removed = llm_client.remove_key(text, "llm-cluster")
    assert removed is not None
    assert json.loads(removed) == {"openai": "sk-1"}


def test_a_key_store_of_ours_alone_goes_with_the_key() -> None:
    text = llm_client.merge_key(None, "llm-cluster", "secret")
    assert text is not None
    assert list(json.loads(text)) == ["// Note", "llm-cluster"]
    assert llm_client.remove_key(text, "llm-cluster") is None


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_broken_key_store_is_refused(text: str) -> None:
    with pytest.raises(llm_client.ClientError, match="repair or remove it"):
        llm_client.merge_key(text, "llm-cluster", "secret")


def test_diff_of_keys_shows_names_and_changes_only() -> None:
    change = llm_client.Change(
        "/x/keys.json", '{"openai": "sk-1", "n": "old"}', '{"openai": "sk-1", "n": "new"}', 0o600
    )
    diff = change.diff()
    assert diff["before"] == "openai: (hidden)\nn: (hidden)\n"
    assert diff["after"] == "openai: (hidden)\nn: (hidden, another value)\n"


# --- whole runs ---


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mine = list(pwd.getpwuid(os.geteuid()))
    mine[5] = str(tmp_path)
    account = pwd.struct_passwd(mine)

    def getpwnam(name: str) -> pwd.struct_passwd:
        if name != "ada":
            raise KeyError(name)
        return account

    monkeypatch.setattr(llm_client.pwd, "getpwnam", getpwnam)
    return tmp_path


def params(**changes: Any) -> dict[str, Any]:
    return {
        "users": ["ada"],
        "state": "present",
        "name": "llm-cluster",
        "endpoint_url": "http://balancer",
        "models": GEMMA,
        "key_name": "llm-cluster",
        "api_key": "secret",
        "default_model": "",
        **changes,
    }


def directory(home: Path) -> Path:
    return home / ".config" / "io.datasette.llm"


def contents(home: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(directory(home).glob("*"))}


def test_check_then_apply_then_nothing_left_to_do(home: Path) -> None:
    predicted = llm_client.set_up(params(default_model="gemma3:270m"), check_mode=True)
    assert predicted["changed"]
    assert not (home / ".config").exists()

    applied = llm_client.set_up(params(default_model="gemma3:270m"), check_mode=False)
    assert applied == predicted
    assert sorted(contents(home)) == ["default_model.txt", "extra-openai-models.yaml", "keys.json"]
    assert (directory(home) / "keys.json").stat().st_mode & 0o777 == 0o600
    assert json.loads(contents(home)["keys.json"])["llm-cluster"] == "secret"
    assert "secret" not in json.dumps(applied)

    for check_mode in (False, True):
        again = llm_client.set_up(params(default_model="gemma3:270m"), check_mode=check_mode)
        assert not again["changed"]
        assert again["diff"] == []


def test_absent_takes_out_only_ours(home: Path) -> None:
    directory(home).mkdir(parents=True)
    (directory(home) / "extra-openai-models.yaml").write_text(OWN)
    (directory(home) / "keys.json").write_text('{"openai": "sk-1"}')
    (directory(home) / "default_model.txt").write_text("mine")
    before = contents(home)
    llm_client.set_up(params(), check_mode=False)
    assert contents(home) != before

    result = llm_client.set_up(params(state="absent", endpoint_url=None, models=[]), check_mode=False)
    assert result["changed"]
    after = contents(home)
    assert json.loads(after.pop("keys.json")) == json.loads(before.pop("keys.json"))
    assert after == before
    assert not llm_client.set_up(params(state="absent"), check_mode=False)["changed"]


def test_absent_after_present_alone_leaves_no_file(home: Path) -> None:
    llm_client.set_up(params(default_model="gemma3:270m"), check_mode=False)
    llm_client.set_up(params(state="absent"), check_mode=False)
    assert contents(home) == {}


def test_without_a_key_the_store_is_left_alone(home: Path) -> None:
    llm_client.set_up(params(api_key=""), check_mode=False)
    assert list(contents(home)) == ["extra-openai-models.yaml"]
    assert "api_key_name" in contents(home)["extra-openai-models.yaml"]


def test_a_key_store_others_can_read_is_closed(home: Path) -> None:
    llm_client.set_up(params(), check_mode=False)
    (directory(home) / "keys.json").chmod(0o644)
    result = llm_client.set_up(params(), check_mode=False)
    assert result["files"] == [str(directory(home) / "keys.json")]
    assert "mode: 0600" in result["diff"][0]["after"]
    assert (directory(home) / "keys.json").stat().st_mode & 0o777 == 0o600


def test_a_link_stays_a_link(home: Path) -> None:
    dotfiles = home / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "models.yaml").write_text(OWN)
    directory(home).mkdir(parents=True)
    (directory(home) / "extra-openai-models.yaml").symlink_to(dotfiles / "models.yaml")
    llm_client.set_up(params(), check_mode=False)
    assert (directory(home) / "extra-openai-models.yaml").is_symlink()
    assert "gemma3:270m" in (dotfiles / "models.yaml").read_text()


def test_an_own_entry_for_the_same_model_is_warned_about(home: Path) -> None:
    directory(home).mkdir(parents=True)
    (directory(home) / "extra-openai-models.yaml").write_text(OWN.replace("mine", "gemma3:270m"))
    assert "another entry for gemma3:270m" in llm_client.set_up(params(), check_mode=True)["warnings"][0]


def test_nothing_is_written_when_one_user_is_unknown(home: Path) -> None:
    with pytest.raises(llm_client.ClientError, match="no user 'bob'"):
        llm_client.set_up(params(users=["ada", "bob"]), check_mode=False)
    assert not (home / ".config").exists()


@pytest.mark.parametrize(("left", "why"), [("nothing", "no user 'bob'"), ("account", "'bob' has no home directory")])
def test_absent_passes_over_users_who_are_gone(
    home: Path, monkeypatch: pytest.MonkeyPatch, left: str, why: str
) -> None:
    llm_client.set_up(params(), check_mode=False)
    known = llm_client.pwd.getpwnam

    def getpwnam(name: str) -> pwd.struct_passwd:
        if name != "bob" or left == "nothing":
            account: pwd.struct_passwd = known(name)
            return account
        return pwd.struct_passwd(["bob", "x", os.geteuid(), os.getegid(), "", str(home / "gone"), "/bin/sh"])

    monkeypatch.setattr(llm_client.pwd, "getpwnam", getpwnam)
    result = llm_client.set_up(params(users=["bob", "ada"], state="absent"), check_mode=False)
    assert contents(home) == {}
    assert list(result["directories"]) == [pwd.getpwuid(os.geteuid()).pw_name]
    assert [why in warning for warning in result["warnings"]] == [True]


def test_a_broken_file_is_named(home: Path) -> None:
    directory(home).mkdir(parents=True)
    (directory(home) / "keys.json").write_text("{")
    with pytest.raises(llm_client.ClientError, match=r"io\.datasette\.llm/keys\.json: it is not valid JSON"):
        llm_client.set_up(params(), check_mode=False)
