# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Entry point of `python3 tests/testbed COMMAND`."""

import sys

from llm_testbed.cli import main

sys.exit(main())
