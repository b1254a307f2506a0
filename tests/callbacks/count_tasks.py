# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Count, per host, the tasks that went over the network and name those that changed something."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: count_tasks
type: aggregate
short_description: Count remote tasks per host
description:
  - Writes JSON to the file that the environment variable COUNT_TASKS_FILE names.
"""

# Actions that run on the controller only, whatever the task's host.
LOCAL = {
    "add_host",
    "assert",
    "debug",
    "fail",
    "group_by",
    "import_playbook",
    "import_role",
    "import_tasks",
    "include_role",
    "include_tasks",
    "include_vars",
    "meta",
    "pause",
    "set_fact",
    "set_stats",
    "show",
    "sync_run",
    "validate_argument_spec",
}


class CallbackModule(CallbackBase):
    """Counts results as they come in."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "count_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self.began = time.monotonic()
        self.hosts: dict[str, dict[str, Any]] = {}

    def _count(self, result: Any) -> None:
        task, host = result._task, result._host.get_name()
        seen = self.hosts.setdefault(host, {"remote": [], "changed": [], "failed": []})
        data = result._result
        if task.action.rsplit(".", 1)[-1] not in LOCAL and task.connection != "local":
            # A loop goes over the network once for each of its items.
            seen["remote"] += [task.get_name()] * len(data.get("results", [None])) if task.loop else [task.get_name()]
        if data.get("changed"):
            seen["changed"].append(task.get_name())

    def v2_runner_on_ok(self, result: Any) -> None:
        self._count(result)

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self._count(result)
        if not ignore_errors:
            self.hosts[result._host.get_name()]["failed"].append(result._task.get_name())

    def v2_playbook_on_stats(self, stats: Any) -> None:
        del stats
        report = {"seconds": time.monotonic() - self.began, "hosts": self.hosts}
        Path(os.environ["COUNT_TASKS_FILE"]).write_text(json.dumps(report, indent=1), encoding="utf-8")
