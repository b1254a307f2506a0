# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import pytest
from e2e.demo_cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster(os.environ.get("LLM_DEMO_NAME", "e2e"))
