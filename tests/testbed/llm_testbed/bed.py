# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bed: hosts as containers that run systemd, on their own network, reachable by SSH."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .engine import cgroup_version, docker
from .image import image_id
from .network import BED_LABEL, network_name
from .shell import TestbedError, attempt, side_by_side, wait_until
from .ssh import logs_in, write_ssh_files, write_whole

_SYSTEM_LABEL = f"{BED_LABEL}.system"
_SPEC_LABEL = f"{BED_LABEL}.spec"
_BOOT_SECONDS = 90
_SSH_SECONDS = 30


@dataclass(frozen=True)
class Host:
    """A container of a bed, as Docker has it."""

    name: str
    container: str
    system: str
    image: str
    address: str
    spec: str
    state: str


@dataclass(frozen=True)
class Wanted:
    """A host that a bed shall have; `ports` are (port on this machine's loopback, port of the host)."""

    name: str
    system: str
    ports: tuple[tuple[int, int], ...] = ()


def find_hosts(bed: str) -> dict[str, Host]:
    """The bed's containers by host name, whatever state they are in."""
    ids = docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={BED_LABEL}={bed}").split()
    if not ids:
        return {}
    hosts = []
    for details in json.loads(docker("container", "inspect", *ids)):
        labels = details["Config"]["Labels"]
        network = details["NetworkSettings"]["Networks"].get(network_name(bed)) or {}
        hosts.append(
            Host(
                name=details["Config"]["Hostname"],
                container=details["Name"].lstrip("/"),
                system=labels[_SYSTEM_LABEL],
                image=details["Config"]["Image"],
                address=(network.get("IPAMConfig") or {}).get("IPv4Address", ""),
                spec=labels[_SPEC_LABEL],
                state=details["State"]["Status"],
            )
        )
    return {host.name: host for host in sorted(hosts, key=lambda host: host.name)}


def ensure_hosts(
    bed: str, wanted: Sequence[Wanted], tags: Mapping[str, str], addresses: Mapping[str, str], public_key: str
) -> None:
    """Have each wanted host running with systemd up: keep it, start it, or make it (anew)."""
    present = find_hosts(bed)
    version = cgroup_version()
    ids = {tag: image_id(tag) for tag in tags.values()}

    def ensure(host: Wanted) -> None:
        tag = tags[host.system]
        arguments = create_arguments(bed, host, tag, addresses[host.name], version)
        spec = hashlib.sha256("\0".join([ids[tag], *arguments]).encode()).hexdigest()
        container = container_name(bed, host.name)
        found = present.get(host.name)
        if found and found.spec != spec:
            docker("rm", "--force", "--volumes", container)
            found = None
        if found is None:
            docker("create", "--label", f"{_SPEC_LABEL}={spec}", *arguments)
        docker("cp", "-", f"{container}:/", stdin=root_key_archive(public_key))
        if found is None or found.state != "running":
            docker("start", container)
        _wait_for_systemd(host.name, container)

    side_by_side(ensure, wanted)


def assign_addresses(names: Iterable[str], present: Mapping[str, Host], free: Iterable[str]) -> dict[str, str]:
    """Host name → address: hosts that are there keep theirs, the others get free ones in order."""
    spare = iter(free)
    return {name: present[name].address if name in present else next(spare) for name in names}


def create_arguments(bed: str, host: Wanted, tag: str, address: str, cgroups: int) -> list[str]:
    """Arguments of `docker create` for a host whose PID 1 is systemd, without `--privileged`."""
    arguments = ["--name", container_name(bed, host.name), "--hostname", host.name]
    arguments += ["--label", f"{BED_LABEL}={bed}", "--label", f"{_SYSTEM_LABEL}={host.system}"]
    arguments += ["--network", network_name(bed), "--ip", address, "--network-alias", host.name]
    # systemd mounts and sandboxes (SYS_ADMIN, no seccomp filter, no AppArmor profile); nftables needs NET_ADMIN.
    arguments += ["--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN"]
    arguments += ["--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"]
    # systemd makes its own groups below the container's, for which it must see the host's tree.
    arguments += ["--cgroupns", "host", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup:rw"]
    if cgroups == 1:
        # From version 256 on, systemd refuses to run on v1 and hybrid hosts unless told so.
        arguments += ["--env", "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"]
    # Docker's tmpfs is noexec and 1777 unless told otherwise; pip and ansible build and run things in /tmp.
    for mount in ("/run:mode=755", "/run/lock:mode=1777", "/tmp:exec,mode=1777,size=2g"):
        arguments += ["--tmpfs", mount]
    for outer, inner in host.ports:
        arguments += ["--publish", f"127.0.0.1:{outer}:{inner}"]
    return [*arguments, tag]


def container_name(bed: str, host: str) -> str:
    """The name of a host's container."""
    return f"{network_name(bed)}-{host}"


def root_key_archive(public_key: str) -> bytes:
    """What lets our key in as root: a tar archive with /root/.ssh, owned by root whoever runs this."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        folder = tarfile.TarInfo("root/.ssh")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(folder)
        content = public_key.encode()
        file = tarfile.TarInfo("root/.ssh/authorized_keys")
        file.size, file.mode = len(content), 0o600
        tar.addfile(file, io.BytesIO(content))
    return archive.getvalue()


def write_state(bed: str, folder: Path) -> dict[str, Host]:
    """Write the state folder's files for the bed's running hosts, and wait until SSH logs in; returns the hosts."""
    hosts = {name: host for name, host in find_hosts(bed).items() if host.state == "running"}
    addresses = {name: host.address for name, host in hosts.items()}
    keys = side_by_side(_host_keys, hosts.values())
    write_ssh_files(folder, addresses, dict(zip(hosts, keys, strict=True)))
    write_whole(folder / "hosts.json", render_hosts_json(hosts))

    def check(name: str) -> None:
        if not wait_until(lambda: logs_in(folder, name), _SSH_SECONDS):
            raise TestbedError(
                f"{name} does not let us in by SSH after {_SSH_SECONDS} s; `ssh -v -F {folder / 'ssh_config'} {name}` "
                f"and `docker exec {hosts[name].container} journalctl -u ssh` tell why."
            )

    side_by_side(check, hosts)
    return hosts


def render_hosts_json(hosts: Mapping[str, Host]) -> str:
    """hosts.json: host name → address, system, image, container."""
    fields = ("address", "system", "image", "container")
    content = {name: {field: getattr(host, field) for field in fields} for name, host in hosts.items()}
    return json.dumps(content, indent=2) + "\n"


def remove_hosts(bed: str) -> int:
    """Remove the bed's containers with their anonymous volumes; how many there were."""
    containers = [host.container for host in find_hosts(bed).values()]
    if containers:
        docker("rm", "--force", "--volumes", *containers)
    return len(containers)


def _wait_for_systemd(name: str, container: str) -> None:
    state = ""

    def is_up() -> bool:
        nonlocal state
        state = attempt(["docker", "exec", container, "systemctl", "is-system-running"]).stdout.strip()
        return state in ("running", "degraded")

    if not wait_until(is_up, _BOOT_SECONDS):
        raise TestbedError(
            f"systemd on {name} is not up after {_BOOT_SECONDS} s (it says: {state or 'nothing'}); "
            f"`docker exec {container} systemctl list-jobs` and `docker logs {container}` tell why."
        )
    if state == "degraded":
        command = ["docker", "exec", container, "systemctl", "--failed", "--plain", "--no-legend"]
        units = [line.split()[0] for line in attempt(command).stdout.splitlines() if line.strip()]
        print(f"  {name} is up, but these units failed: {' '.join(units)}", flush=True)


def _host_keys(host: Host) -> list[str]:
    """A host's public SSH keys, asked for without SSH."""
    keys = docker("exec", host.container, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub")
    return keys.splitlines()
