#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: node_facts
short_description: Read a node's size, for the labels that routes ask for
description:
  - Returns memory, processors, architecture, and the number and memory of the graphics processors.
  - Sizes are rounded to whole GiB, so that they stay the same from run to run.
  - NVIDIA's are asked of C(nvidia-smi). Where that lists none, AMD's are read from what the kernel says. One with less
    than 2 GiB of its own is part of a processor and doesn't count. Others are not known; see C(llm_node_labels).
  - What could not be read is left out.
author:
  - llm.cluster contributors (@llm-cluster)
attributes:
  check_mode:
    support: full
    description: Nothing is changed in any mode.
  diff_mode:
    support: none
    description: There is nothing to show.
  facts:
    support: full
    description: Returns a fact.
options: {}
"""

EXAMPLES = r"""
- name: Read the node's size
  llm.cluster.node_facts:

- name: Show it
  ansible.builtin.debug:
    var: ansible_facts['llm_node_facts']
"""

RETURN = r"""
ansible_facts:
  description: The fact that is added.
  returned: success
  type: dict
  contains:
    llm_node_facts:
      description: The node's size.
      returned: success
      type: dict
      contains:
        memory_gb:
          description: Memory in GiB, as the kernel counts it. A machine that is sold with 64 GB has 62 or 63.
          returned: if it could be read
          type: int
          sample: 63
        cpus:
          description: Processors that programs can use at a time.
          returned: if it could be read
          type: int
          sample: 16
        architecture:
          description: The processor's architecture.
          returned: success
          type: str
          sample: x86_64
        gpus:
          description: Number of graphics processors.
          returned: if it could be read
          type: int
          sample: 1
        gpu_memory_gb:
          description: Their memory in GiB, all together.
          returned: if it could be read
          type: int
          sample: 24
"""

import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils._stats import UnreadableError
from ansible_collections.llm.cluster.plugins.module_utils._stats._gpus import MIB, amd_gpus, ask_nvidia, number

# A driver that hangs must not hang the play.
NVIDIA_SECONDS = 15
MIB_PER_GIB = 1024


def memory_gb(meminfo: str) -> int | None:
    """Return the memory in GiB from the text of /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return round(int(found.group(1)) / MIB_PER_GIB / MIB_PER_GIB) if found else None


def gpu_sizes(nvidia_smi: str | None, drm: Path) -> list[float | None]:
    """Return the memory of each GPU in MiB; None for one that has none of its own to tell of."""
    rows = ask_nvidia(nvidia_smi, ("memory.total",), NVIDIA_SECONDS) if nvidia_smi else []
    return [number(row[0]) for row in rows] or [(gpu.memory_total or 0) / MIB for gpu in amd_gpus(drm)]


def gpu_facts(sizes: Iterable[float | None]) -> dict[str, int]:
    """Return the facts of GPUs of these sizes. The memory is known only if each one's is."""
    known = list(sizes)
    facts = {"gpus": len(known)}
    if None not in known:
        facts["gpu_memory_gb"] = round(sum(size or 0 for size in known) / MIB_PER_GIB)
    return facts


def node_facts(nvidia_smi: str | None, root: Path = Path("/")) -> dict[str, Any]:
    """Return the facts; UnreadableError where the GPUs can't be read, with the other facts as its second argument."""
    facts: dict[str, Any] = {
        "memory_gb": memory_gb((root / "proc/meminfo").read_text(encoding="ascii")),
        "cpus": os.cpu_count(),
        "architecture": platform.machine(),
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    try:
        return {**facts, **gpu_facts(gpu_sizes(nvidia_smi, root / "sys/class/drm"))}
    except (UnreadableError, OSError, ValueError) as error:
        raise UnreadableError(str(error), facts) from error


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    try:
        facts = node_facts(module.get_bin_path("nvidia-smi"))
    except UnreadableError as error:
        reason, facts = error.args
        module.warn(
            f"The graphics processors could not be read: {reason}. Until they can, their labels stay as they were."
        )
    module.exit_json(changed=False, ansible_facts={"llm_node_facts": facts})


if __name__ == "__main__":
    main()
