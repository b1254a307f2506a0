# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The systems that are measured beside each other, a file each."""

from __future__ import annotations

from bench.systems.base import Peer, System, running
from bench.systems.direct import Direct
from bench.systems.haproxy import HAProxy
from bench.systems.haproxy_hash import HAProxyHash
from bench.systems.litellm import LiteLLM, LiteLLMLeastBusy
from bench.systems.nginx_plain import NginxEngineQueue, NginxPlain
from bench.systems.ours import Affinity, LeastBusy, WeightedRoundRobin
from bench.systems.sglang_router import SglangRouter

__all__ = ["REGISTRY", "Peer", "System", "running"]

REGISTRY: dict[str, type[System]] = {
    each.name: each
    for each in (
        *(Direct, Affinity, LeastBusy, WeightedRoundRobin),
        *(NginxPlain, NginxEngineQueue, HAProxy, HAProxyHash, LiteLLM, LiteLLMLeastBusy, SglangRouter),
    )
}
