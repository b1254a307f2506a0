#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_stats
short_description: Tell what a node does now and which models it has
version_added: 0.1.0
description:
  - Returns load, memory, disk, graphics processors, the engine's version and health, its slots and waiting requests,
    and the models with their digests.
  - All parts are read at the same time and none is waited for longer than O(timeout). A part that can't be read
    is told in RV(unread) with the reason; the task doesn't fail for it.
author:
  - llm.cluster contributors (@llm-cluster)
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: It changes nothing.
options:
  engine:
    description: The program that serves the models on this node.
    type: str
    required: true
    choices: [llama_cpp, ollama]
  models:
    description:
      - The models that the node should have, as M(llm.cluster.model) takes them.
      - For llama.cpp they also say where its instances are.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What clients ask for.
        type: str
        required: true
      address:
        description: The engine's address, if it isn't O(address).
        type: str
      port:
        description: The engine's port, if it isn't O(port).
        type: int
      digest:
        description: The wanted version.
        type: str
      source:
        description: Where the model comes from. Nothing is asked there.
        type: dict
      insecure:
        description: As for M(llm.cluster.model). It means nothing here.
        type: bool
        default: false
      unit:
        description: The instance of C(llama-cpp@.service) that serves the model. Default is made from the name.
        type: str
      size:
        description: The wanted version's size in bytes.
        type: int
  address:
    description:
      - The engine's address.
      - One that the node itself doesn't have, such as that of a router before it, counts as none.
      - Default is the address of the node's default route, as for C(llm_address).
    type: str
  port:
    description: The engine's port.
    type: int
    default: 8000
  slots:
    description: Requests that the engine works on at a time, for an engine that doesn't tell.
    type: int
  models_dir:
    description:
      - Where the models are.
      - Default is C(/var/lib/llama-cpp/models), or C(/var/lib/ollama/models) for Ollama.
    type: path
  partial_dir:
    description: Where a file grows until it is whole. Default is C(partial) beside O(models_dir).
    type: path
  verify:
    description:
      - Whether files are hashed that changed since they were hashed, or never were. 30 GB take about a minute.
      - Without it a file is what its name or manifest says.
    type: bool
    default: false
  timeout:
    description: Longest time that a part may take, in seconds.
    type: float
    default: 5
  verify_timeout:
    description: Longest time that the models may take with O(verify), in seconds.
    type: float
    default: 3600
"""

EXAMPLES = r"""
- name: Look at an Ollama node
  llm.cluster.node_stats:
    engine: ollama
    slots: 4
  register: stats

- name: Look at a node of the inventory
  llm.cluster.node_stats:
    engine: "{{ llm_engine }}"
    models: "{{ llm_peers | llm.cluster.module_models }}"
    slots: "{{ llm_peers | map(attribute='slots') | sum }}"
  register: stats
"""

RETURN = r"""
engine:
  description: The engine.
  returned: success
  type: dict
  sample: {kind: ollama, version: 0.33.3, healthy: true, reason: ""}
  contains:
    kind:
      description: V(llama_cpp) or V(ollama).
      type: str
    version:
      description: Its version, null if it couldn't be had.
      type: str
    healthy:
      description: Whether it says that it can serve; with several llama.cpp instances, whether all do.
      type: bool
    reason:
      description: Why it isn't healthy.
      type: str
cpu:
  description: The processors. Null if they could not be read, as are the following.
  returned: success
  type: dict
  sample: {load_percent: 65.2, cpus: 16}
  contains:
    load_percent:
      description: How busy they were while the module looked, a quarter of a second.
      type: float
    cpus:
      description: How many there are.
      type: int
memory:
  description: Bytes of memory that programs use and can't be freed at once, and of all.
  returned: success
  type: dict
  sample: {used: 15247015936, total: 34359738368}
  contains:
    used:
      description: Not available to further programs.
      type: int
    total:
      description: All.
      type: int
disk:
  description: The filesystem of O(models_dir), in bytes.
  returned: success
  type: dict
  sample: {path: /var/lib/ollama/models, free: 512110190592, total: 1024220381184}
  contains:
    path:
      description: The folder.
      type: str
    free:
      description: Free for all users.
      type: int
    total:
      description: All.
      type: int
gpus:
  description:
    - The graphics processors. NVIDIA's are asked of C(nvidia-smi); where that lists none, AMD's are read from what the
      kernel says. One with less than 2 GiB of its own is part of a processor and doesn't count.
  returned: success
  type: list
  elements: dict
  sample:
    - vendor: nvidia
      name: NVIDIA L4
      memory_used: 6442450944
      memory_total: 24152899584
      utilization_percent: 87
  contains:
    vendor:
      description: V(nvidia) or V(amd).
      type: str
    name:
      description: The model.
      type: str
    memory_used:
      description: Bytes of its memory in use, null if it doesn't tell.
      type: int
    memory_total:
      description: Bytes of its memory, null if it doesn't tell.
      type: int
    utilization_percent:
      description: How busy it is, null if it doesn't tell.
      type: float
slots:
  description: Requests that the engine can work on at a time.
  returned: success
  type: dict
  sample: {busy: 3, total: 4}
  contains:
    busy:
      description: Those in use. Null for Ollama, which doesn't tell.
      type: int
    total:
      description: All, as the engine says, else O(slots).
      type: int
waiting:
  description: Requests that wait inside the engine. Null for Ollama, which doesn't tell.
  returned: success
  type: int
  sample: 0
models:
  description: The models on the node, the wanted ones first. Null if they could not be read.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: The model's name.
      type: str
    digest:
      description: The version that is served under this name, empty for none.
      type: str
    wanted:
      description: The wanted version, empty if any will do.
      type: str
    status:
      description: V(ok), V(missing), V(wrong) or V(corrupt), compared with what is wanted.
      type: str
    have:
      description: Bytes of the wanted version that an earlier download left.
      type: int
    size:
      description: Bytes of the served version.
      type: int
    held:
      description: Whether the wanted version is whole on the node, served or not.
      type: bool
    extra:
      description: Whether the model is on the node and not among O(models).
      type: bool
    unit:
      description: The llama.cpp instance, empty for Ollama.
      type: str
    loaded:
      description: The version that is in memory under this name, empty for none.
      type: str
    context:
      description: The context's length in tokens that it was loaded with.
      type: int
    expires:
      description: When Ollama drops it out of memory, empty for never.
      type: str
    set_up:
      description: Whether the node could serve the model if it had its file; false while its instance has no settings.
      type: bool
    note:
      description: Something worth knowing.
      type: str
held:
  description: Every version that is whole on the node, served or kept, with its bytes. Null if it could not be read.
  returned: success
  type: dict
  sample: {"sha256:a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818": 253113024}
unread:
  description: The parts that could not be read, and why.
  returned: success
  type: list
  elements: dict
  sample: [{part: gpus, reason: "nvidia-smi: timed out after 5 s"}]
  contains:
    part:
      description: The name of a value above, or V(version).
      type: str
    reason:
      description: Why.
      type: str
"""

import dataclasses
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    Inspection,
    ModelSpec,
    Settings,
    folders,
    make_engine,
)
from ansible_collections.llm.cluster.plugins.module_utils._stats import Part, _llama_cpp, _ollama, read_parts
from ansible_collections.llm.cluster.plugins.module_utils._stats._engine import EngineState
from ansible_collections.llm.cluster.plugins.module_utils._stats._gpus import read_gpus
from ansible_collections.llm.cluster.plugins.module_utils._stats._host import (
    own_address,
    read_cpu,
    read_disk,
    read_memory,
)
from ansible_collections.llm.cluster.plugins.module_utils._topology import normal_digest, unit_name, url_of

HOST_PARTS = ("cpu", "memory", "disk", "gpus")
# What is waited for is given up by itself first, with a better reason.
GRACE = 0.5

MODEL = {
    "name": {"type": "str", "required": True},
    "address": {"type": "str"},
    "port": {"type": "int"},
    "digest": {"type": "str"},
    "source": {"type": "dict"},
    "insecure": {"type": "bool", "default": False},
    "unit": {"type": "str"},
    "size": {"type": "int"},
}
OPTIONS: dict[str, Any] = {
    "engine": {"type": "str", "required": True, "choices": ["llama_cpp", "ollama"]},
    "models": {"type": "list", "elements": "dict", "default": [], "options": MODEL},
    "address": {"type": "str"},
    "port": {"type": "int", "default": 8000},
    "slots": {"type": "int"},
    "models_dir": {"type": "path"},
    "partial_dir": {"type": "path"},
    "verify": {"type": "bool", "default": False},
    "timeout": {"type": "float", "default": 5},
    "verify_timeout": {"type": "float", "default": 3600},
}


def specs_of(params: dict[str, Any]) -> list[ModelSpec]:
    """Return the wanted models, each with the address and port where its engine is."""
    return [
        ModelSpec(
            name=model["name"],
            engine=params["engine"],
            address=own_address(model["address"] or params["address"]),
            port=model["port"] or params["port"],
            digest=normal_digest(model["digest"]) or "",
            registry=(model["source"] or {}).get("registry") or "",
            size=model["size"],
            unit=model["unit"] or unit_name(model["name"]),
        )
        for model in params["models"]
    ]


def instances_of(specs: list[ModelSpec]) -> list[_llama_cpp.Instance]:
    """Return the llama.cpp instances that serve the models."""
    return [_llama_cpp.Instance(spec.name, url_of(spec.address, spec.port), spec.unit) for spec in specs]


def read_node(params: dict[str, Any], nvidia_smi: str | None, check_mode: bool) -> dict[str, Any]:
    """Return what the module answers."""
    kind, timeout = params["engine"], params["timeout"]
    settings = Settings(
        **folders(params),
        timeout=timeout,
        read_only=check_mode,
    )
    specs = specs_of(params)
    address = specs[0].address if specs else own_address(params["address"])
    port = specs[0].port if specs else params["port"]

    def inspect() -> Inspection:
        return make_engine(kind, settings, address, port).inspect(specs, params["verify"])

    instances = instances_of(specs)
    of_engine = (
        _llama_cpp.parts(instances, timeout) if kind == "llama_cpp" else _ollama.parts(url_of(address, port), timeout)
    )
    parts = {
        "cpu": Part(read_cpu, timeout),
        "memory": Part(read_memory, timeout),
        "disk": Part(lambda: read_disk(settings.models_dir), timeout),
        "gpus": Part(lambda: [dataclasses.asdict(gpu) for gpu in read_gpus(nvidia_smi, timeout)], timeout),
        "models": Part(inspect, params["verify_timeout"] if params["verify"] else timeout),
        **of_engine,
    }
    read, failed = read_parts({name: Part(part.read, part.seconds + GRACE) for name, part in parts.items()})
    engine = (
        _llama_cpp.state(instances, read, failed, params["slots"])
        if kind == "llama_cpp"
        else _ollama.state(read, failed, params["slots"])
    )
    return answer_of(read, failed, engine, _llama_cpp.contexts(instances, read))


def answer_of(
    read: dict[str, Any], failed: dict[str, str], engine: EngineState, contexts: dict[str, int | None]
) -> dict[str, Any]:
    """Return the answer out of the parts; contexts: those of models in memory by unit, where only the engine tells."""
    found: Inspection | None = read.get("models")
    unread = {**{part: failed[part] for part in (*HOST_PARTS, "models") if part in failed}, **engine.unread}
    return {
        "engine": {
            "kind": engine.kind,
            "version": engine.version,
            "healthy": engine.healthy,
            "reason": engine.reason,
        },
        **{part: read.get(part) for part in HOST_PARTS},
        "slots": {"busy": engine.busy, "total": engine.slots},
        "waiting": engine.waiting,
        "models": [
            {
                **dataclasses.asdict(model),
                "context": model.context or (contexts.get(model.unit) if model.loaded else None),
            }
            for model in found.models
        ]
        if found
        else None,
        "held": found.held if found else None,
        "unread": [{"part": part, "reason": reason} for part, reason in unread.items()],
    }


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    module.exit_json(changed=False, **read_node(module.params, module.get_bin_path("nvidia-smi"), module.check_mode))


if __name__ == "__main__":
    main()
