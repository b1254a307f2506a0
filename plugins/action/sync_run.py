# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Begin a sync, unless one is at work on this controller: llm.cluster.sync_run."""

from __future__ import annotations

import os
import time
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.llm.cluster.plugins.module_utils import _sync_marks, _sync_runs

NOTES = "~/.cache/llm-cluster/syncs"


class ActionModule(ActionBase):
    """Runs on the controller, in a process that ansible-playbook has forked for the task."""

    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        super().run(tmp, task_vars)
        _valid, arguments = self.validate_argument_spec({"lock_file": {"type": "path", "required": True}})
        note = _sync_runs.note_of(arguments["lock_file"], os.path.expanduser(NOTES))
        try:
            run = _sync_runs.begin(note, os.getppid(), _sync_marks.stamp(time.time()), look=bool(self._task.check_mode))
        except _sync_runs.AtWorkError as other:
            raise AnsibleActionFail(
                f"Another sync is at work on this controller: {other.run}, process {other.process}. Nothing was "
                "changed. Wait until it has ended, or stop it; then run sync.yml again, which goes on from there."
            ) from None
        return {"changed": False, "run": run}
