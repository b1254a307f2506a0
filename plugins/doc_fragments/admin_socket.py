# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options of the modules that talk to a balancer's admin socket."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  socket:
    description:
      - The balancer's admin socket on the managed host. Only root may use it.
    type: path
    default: /run/llm-cluster/admin.sock
  answer_timeout:
    description:
      - Seconds to wait for each answer of the balancer.
    type: float
    default: 10
"""
