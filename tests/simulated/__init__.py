# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated programs and services, declared as such: they stand in for what a test cannot have (the internet, a GPU, a
hundred engines). Nothing in here is installed or used outside tests."""
