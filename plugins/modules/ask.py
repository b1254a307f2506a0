#!/usr/bin/python
# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ask
short_description: Ask an OpenAI-compatible address a real question
version_added: 0.1.0
author:
  - llm.cluster contributors (@llm-cluster)
description:
  - Sends chat completions to engines or balancers and tells whether real answers came back, from which peers, how fast.
  - A question without an answer does not fail the task, so that one run shows all that is wrong; look at RV(ok).
options:
  questions:
    description: What to ask, and where.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: What the question is called in the results.
        type: str
        required: true
      url:
        description: The address without C(/v1), such as V(http://192.0.2.10:8000).
        type: str
        required: true
      via:
        description:
          - An address to connect to instead of the URL's host, whose name is still what TLS expects.
          - So one of several balancers behind a name can be asked.
        type: str
      model:
        description: The model to ask.
        type: str
        required: true
      prompt:
        description: The user's message.
        type: str
        default: "Complete in a few words: the capital of France is"
      stream:
        description: Whether the answer is to come piece by piece.
        type: bool
        default: false
      count:
        description: How often to ask.
        type: int
        default: 1
      max_tokens:
        description: The longest answer, in tokens.
        type: int
        default: 16
  api_key:
    description: The key that the address asks for.
    type: str
  concurrency:
    description: How many questions to have on the way at once.
    type: int
    default: 4
  timeout:
    description: Longest silence on the network, in seconds.
    type: float
    default: 60
  ca_file:
    description: A file with the certificates to trust instead of the system's.
    type: path
  validate_certs:
    description: Whether an untrusted certificate is an error.
    type: bool
    default: true
attributes:
  check_mode:
    description: Asking changes nothing, so the questions are asked in check mode too.
    support: full
  diff_mode:
    description: There is never a difference.
    support: none
"""

EXAMPLES = r"""
- name: Ask a node's engine directly
  llm.cluster.ask:
    questions:
      - name: node1
        url: http://192.0.2.11:8000
        model: gemma3:270m
  register: answer

- name: Ask the endpoint twenty times, streamed
  llm.cluster.ask:
    api_key: "{{ vault_llm_key }}"
    concurrency: 20
    questions:
      - name: endpoint
        url: https://llm.example.com
        model: gemma3:270m
        stream: true
        count: 20
"""

RETURN = r"""
ok:
  description: Whether each question was answered each time.
  returned: always
  type: bool
results:
  description: A summary for each question, in order.
  returned: always
  type: list
  elements: dict
  contains:
    name: {type: str, description: The question's name.}
    url: {type: str, description: The address asked.}
    model: {type: str, description: The model asked.}
    stream: {type: bool, description: Whether the answer came piece by piece.}
    asked: {type: int, description: How often it was asked.}
    answered: {type: int, description: How often a complete answer came.}
    peers: {type: dict, description: "How many answers came from which peer, as the balancer says."}
    text: {type: str, description: The first answer.}
    first_byte: {type: float, description: "Mean time to the first byte in seconds, null without an answer."}
    seconds: {type: float, description: "Mean time of a whole answer in seconds, null without an answer."}
    errors: {type: dict, description: How often an answer was missing for which reason.}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._ask import Access, Question, ask_all

QUESTION = {
    "name": {"type": "str", "required": True},
    "url": {"type": "str", "required": True},
    "via": {"type": "str"},
    "model": {"type": "str", "required": True},
    "prompt": {"type": "str", "default": "Complete in a few words: the capital of France is"},
    "stream": {"type": "bool", "default": False},
    "count": {"type": "int", "default": 1},
    "max_tokens": {"type": "int", "default": 16, "no_log": False},
}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "questions": {"type": "list", "elements": "dict", "required": True, "options": QUESTION},
            "api_key": {"type": "str", "no_log": True},
            "concurrency": {"type": "int", "default": 4},
            "timeout": {"type": "float", "default": 60},
            "ca_file": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    access = Access(params["api_key"], params["timeout"], params["ca_file"], params["validate_certs"])
    results = [ask_all(Question(**question), access, params["concurrency"]) for question in params["questions"]]
    module.exit_json(
        changed=False, ok=all(result["answered"] == result["asked"] for result in results), results=results
    )


if __name__ == "__main__":
    main()
