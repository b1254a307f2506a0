# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the processor time of ansible-playbook's main process: the part that no further core makes faster."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: controller_time
type: aggregate
short_description: Processor time of the main process
description:
  - Writes seconds to the file that the environment variable CONTROLLER_TIME_FILE names.
"""


class CallbackModule(CallbackBase):
    """Looks once, at the end."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "controller_time"
    CALLBACK_NEEDS_ENABLED = True

    def v2_playbook_on_stats(self, stats: Any) -> None:
        del stats
        Path(os.environ["CONTROLLER_TIME_FILE"]).write_text(str(time.process_time()), encoding="utf-8")
