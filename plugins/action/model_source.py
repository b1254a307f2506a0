# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of the module llm.cluster.model_source: looks at models that are files on the controller."""

from __future__ import annotations

import copy
import os
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.vars import merge_hash
from ansible_collections.llm.cluster.plugins.action import model as model_action

DIGESTS = "~/.cache/llm-cluster/digests"


class ActionModule(model_action.ActionModule):
    """Hash the files here, and have the module ask for the others."""

    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        result = ActionBase.run(self, tmp, task_vars)
        args = copy.deepcopy(dict(self._task.args))
        models = args.get("models")
        if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
            # The module says what is wrong with its options.
            return merge_hash(result, self._module(args, task_vars))
        offered = {position: self._look(model) for position, model in enumerate(models) if self._is_file(model)}
        rest = [model for position, model in enumerate(models) if position not in offered]
        answer: dict[str, Any] = {"changed": False, "models": []}
        if rest or not models:
            answer = self._module({**args, "models": rest}, task_vars)
        if "models" in answer:
            asked = iter(answer["models"])
            answer["models"] = [offered.get(position) or next(asked) for position in range(len(models))]
        return merge_hash(result, answer)

    @staticmethod
    def _is_file(model: dict[str, Any]) -> bool:
        source = model.get("source")
        return isinstance(source, dict) and bool(source.get("file"))

    def _look(self, model: dict[str, Any]) -> dict[str, Any]:
        """Return digest and size of a model's file, or why they can't be had."""
        answer = {"name": model.get("name"), "engine": model.get("engine"), "digest": "", "size": None, "problem": ""}
        try:
            path = self._find(model, str(model["source"]["file"]))
            digest = model_action.known_digest(path, os.path.expanduser(DIGESTS))
            return {**answer, "digest": digest, "size": os.path.getsize(path)}
        except (AnsibleActionFail, OSError) as error:
            return {**answer, "problem": str(error)}
