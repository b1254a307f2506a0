# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Test bed: Debian hosts with systemd and SSH, as containers on this machine."""
