# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bed's private Docker network, in a subnet that nothing on this machine uses."""

from __future__ import annotations

import ipaddress
import json
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from pathlib import Path

from .engine import docker
from .shell import TestbedError, attempt

Subnet = ipaddress.IPv4Network

BED_LABEL = "llm.testbed"
# Private ranges that neither Docker's defaults nor home routers hand out, cut into one /24 for each bed.
_RANGES = (Subnet("10.173.0.0/16"), Subnet("172.30.0.0/16"))
# Addresses below are left to the gateway and to whatever else is attached by hand.
_FIRST_HOST = 11


def network_name(bed: str) -> str:
    """The name of a bed's network (and the beginning of its containers' names)."""
    return f"llm-{bed}"


def ensure_network(bed: str) -> Subnet:
    """Have the bed's network; returns its subnet."""
    name = network_name(bed)
    found = attempt(["docker", "network", "inspect", name])
    if found.returncode != 0:
        subnet = choose_subnet(_subnets_in_use())
        option = f"com.docker.network.driver.mtu={_uplink_mtu()}"
        docker("network", "create", "--label", f"{BED_LABEL}={bed}", "--subnet", str(subnet), "--opt", option, name)
        return subnet
    details = json.loads(found.stdout)[0]
    if details["Labels"].get(BED_LABEL) != bed:
        raise TestbedError(f"A Docker network {name} exists that is not a test bed's. Choose another --name.")
    return Subnet(details["IPAM"]["Config"][0]["Subnet"])


def remove_network(bed: str) -> bool:
    """Remove the bed's network; whether there was one."""
    label_format = f'{{{{index .Labels "{BED_LABEL}"}}}}'
    label = attempt(["docker", "network", "inspect", "--format", label_format, network_name(bed)])
    if label.returncode != 0 or label.stdout.strip() != bed:
        return False
    docker("network", "rm", network_name(bed))
    return True


def beds() -> list[str]:
    """The names of all beds that this machine has."""
    output = docker("network", "ls", "--filter", f"label={BED_LABEL}", "--format", f'{{{{.Label "{BED_LABEL}"}}}}')
    return sorted(output.split())


def choose_subnet(used: Iterable[Subnet]) -> Subnet:
    """The first /24 of our ranges that overlaps nothing in use."""
    taken = list(used)
    for candidate in chain.from_iterable(block.subnets(new_prefix=24) for block in _RANGES):
        if not any(candidate.overlaps(subnet) for subnet in taken):
            return candidate
    raise TestbedError("No free subnet is left for another bed; remove one (`status` lists them) or a Docker network.")


def free_addresses(subnet: Subnet, used: Collection[str]) -> Iterator[str]:
    """Addresses for further hosts, in order, without the ones in use."""
    return (str(address) for address in list(subnet.hosts())[_FIRST_HOST - 1 :] if str(address) not in used)


def parse_routes(table: str) -> list[Subnet]:
    """Destinations in the kernel's routing table (/proc/net/route), without the default route."""
    routes = []
    for line in table.splitlines()[1:]:
        destination, mask = (_address(line.split()[column]) for column in (1, 7))
        if mask != "0.0.0.0":
            routes.append(Subnet(f"{destination}/{mask}"))
    return routes


def default_device(table: str) -> str | None:
    """The network device of the default route in the kernel's routing table, None if there is no such route."""
    rows = (line.split() for line in table.splitlines()[1:])
    return next((row[0] for row in rows if row[1] == row[7] == "00000000"), None)


def parse_nameservers(text: str) -> list[Subnet]:
    """The IPv4 name servers of a resolv.conf, each as a network of one address."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver" and ":" not in words[1]:
            found.append(Subnet(words[1]))
    return found


def _address(field: str) -> str:
    """An address as the kernel prints it: hexadecimal, in the machine's byte order."""
    return socket.inet_ntoa(struct.pack("=I", int(field, 16)))


def _subnets_in_use() -> list[Subnet]:
    used = parse_routes(Path("/proc/net/route").read_text())
    used += parse_nameservers(Path("/etc/resolv.conf").read_text())
    for details in json.loads(docker("network", "inspect", *docker("network", "ls", "--quiet").split())):
        for pool in details["IPAM"]["Config"] or ():
            if ":" not in pool["Subnet"]:
                used.append(Subnet(pool["Subnet"]))
    return used


def _uplink_mtu() -> int:
    """The largest packet that leaves this machine, in bytes: Docker would assume 1500 and stall behind a tunnel."""
    device = default_device(Path("/proc/net/route").read_text())
    return int(Path(f"/sys/class/net/{device}/mtu").read_text()) if device else 1500
