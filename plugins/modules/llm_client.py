#!/usr/bin/python
# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: llm_client
short_description: Set up users' llm command line for an OpenAI-compatible endpoint
description:
  - Makes the models of an endpoint known to simonw's C(llm) for the given users, with the endpoint's key.
  - Only its own part of the files is managed. In C(extra-openai-models.yaml) that is a block between two marker
    comments, in C(keys.json) one name. What users have put there themselves stays as it is.
  - Files are read and written with the rights of the user they belong to.
author:
  - llm.cluster contributors (@llm-cluster)
options:
  users:
    description:
      - Names of the users. Each needs a home directory.
      - With O(state=absent) a user without one, or who is not on the host any more, is passed over with a warning.
    type: list
    elements: str
    required: true
  state:
    description:
      - V(present) sets up the endpoint.
      - V(absent) takes out what this module put in under the same O(name).
    type: str
    choices: [present, absent]
    default: present
  name:
    description: Name of the endpoint. It marks the managed block, so that several endpoints can stand side by side.
    type: str
    default: llm-cluster
  endpoint_url:
    description:
      - Address of the endpoint, with or without C(/v1).
      - Required when O(state=present).
    type: str
  models:
    description: Models to make known. At least one is required when O(state=present).
    type: list
    elements: dict
    default: []
    suboptions:
      model_id:
        description: What users give to C(llm -m).
        type: str
        required: true
      model_name:
        description: The model's name at the endpoint. The same as O(models[].model_id) when not given.
        type: str
      aliases:
        description: Further names for C(llm -m).
        type: list
        elements: str
        default: []
      can_stream:
        description: Whether answers can be streamed.
        type: bool
        default: true
      supports_tools:
        description: Whether the model can call tools.
        type: bool
        default: false
      supports_schema:
        description: Whether the model can answer to a JSON schema.
        type: bool
        default: false
      vision:
        description: Whether the model takes images.
        type: bool
        default: false
      audio:
        description: Whether the model takes sound.
        type: bool
        default: false
      reasoning:
        description: Whether the model takes options for reasoning.
        type: bool
        default: false
      completion:
        description: Whether the model is asked through C(/v1/completions), as base models are.
        type: bool
        default: false
  key_name:
    description:
      - Name of the key in C(llm)'s key store, which C(llm keys) lists. Empty for an endpoint without keys.
      - With O(state=absent) this name is taken out of the key store.
    type: str
    default: llm-cluster
  api_key:
    description: The key. Empty leaves the key store alone, for users who run C(llm keys set) themselves.
    type: str
    default: ""
  default_model:
    description: Model that C(llm) uses when none is named. Empty leaves the user's choice alone.
    type: str
    default: ""
attributes:
  check_mode:
    description: Can run in check mode and say what would change.
    support: full
  diff_mode:
    description: Shows the changed files; keys are hidden.
    support: full
"""

EXAMPLES = r"""
- name: Set up llm for the operators
  llm.cluster.llm_client:
    users: [root, ada]
    endpoint_url: http://balancer.example.com
    models:
      - model_id: gemma3:270m
    api_key: "{{ vault_llm_key }}"

- name: Take the endpoint out again
  llm.cluster.llm_client:
    users: [root, ada]
    state: absent
"""

RETURN = r"""
files:
  description: The files that were changed, or would be in check mode.
  returned: always
  type: list
  elements: str
  sample: [/root/.config/io.datasette.llm/keys.json]
directories:
  description: Each user's directory of C(llm) settings.
  returned: always
  type: dict
  sample: {root: /root/.config/io.datasette.llm}
"""

import contextlib
import json
import os
import pwd
import re
import tempfile
from typing import Any, Callable, Iterator

from ansible.module_utils.basic import AnsibleModule

MODELS_FILE = "extra-openai-models.yaml"
KEYS_FILE = "keys.json"
DEFAULT_MODEL_FILE = "default_model.txt"
# What llm itself writes into a new key store.
KEYS_NOTE = {"// Note": "This file stores secret API credentials. Do not share!"}
FLAGS = ("supports_tools", "supports_schema", "vision", "audio", "reasoning", "completion")


class ClientError(Exception):
    """A user's file or account that cannot be worked with; the message says what to do."""


class NoAccountError(ClientError):
    """A user who is not on the host, or has no home directory there."""


# --- the models file: pure functions on its text ---


def api_base(endpoint_url: str) -> str:
    """The address llm wants: the endpoint's, ending in /v1."""
    url = endpoint_url.rstrip("/")
    return url if url.endswith("/v1") else url + "/v1"


def render_models(name: str, models: list[dict[str, Any]], base: str, key_name: str, indent: str = "") -> str:
    """Our block of the models file. Values are written as JSON, which is YAML that needs no escaping rules."""
    lines = [f"# BEGIN llm.cluster {name} (managed by Ansible)"]
    for model in models:
        entry: dict[str, Any] = {
            "model_id": model["model_id"],
            "model_name": model.get("model_name") or model["model_id"],
            "api_base": base,
        }
        if key_name:
            entry["api_key_name"] = key_name
        if model.get("aliases"):
            entry["aliases"] = model["aliases"]
        if model.get("can_stream") is False:
            entry["can_stream"] = False
        entry.update((flag, True) for flag in FLAGS if model.get(flag))
        for number, (key, value) in enumerate(entry.items()):
            lines.append(("- " if number == 0 else "  ") + f"{key}: {json.dumps(value)}")
    lines.append(f"# END llm.cluster {name}")
    return "".join(f"{indent}{line}\n" for line in lines)


def split_models(text: str, name: str) -> tuple[str, str, str]:
    """What stands before our block, the block, and what stands after it."""
    mark = re.escape(name)
    begin = re.compile(rf"^[ \t]*# BEGIN llm\.cluster {mark}(?: .*)?\n", re.MULTILINE)
    end = re.compile(rf"^[ \t]*# END llm\.cluster {mark}[ \t]*(?:\n|\Z)", re.MULTILINE)
    first = begin.search(text)
    if not first:
        return text, "", ""
    last = end.search(text, first.end())
    if not last:
        raise ClientError(f"the line '# END llm.cluster {name}' is missing: restore it, or remove the block")
    return text[: first.start()], text[first.start() : last.end()], text[last.end() :]


def is_bare(text: str) -> bool:
    """Whether a models file holds nothing: no entry, no comment."""
    return all(line.strip() in ("", "---", "[]", "null", "~") for line in text.splitlines())


def has_entries(text: str) -> bool:
    """Whether a models file holds anything but comments."""
    return not is_bare("".join(line for line in text.splitlines(True) if not line.lstrip().startswith("#")))


def list_indent(text: str) -> str:
    """The indentation of a user's own entries, which ours must share to be in the same list."""
    for line in text.splitlines():
        if line.strip() in ("", "---") or line.lstrip().startswith("#"):
            continue
        match = re.match(r"^( *)-(?: |$)", line)
        if not match:
            raise ClientError("it is not a list with one '- ' line per entry: bring it into that form")
        return match.group(1)
    return ""


def without_empty_list(text: str) -> str:
    """Drop an empty flow list (`[]`), which could not be continued by entries."""
    return "".join(line for line in text.splitlines(True) if line.strip() not in ("[]", "null", "~"))


def merge_models(text: str, name: str, block: list[dict[str, Any]], base: str, key_name: str) -> str:
    """The models file with our block put in or brought up to date."""
    before, ours, after = split_models(text, name)
    if not has_entries(before + after):
        before, after = without_empty_list(before), without_empty_list(after)
    rendered = render_models(name, block, base, key_name, list_indent(before + after))
    if not ours and before and not before.endswith("\n"):
        before += "\n"
    return before + rendered + after


def remove_models(text: str, name: str) -> str | None:
    """The models file without our block. None: nothing is left, so the file should go (llm fails on an empty one)."""
    before, ours, after = split_models(text, name)
    if not ours:
        return text
    rest = before + after
    if is_bare(rest):
        return None
    return rest if has_entries(rest) else without_empty_list(rest).rstrip("\n") + "\n[]\n"


def model_ids(text: str) -> list[str]:
    """Model ids in a piece of a models file, as far as they are plain or quoted scalars."""
    found = re.findall(r"^[ \t]*(?:- +)?model_id:[ \t]*(.+?)[ \t]*$", text, re.MULTILINE)
    return [value.strip("\"'") for value in found]


# --- the key store ---


def parse_keys(text: str | None) -> dict[str, Any]:
    """The key store's content; a new one if there is none."""
    if text is None or not text.strip():
        return dict(KEYS_NOTE)
    try:
        keys = json.loads(text)
    except ValueError as error:
        raise ClientError(f"it is not valid JSON ({error}): repair or remove it") from error
    if not isinstance(keys, dict):
        raise ClientError("it is not a JSON object: repair or remove it")
    return keys


def merge_key(text: str | None, key_name: str, api_key: str) -> str | None:
    """The key store with our key; the text as it was when the key is already there."""
    keys = parse_keys(text)
    if keys.get(key_name) == api_key:
        return text
    keys[key_name] = api_key
    return json.dumps(keys, indent=2) + "\n"


def remove_key(text: str | None, key_name: str) -> str | None:
    """The key store without our key. None: no key is left, so the file should go."""
    if text is None:
        return None
    keys = parse_keys(text)
    if key_name not in keys:
        return text
    del keys[key_name]
    if set(keys) <= set(KEYS_NOTE):
        return None
    return json.dumps(keys, indent=2) + "\n"


def hide_keys(text: str | None, other: str | None) -> str:
    """The key store for a diff: names only, with a mark on those whose value differs from the other side's."""
    if text is None:
        return ""
    keys, others = parse_keys(text), parse_keys(other)
    lines = []
    for key in keys:
        if key in KEYS_NOTE:
            continue
        changed = other is not None and key in others and others[key] != keys[key]
        lines.append(f"{key}: " + ("(hidden, another value)" if changed else "(hidden)") + "\n")
    return "".join(lines)


# --- files, as their owner ---


class Change:
    """One file: what is in it and what should be. None stands for a file that is not there."""

    def __init__(self, path: str, before: str | None, after: str | None, mode: int, fix_mode: bool = False) -> None:
        self.path = path
        self.before = before
        self.after = after
        self.mode = mode
        self.fix_mode = fix_mode
        self.secret = os.path.basename(path) == KEYS_FILE

    @property
    def needed(self) -> bool:
        return self.before != self.after or self.fix_mode

    def diff(self) -> dict[str, str]:
        before, after = self.before or "", self.after or ""
        if self.secret:
            before, after = hide_keys(self.before, None), hide_keys(self.after, self.before)
        if self.fix_mode:
            before, after = before + "# mode: too open\n", after + f"# mode: {self.mode:04o}\n"
        return {"before_header": self.path, "after_header": self.path, "before": before, "after": after}


def read_text(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(f"{path} cannot be read: {error}") from error


def write_text(path: str, text: str, mode: int) -> None:
    """Replace a file at once; a link is followed, so that one into a dotfiles repository stays a link."""
    target = os.path.realpath(path)
    handle, temporary = tempfile.mkstemp(prefix=".llm-cluster-", dir=os.path.dirname(target))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def apply_change(change: Change) -> None:
    try:
        if change.after is None:
            os.unlink(change.path)
            return
        os.makedirs(os.path.dirname(change.path), mode=0o700, exist_ok=True)
        write_text(change.path, change.after, change.mode)
    except OSError as error:
        raise ClientError(f"{change.path} cannot be written: {error}") from error


def find_user(name: str) -> pwd.struct_passwd:
    try:
        account = pwd.getpwnam(name)
    except KeyError as error:
        raise NoAccountError(
            f"there is no user {name!r} on this host: create it, or take it out of the list"
        ) from error
    if not os.path.isdir(account.pw_dir):
        raise NoAccountError(f"user {name!r} has no home directory ({account.pw_dir}), where llm keeps its settings")
    return account


@contextlib.contextmanager
def acting_as(account: pwd.struct_passwd) -> Iterator[None]:
    """Take on the user's rights: files get the right owner, and no link of theirs can lead us astray."""
    if os.geteuid() == account.pw_uid:
        yield
        return
    if os.geteuid() != 0:
        raise ClientError(f"setting up user {account.pw_name!r} takes root: run the task with become")
    groups, group = os.getgroups(), os.getegid()
    try:
        os.setgroups([])
        os.initgroups(account.pw_name, account.pw_gid)
        os.setegid(account.pw_gid)
        os.seteuid(account.pw_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def plan_file(path: str, mode: int, edit: Callable[[str | None], str | None], close: bool = False) -> Change:
    """What `edit` makes of a file's text; with `close`, a file that others can read is a change too."""
    before = read_text(path)
    try:
        after = edit(before)
    except ClientError as error:
        raise ClientError(f"{path}: {error}") from error
    if before is None:
        return Change(path, before, after, mode)
    current = os.stat(path).st_mode & 0o777
    if close:
        return Change(path, before, after, mode, fix_mode=bool(current & 0o077))
    return Change(path, before, after, current)


def user_directory(home: str) -> str:
    return os.path.join(home, ".config", "io.datasette.llm")


def plan_user(home: str, params: dict[str, Any]) -> tuple[list[Change], list[str]]:
    """The changes one user's files need, and warnings."""
    directory = user_directory(home)
    paths = {name: os.path.join(directory, name) for name in (MODELS_FILE, KEYS_FILE, DEFAULT_MODEL_FILE)}
    name, key_name = params["name"], params["key_name"]
    changes: list[Change] = []
    warnings: list[str] = []

    if params["state"] == "absent":
        ours = model_ids(split_models(read_text(paths[MODELS_FILE]) or "", name)[1])
        changes.append(plan_file(paths[MODELS_FILE], 0o644, lambda text: text and remove_models(text, name)))
        if key_name:
            changes.append(plan_file(paths[KEYS_FILE], 0o600, lambda text: remove_key(text, key_name)))
        changes.append(
            plan_file(paths[DEFAULT_MODEL_FILE], 0o644, lambda text: None if (text or "").strip() in ours else text)
        )
        return changes, warnings

    base = api_base(params["endpoint_url"])
    models = plan_file(
        paths[MODELS_FILE], 0o644, lambda text: merge_models(text or "", name, params["models"], base, key_name)
    )
    changes.append(models)
    before, _ours, after = split_models(models.after or "", name)
    taken = sorted(set(model_ids(before + after)) & {model["model_id"] for model in params["models"]})
    if taken:
        warnings.append(f"{models.path} has another entry for {', '.join(taken)}; llm uses the last one in the file")
    if key_name and params["api_key"]:
        changes.append(
            plan_file(paths[KEYS_FILE], 0o600, lambda text: merge_key(text, key_name, params["api_key"]), close=True)
        )
    if params["default_model"]:
        wanted = params["default_model"]
        changes.append(
            plan_file(paths[DEFAULT_MODEL_FILE], 0o644, lambda text: text if (text or "").strip() == wanted else wanted)
        )
    return changes, warnings


def set_up(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Plan every user's changes before the first is made, then make them."""
    planned, warnings = [], []
    for name in dict.fromkeys(params["users"]):
        try:
            account = find_user(name)
        except NoAccountError as error:
            if params["state"] == "present":
                raise
            # Nothing of ours is left where the account is gone; a host must stay removable.
            warnings.append(f"passed over: {error}")
            continue
        with acting_as(account):
            changes, remarks = plan_user(account.pw_dir, params)
        planned.append((account, [change for change in changes if change.needed]))
        warnings += remarks
    if not check_mode:
        for account, changes in planned:
            with acting_as(account):
                for change in changes:
                    apply_change(change)
    needed = [change for _account, changes in planned for change in changes]
    return {
        "changed": bool(needed),
        "files": [change.path for change in needed],
        "directories": {account.pw_name: user_directory(account.pw_dir) for account, _changes in planned},
        "diff": [change.diff() for change in needed],
        "warnings": warnings,
    }


def main() -> None:
    flags = {flag: {"type": "bool", "default": False} for flag in FLAGS}
    module = AnsibleModule(
        argument_spec={
            "users": {"type": "list", "elements": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str", "default": "llm-cluster"},
            "endpoint_url": {"type": "str"},
            "models": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "model_id": {"type": "str", "required": True},
                    "model_name": {"type": "str"},
                    "aliases": {"type": "list", "elements": "str", "default": []},
                    "can_stream": {"type": "bool", "default": True},
                    **flags,
                },
            },
            "key_name": {"type": "str", "default": "llm-cluster", "no_log": False},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "default_model": {"type": "str", "default": ""},
        },
        required_if=[("state", "present", ("endpoint_url",))],
        supports_check_mode=True,
    )
    if module.params["state"] == "present" and not module.params["models"]:
        module.fail_json(msg="models is empty: name at least one model of the endpoint")
    try:
        result = set_up(module.params, module.check_mode)
    except ClientError as error:
        module.fail_json(msg=str(error))
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
