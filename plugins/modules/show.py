#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: show
short_description: Print text as it is
version_added: 0.1.0
description:
  - Prints text at the beginning of the line, neither quoted nor indented, whatever callback shows the results of tasks,
    so that people can read it and programs can cut it out.
  - Runs on the controller and touches no host.
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
  text:
    description: What is printed.
    type: str
    required: true
notes:
  - An action plugin does the work.
"""

EXAMPLES = r"""
- name: Show a report
  llm.cluster.show:
    text: "{{ lines | join('\n') }}"
  run_once: true
"""

RETURN = r""" # """
