#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: sync_run
short_description: Begin a sync, unless one is at work on this controller
version_added: 0.1.0
description:
  - Gives the run of C(ansible-playbook) a name, and fails if another one that began a sync by the same lock file still
    runs on this controller. Made for role sync of this collection.
  - That ends with C(ansible-playbook), however that ends.
  - Runs on the controller and touches no host.
author:
  - llm.cluster contributors (@llm-cluster)
attributes:
  check_mode:
    support: full
    description: It only tells the name, and doesn't fail.
  diff_mode:
    support: none
    description: It changes nothing on hosts.
options:
  lock_file:
    description: The lock file that says what is synced.
    type: path
    required: true
notes:
  - An action plugin does the work.
"""

EXAMPLES = r"""
- name: Begin
  llm.cluster.sync_run:
    lock_file: "{{ llm_lock_file }}"
  run_once: true
  register: sync_begun
"""

RETURN = r"""
run:
  description: What the run is called. What stands behind the last hyphen is this controller's name for itself.
  returned: success
  type: str
  sample: 20261123T122508Z-3f9a2b10
"""
