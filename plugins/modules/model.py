#!/usr/bin/python
# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model
short_description: Bring the models of a node to their wanted versions
version_added: 0.1.0
author:
  - llm.cluster contributors (@llm-cluster)
description:
  - Fetches models by digest, serves them under their names, loads and removes them. Takes all models of a node at once.
  - A download that broke goes on where it stopped, also in a later run. A file with another digest than the wanted one
    is thrown away and never served; what was served before stays.
  - Everything that can be known beforehand is checked before anything is fetched, namely free disk, memory, whether the
    source answers, and, for Ollama, whether the tag still has the wanted digest.
options:
  engine:
    description: The program that serves the models on this node.
    type: str
    required: true
    choices: [llama_cpp, ollama]
  models:
    description: The models.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What clients ask for.
        type: str
        required: true
      state:
        description: This model's state, if it isn't O(state).
        type: str
        choices: [present, fetched, absent, loaded]
      address:
        description: The engine's address, if it isn't O(address).
        type: str
      port:
        description: The engine's port, if it isn't O(port).
        type: int
      digest:
        description:
          - The wanted version, as C(sha256:HEX) or bare.
          - For llama.cpp the SHA-256 of the GGUF file, needed with O(models[].source.url) and computed on the
            controller for O(models[].source.file). For Ollama the digest that C(/api/tags) shows; without one, any
            version that is there will do.
        type: str
      peers:
        description:
          - Other nodes that have the version or are fetching it, as URLs of their shares such as
            V(http://192.0.2.12:8090), best first. They are asked before the source. See M(llm.cluster.model_share).
          - They are asked by digest, so that a model without one comes from its source.
        type: list
        elements: str
        default: []
      patience:
        description:
          - Seconds of silence after which one of O(models[].peers) is given up for the next one. Default is
            O(network_timeout).
        type: float
      source:
        description: Where the model comes from.
        type: dict
        suboptions:
          url:
            description:
              - An http or https URL of a GGUF file. A login is given as C(https://USER:PASSWORD@HOST/...).
            type: str
          file:
            description: A GGUF file on the controller. It is sent in chunks, and only if the node lacks it.
            type: path
          registry:
            description:
              - The name in Ollama's registry, such as V(gemma3:270m), or V(HOST:PORT/NAMESPACE/MODEL:TAG) in another.
              - Default is the model's name. Under another name the model is pulled first and then copied to
                O(models[].name).
            type: str
      insecure:
        description: Whether to talk plain HTTP to the registry.
        type: bool
        default: false
      unit:
        description: The instance of C(llama-cpp@.service) that serves the model. Default is made from the name.
        type: str
      size:
        description:
          - Size of the wanted version in bytes, such as the lock has it. Where it isn't given, the source is asked.
          - The action plugin fills in that of O(models[].source.file).
        type: int
  state:
    description:
      - V(present) has the wanted version on the node and under its name. For llama.cpp the instances in
        RV(restart_units) serve it from their next start on.
        A version that was served before stays on the node for the way back.
      - V(fetched) has the wanted version on the node, verified, and goes on serving what is served. V(present) needs
        nothing but a switch then. A served version that is damaged is mended.
      - V(loaded) also has it in memory. Ollama loads it; a llama.cpp instance has to be healthy and to complete a
        one-token prompt within O(timeout).
      - V(absent) removes the name, and the files that no other model needs.
    type: str
    default: present
    choices: [present, fetched, absent, loaded]
  address:
    description: The engine's address.
    type: str
    default: 127.0.0.1
  port:
    description: The engine's port.
    type: int
    default: 8000
  keep_alive:
    description: How long Ollama keeps a loaded model without a request, such as V(30m). Negative is for ever.
    type: str
    default: "-1"
  timeout:
    description: Longest time that loading a model may take, in seconds.
    type: float
    default: 300
  network_timeout:
    description: Longest silence while something is fetched, in seconds. After it the next source is asked.
    type: float
    default: 60
  token_file:
    description: The file on the node with the token for O(models[].peers).
    type: path
  max_rate:
    description: Bytes per second at which models are fetched at most. V(0) is without a bound.
    type: int
    default: 0
  lock_timeout:
    description: Longest wait for another run to leave the store, in seconds.
    type: float
    default: 600
  models_dir:
    description:
      - Where the models are. Default is C(/var/lib/llama-cpp/models), or C(/var/lib/ollama/models) for Ollama, whose
        OLLAMA_MODELS it has to be.
    type: path
  partial_dir:
    description:
      - Where a file grows until it is whole, on the filesystem of O(models_dir). For Ollama also where notes about its
        store are, in which nothing but Ollama's own files is put.
      - While something is fetched, C(progress.json) in it says of which model how many bytes are there.
      - Default is C(partial) beside O(models_dir).
    type: path
  check_memory:
    description: Whether to refuse a model larger than the node's memory.
    type: bool
    default: true
  replace:
    description:
      - Whether a name that is served in another version than the wanted one is switched.
      - With V(false) such a version stays, and RV(outdated) names it. So a node that serves isn't interrupted.
    type: bool
    default: true
  ca_file:
    description: A file on the node with the certificates to trust instead of the system's.
    type: path
  http_proxy:
    description: Proxy for http URLs. Default is the environment's. Requests to the engine never take one.
    type: str
  https_proxy:
    description: Proxy for https URLs. Default is the environment's.
    type: str
  no_proxy:
    description: Hosts to reach without a proxy, separated by commas. Default is the environment's.
    type: str
  transfer:
    description: The action plugin's conversation with the node. Not for playbooks.
    type: dict
    suboptions:
      step:
        description:
          - V(ask) which files the node lacks, V(append) a chunk to one, or work V(alone), when none can be sent.
        type: str
        required: true
        choices: [ask, append, alone]
      digest:
        description: Digest of the whole file.
        type: str
      offset:
        description: Where the chunk begins.
        type: int
      chunk:
        description: The chunk on the node.
        type: path
      sha256:
        description: Digest of the chunk.
        type: str
      size:
        description: Size of the whole file.
        type: int
attributes:
  check_mode:
    description: Looks at everything, asks the sources too, and says what would change.
    support: full
  diff_mode:
    description: The models' digests before and after.
    support: full
  async:
    description: Models from files on the controller are sent first; only the rest goes on in the background.
    support: partial
notes:
  - A GGUF file is hashed when it arrives and again only if its size, mtime or inode changed. To have it hashed anyway,
    delete C(*.verified.json) beside it.
  - The controller keeps the digests of files that it sends in C(~/.cache/llm-cluster/digests), so that each is hashed
    once, however many nodes get it.
"""

EXAMPLES = r"""
- name: Have two GGUF files on a llama.cpp node
  llm.cluster.model:
    engine: llama_cpp
    address: 192.0.2.11
    models:
      - name: gemma3:270m
        port: 8000
        source:
          file: /srv/models/gemma-3-270m-q4_k_m.gguf
      - name: qwen3:8b
        port: 8001
        digest: sha256:d98cdcbd03e17ce47681435b5150e34c1417f50b5c0019dd560e4882c5745785
        source:
          url: https://mirror.example.org/Qwen3-8B-Q4_K_M.gguf
  register: models

- name: Restart the instances whose file changed
  ansible.builtin.systemd_service:
    name: llama-cpp@{{ item }}.service
    state: restarted
  loop: "{{ models.restart_units }}"

- name: Have a model in Ollama, in exactly this version, and in memory
  llm.cluster.model:
    engine: ollama
    address: 192.0.2.12
    state: loaded
    models:
      - name: gemma3:270m
        digest: e7d36fb2c3b3293cfe56d55889867a064b3a2b22e98335f2e6e8a387e081d6be

- name: Remove one that is no longer wanted
  llm.cluster.model:
    engine: ollama
    state: absent
    models:
      - name: llama2:7b
"""

RETURN = r"""
models:
  description: What became of each model, in the order of the option.
  returned: always, on failure those up to the one that failed
  type: list
  elements: dict
  contains:
    name:
      description: The model's name.
      type: str
    engine:
      description: The engine.
      type: str
    state:
      description: The wanted state.
      type: str
    unit:
      description: The llama.cpp instance, empty for Ollama.
      type: str
    path:
      description: The link that the instance serves, empty for Ollama.
      type: str
    digest_before:
      description: The digest under this name before, empty if there was none.
      type: str
    digest_after:
      description: The digest under this name now.
      type: str
    changed:
      description: Whether this model changed.
      type: bool
    bytes:
      description: Bytes that were moved to the node.
      type: int
    resumed:
      description: Bytes that were there from an earlier try.
      type: int
    size:
      description: Size of what had to be fetched, where the source states it.
      type: int
    held:
      description:
        - Digests of the model's versions that are on the node, whole, beside the served one, the wanted one first, then
          former ones, newest first.
        - If RV(models[].digest_before) is among them after a switch, the way back needs no download.
      type: list
      elements: str
    note:
      description: Something worth knowing, such as that the file in the store was damaged.
      type: str
restart_units:
  description: llama.cpp instances that run and serve something else than their link names.
  returned: always
  type: list
  elements: str
  sample: [gemma3-270m]
start_units:
  description: llama.cpp instances that don't run or aren't enabled.
  returned: always
  type: list
  elements: str
absent_units:
  description: llama.cpp instances that systemd knows no unit for.
  returned: always
  type: list
  elements: str
outdated:
  description: Models that stay in another version than the wanted one, because of O(replace=false).
  returned: always
  type: list
  elements: str
"""

import signal
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._engines import EngineError, Settings, folders
from ansible_collections.llm.cluster.plugins.module_utils._engines._reconcile import (
    PROBLEMS,
    ReconcileError,
    Reconciler,
    specs_from,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines.llama_cpp import LlamaCpp
from ansible_collections.llm.cluster.plugins.module_utils._fetch import HttpOptions

STATES = ["present", "fetched", "absent", "loaded"]

SOURCE = {"url": {"type": "str"}, "file": {"type": "path"}, "registry": {"type": "str"}}
MODEL = {
    "name": {"type": "str", "required": True},
    "state": {"type": "str", "choices": STATES},
    "address": {"type": "str"},
    "port": {"type": "int"},
    "digest": {"type": "str"},
    "source": {"type": "dict", "options": SOURCE, "mutually_exclusive": [("url", "file", "registry")]},
    "peers": {"type": "list", "elements": "str", "default": []},
    "patience": {"type": "float"},
    "insecure": {"type": "bool", "default": False},
    "unit": {"type": "str"},
    "size": {"type": "int"},
}
TRANSFER = {
    "step": {"type": "str", "required": True, "choices": ["ask", "append", "alone"]},
    "digest": {"type": "str"},
    "offset": {"type": "int"},
    "chunk": {"type": "path"},
    "sha256": {"type": "str"},
    "size": {"type": "int"},
}
OPTIONS: dict[str, Any] = {
    "engine": {"type": "str", "required": True, "choices": ["llama_cpp", "ollama"]},
    "models": {"type": "list", "elements": "dict", "required": True, "options": MODEL},
    "state": {"type": "str", "default": "present", "choices": STATES},
    "address": {"type": "str", "default": "127.0.0.1"},
    "port": {"type": "int", "default": 8000},
    "keep_alive": {"type": "str", "default": "-1"},
    "timeout": {"type": "float", "default": 300},
    "network_timeout": {"type": "float", "default": 60},
    "token_file": {"type": "path", "no_log": False},
    "max_rate": {"type": "int", "default": 0},
    "lock_timeout": {"type": "float", "default": 600},
    "models_dir": {"type": "path"},
    "partial_dir": {"type": "path"},
    "check_memory": {"type": "bool", "default": True},
    "replace": {"type": "bool", "default": True},
    "ca_file": {"type": "path"},
    "http_proxy": {"type": "str"},
    "https_proxy": {"type": "str"},
    "no_proxy": {"type": "str"},
    "transfer": {
        "type": "dict",
        "options": TRANSFER,
        "required_if": [("step", "append", ["digest", "offset", "chunk", "sha256"])],
    },
}


def settings_from(params: dict[str, Any], read_only: bool) -> Settings:
    """Return what holds for all models."""
    return Settings(
        **folders(params),
        timeout=params["timeout"],
        lock_timeout=params["lock_timeout"],
        read_only=read_only,
        replace=params["replace"],
        token_file=params["token_file"] or "",
        max_rate=params["max_rate"],
        http=HttpOptions(
            timeout=params["network_timeout"],
            **{key: params[key] or "" for key in ("ca_file", "http_proxy", "https_proxy", "no_proxy")},
        ),
    )


def run(params: dict[str, Any], check_mode: bool) -> tuple[dict[str, Any], list[str]]:
    """Do the module's work; return its answer and its warnings."""
    transfer = params["transfer"] or {}
    settings = settings_from(params, check_mode or transfer.get("step") == "ask")
    if transfer.get("step") == "append":
        have = LlamaCpp(settings).receive(
            transfer["digest"], transfer["offset"], transfer["chunk"], transfer["sha256"], transfer["size"]
        )
        return {"changed": True, "have": have}, []
    step = transfer.get("step")
    report = Reconciler(specs_from(params), settings, params["check_memory"]).run(step == "ask", step == "alone")
    answer = report.answer()
    if report.missing and not check_mode:
        answer["missing"] = report.missing
    return answer, report.warnings


class EndedError(EngineError):
    """Somebody ended the run."""


def end(_signal: int, _frame: Any) -> None:
    """Leave in order when the run is ended: what came is kept, and nothing is left that says it goes on."""
    raise EndedError("The run was ended by SIGTERM. What was fetched is kept; run again to go on from there.")


def main() -> None:
    """Run as an Ansible module."""
    signal.signal(signal.SIGTERM, end)
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    try:
        answer, warnings = run(module.params, module.check_mode)
    except ReconcileError as error:
        for warning in error.report.warnings:
            module.warn(warning)
        module.fail_json(msg=str(error), **error.report.answer())
    except PROBLEMS as error:
        module.fail_json(msg=str(error))
    for warning in warnings:
        module.warn(warning)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
