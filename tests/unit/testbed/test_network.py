# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Subnets and addresses of beds."""

from __future__ import annotations

import sys
from ipaddress import IPv4Network
from itertools import islice

import pytest
from llm_testbed.network import choose_subnet, default_device, free_addresses, parse_nameservers, parse_routes
from llm_testbed.shell import TestbedError

# As on a little-endian machine: 0.0.0.0/0 by 192.0.2.1 on eth0, 192.0.2.0/24, 10.173.0.0/22 on a tunnel.
ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t0000AD0A\t00000000\t0001\t0\t0\t0\t00FCFFFF\t0\t0\t0
"""

little_endian = pytest.mark.skipif(sys.byteorder != "little", reason="the sample is a little-endian machine's")


@little_endian
def test_routes_without_the_default_one() -> None:
    assert parse_routes(ROUTES) == [IPv4Network("192.0.2.0/24"), IPv4Network("10.173.0.0/22")]


def test_default_device() -> None:
    assert default_device(ROUTES) == "eth0"
    assert default_device(ROUTES.splitlines()[0]) is None


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        ([], "10.173.0.0/24"),
        (["192.0.2.0/24"], "10.173.0.0/24"),
        (["10.173.0.0/22"], "10.173.4.0/24"),
        (["10.173.0.53/32", "10.173.1.128/25"], "10.173.2.0/24"),
        (["10.0.0.0/8"], "172.30.0.0/24"),
    ],
)
def test_choose_subnet(used: list[str], expected: str) -> None:
    assert choose_subnet(IPv4Network(subnet) for subnet in used) == IPv4Network(expected)


def test_no_subnet_left() -> None:
    with pytest.raises(TestbedError, match="No free subnet"):
        choose_subnet([IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12")])


def test_free_addresses_skip_those_in_use() -> None:
    found = free_addresses(IPv4Network("10.173.4.0/24"), {"10.173.4.12", "10.173.4.14"})
    assert list(islice(found, 3)) == ["10.173.4.11", "10.173.4.13", "10.173.4.15"]


def test_nameservers() -> None:
    text = "# comment\nsearch example\nnameserver 10.173.0.53\nnameserver fd00::53\nnameserver\n"
    assert parse_nameservers(text) == [IPv4Network("10.173.0.53/32")]
