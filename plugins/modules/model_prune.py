#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_prune
short_description: Remove models and versions that a node no longer needs
version_added: 0.1.0
author:
  - llm.cluster contributors (@llm-cluster)
description:
  - Removes the models of a node that are not among O(models), and the versions of those that are, but for the wanted
    and the served one, those in memory, those in O(keep) and O(keep_previous) former ones of each model.
  - Also removes what is left of downloads of versions that nobody wants any more.
  - A llama.cpp instance that runs is never cut off. The models of such instances that nobody wants are listed in
    RV(units); once these are stopped, the next run removes their models. A model that Ollama has in memory is dropped
    out of it first.
options:
  engine:
    description: The program that serves the models on this node.
    type: str
    required: true
    choices: [llama_cpp, ollama]
  models:
    description: The wanted models, as M(llm.cluster.model) takes them. What isn't among them goes.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What clients ask for.
        type: str
        required: true
      digest:
        description: The wanted version. It stays, also while another one is served.
        type: str
      unit:
        description: The instance of C(llama-cpp@.service) that serves the model. Default is made from the name.
        type: str
      state:
        description: With V(absent) the model counts as not wanted.
        type: str
        default: present
        choices: [present, fetched, absent, loaded]
      address:
        description: The engine's address, if it isn't O(address).
        type: str
      port:
        description: The engine's port, if it isn't O(port).
        type: int
      source:
        description: Where the model comes from. Nothing is asked there.
        type: dict
      peers:
        description: As for M(llm.cluster.model). Nothing is asked there.
        type: list
        elements: str
      insecure:
        description: As for M(llm.cluster.model). It means nothing here.
        type: bool
        default: false
      size:
        description: As for M(llm.cluster.model). It means nothing here.
        type: int
  keep:
    description: Digests of versions that stay although no model here wants them, such as those that the lock names.
    type: list
    elements: str
    default: []
  keep_previous:
    description: How many former versions of each wanted model stay for the way back.
    type: int
    default: 1
  address:
    description: Ollama's address.
    type: str
    default: 127.0.0.1
  port:
    description: Ollama's port.
    type: int
    default: 8000
  models_dir:
    description: As for M(llm.cluster.model).
    type: path
  partial_dir:
    description: As for M(llm.cluster.model).
    type: path
  lock_timeout:
    description: Longest wait for another run to leave the store, in seconds.
    type: float
    default: 600
attributes:
  check_mode:
    description: Says what would go.
    support: full
  diff_mode:
    description: What there is and what stays.
    support: full
"""

EXAMPLES = r"""
- name: See which instances serve what nobody wants
  llm.cluster.model_prune:
    engine: llama_cpp
    models: "{{ llm_peers | llm.cluster.module_models }}"
  check_mode: true
  register: surplus

- name: Stop them
  ansible.builtin.systemd_service:
    name: llama-cpp@{{ item }}.service
    state: stopped
    enabled: false
  loop: "{{ surplus.units }}"

- name: Remove what is no longer needed, but keep what the lock names and one version back
  llm.cluster.model_prune:
    engine: llama_cpp
    models: "{{ llm_peers | llm.cluster.module_models }}"
    keep:
      - sha256:d98cdcbd03e17ce47681435b5150e34c1417f50b5c0019dd560e4882c5745785
"""

RETURN = r"""
removed:
  description: What was removed, or would be in check mode.
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: V(name) of a model or instance, V(version), V(partial) download, or V(blob) of no version.
      type: str
    name:
      description: The name, empty for other kinds.
      type: str
    digest:
      description: Its digest.
      type: str
    bytes:
      description: Bytes that this freed.
      type: int
freed:
  description: Bytes that were freed altogether.
  returned: always
  type: int
units:
  description: llama.cpp instances that run, or start with the host, and serve models that nobody wants.
  returned: always
  type: list
  elements: str
  sample: [gemma3-270m]
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    EngineError,
    ModelSpec,
    Settings,
    folders,
    make_engine,
)
from ansible_collections.llm.cluster.plugins.module_utils._topology import normal_digest, unit_name

MODEL = {
    "name": {"type": "str", "required": True},
    "digest": {"type": "str"},
    "unit": {"type": "str"},
    "state": {"type": "str", "default": "present", "choices": ["present", "fetched", "absent", "loaded"]},
    "address": {"type": "str"},
    "port": {"type": "int"},
    "source": {"type": "dict"},
    "peers": {"type": "list", "elements": "str"},
    "insecure": {"type": "bool", "default": False},
    "size": {"type": "int"},
}
OPTIONS: dict[str, Any] = {
    "engine": {"type": "str", "required": True, "choices": ["llama_cpp", "ollama"]},
    "models": {"type": "list", "elements": "dict", "required": True, "options": MODEL},
    "keep": {"type": "list", "elements": "str", "default": []},
    "keep_previous": {"type": "int", "default": 1},
    "address": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int", "default": 8000},
    "models_dir": {"type": "path"},
    "partial_dir": {"type": "path"},
    "lock_timeout": {"type": "float", "default": 600},
}


def specs_of(params: dict[str, Any]) -> list[ModelSpec]:
    """Return the wanted models."""
    return [
        ModelSpec(
            name=model["name"],
            state=model["state"],
            engine=params["engine"],
            digest=normal_digest(model["digest"]) or "",
            unit=model["unit"] or unit_name(model["name"]),
        )
        for model in params["models"]
    ]


def run(params: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do the module's work; return its answer."""
    if params["keep_previous"] < 0:
        raise EngineError(
            f"keep_previous is {params['keep_previous']}: give how many former versions stay, 0 for none."
        )
    settings = Settings(
        **folders(params),
        lock_timeout=params["lock_timeout"],
        read_only=check_mode,
    )
    # All models of an Ollama node have one address.
    first = params["models"][0] if params["models"] else {}
    address, port = first.get("address") or params["address"], first.get("port") or params["port"]
    keep = frozenset(normal_digest(digest) or "" for digest in params["keep"])
    engine = make_engine(params["engine"], settings, address, port)
    pruned = engine.prune(specs_of(params), keep, params["keep_previous"])
    return {
        "changed": bool(pruned.removed),
        "diff": pruned.diff,
        "removed": pruned.removed,
        "freed": pruned.freed,
        "units": pruned.units,
    }


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        answer = run(module.params, module.check_mode)
    except (EngineError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
