#!/usr/bin/python
# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_source
short_description: Ask where models come from which version there is
version_added: 0.1.0
author:
  - llm.cluster contributors (@llm-cluster)
description:
  - Returns digest and size of models as their sources have them now. Nothing is fetched.
  - A registry is asked for the manifest. A server is asked for the file's size, and for its SHA-256 in the headers
    C(Repr-Digest), C(Digest) or C(X-Linked-ETag), or in a file C(URL.sha256) beside it. A file is hashed on the
    controller, once, unless it changes.
  - A source that can't be asked, or doesn't tell, is no failure of the task; see RV(models[].problem).
attributes:
  check_mode:
    support: full
    description: It changes nothing.
  diff_mode:
    support: none
    description: It changes nothing.
options:
  models:
    description: The models.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The model's name.
        type: str
        required: true
      engine:
        description: The engine that the model is for. Only handed on to RV(models[].engine).
        type: str
      source:
        description: Where the model comes from. Exactly one of these.
        type: dict
        required: true
        suboptions:
          url:
            description: An http or https URL of a file.
            type: str
          file:
            description: A GGUF file on the controller.
            type: path
          registry:
            description: The name in Ollama's registry, or V(HOST:PORT/NAMESPACE/MODEL:TAG) in another.
            type: str
      insecure:
        description: Whether the registry is asked by plain HTTP.
        type: bool
        default: false
  network_timeout:
    description: Longest silence of a source, in seconds.
    type: float
    default: 30
  ca_file:
    description: A file on the node with the certificates to trust.
    type: path
  http_proxy:
    description: Proxy for http. Default is the environment's.
    type: str
  https_proxy:
    description: Proxy for https. Default is the environment's.
    type: str
  no_proxy:
    description: Hosts to reach without a proxy.
    type: str
"""

EXAMPLES = r"""
- name: Which version is there now?
  llm.cluster.model_source:
    models:
      - name: gemma3:270m
        source: {registry: gemma3:270m}
      - name: qwen3:8b
        source: {url: https://models.example.com/qwen3-8b-q4_k_m.gguf}
  register: offered
"""

RETURN = r"""
models:
  description: What each source says, in the order of the option.
  returned: success
  type: list
  elements: dict
  sample:
    - name: gemma3:270m
      engine: ollama
      digest: sha256:735af2139dc652bf01112746474883d79a52fa1c19038265d363e3d42556f7a2
      size: 291554930
      problem: ""
  contains:
    name:
      description: The model's name.
      type: str
    engine:
      description: O(models[].engine).
      type: str
    digest:
      description: The version, empty if it isn't known.
      type: str
    size:
      description: Its size in bytes, null if it isn't known.
      type: int
    problem:
      description: Why the version isn't known, and what to do.
      type: str
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._fetch import HttpOptions
from ansible_collections.llm.cluster.plugins.module_utils._model_source import ask_source

# Sources that are asked at the same time.
AT_ONCE = 8

KINDS = ("url", "file", "registry")
SOURCE = {"url": {"type": "str"}, "file": {"type": "path"}, "registry": {"type": "str"}}
MODEL = {
    "name": {"type": "str", "required": True},
    "engine": {"type": "str"},
    "source": {
        "type": "dict",
        "required": True,
        "options": SOURCE,
        "mutually_exclusive": [KINDS],
        "required_one_of": [KINDS],
    },
    "insecure": {"type": "bool", "default": False},
}
OPTIONS: dict[str, Any] = {
    "models": {"type": "list", "elements": "dict", "required": True, "options": MODEL},
    "network_timeout": {"type": "float", "default": 30},
    "ca_file": {"type": "path"},
    "http_proxy": {"type": "str"},
    "https_proxy": {"type": "str"},
    "no_proxy": {"type": "str"},
}


def ask_all(models: list[dict[str, Any]], http_options: HttpOptions) -> list[dict[str, Any]]:
    """Return what each model's source says."""

    def ask(model: dict[str, Any]) -> dict[str, Any]:
        offer = ask_source(model["source"], model["insecure"], http_options)
        return {"name": model["name"], "engine": model["engine"], **dataclasses.asdict(offer)}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, models))


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(argument_spec=OPTIONS, supports_check_mode=True)
    params = module.params
    if any(model["source"]["file"] for model in params["models"]):
        module.fail_json(msg="Files are looked at on the controller: call the module as llm.cluster.model_source.")
    http_options = HttpOptions(
        timeout=params["network_timeout"],
        **{name: params[name] or "" for name in ("ca_file", "http_proxy", "https_proxy", "no_proxy")},
    )
    module.exit_json(changed=False, models=ask_all(params["models"], http_options))


if __name__ == "__main__":
    main()
