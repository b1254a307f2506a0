# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Docker Engine: find it; install and start it where that is ours to do; stop it again if we started it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
from pathlib import Path

from .host import read_os_release
from .shell import TestbedError, attempt, run, wait_until

# Remembers, until the machine's next start, that the engine is ours to stop.
_RECORD = Path("/run/llm-testbed-engine.json")
_LOG = Path("/var/log/llm-testbed-dockerd.log")
_LEGACY_IPTABLES = Path("/run/llm-testbed-iptables")
_START_SECONDS = 60
_STOP_SECONDS = 30


def docker(*arguments: str, stdin: bytes | None = None) -> str:
    """Run the docker client; returns its output, raises TestbedError with what it complained about."""
    return run(["docker", *arguments], stdin=stdin)


def engine_answers() -> bool:
    """Whether the docker client is there and a Docker Engine answers it."""
    return attempt(["docker", "version", "--format", "{{.Server.Version}}"], timeout=20).returncode == 0


def cgroup_version() -> int:
    """1 (also on hybrid hosts) or 2: what the engine puts containers into."""
    return int(docker("info", "--format", "{{.CgroupVersion}}"))


def ensure_engine() -> str:
    """Have a Docker Engine that answers, installing and starting it if need be; returns what was done.

    Raises TestbedError where that is not ours to do, saying what the user has to do.
    """
    if platform.system() != "Linux":
        raise TestbedError("The test bed needs Linux: its hosts are reached on a local Docker network. Run it in a VM.")
    if engine_answers():
        return "answers"
    if os.geteuid() != 0:
        problem = attempt(["docker", "version"], timeout=20).stderr.strip().splitlines()
        raise TestbedError(
            f"No Docker Engine answers ({problem[-1] if problem else 'no reason given'}). Start it and make sure that "
            "this user may use it (group docker), or run the test bed as root."
        )
    if shutil.which("dockerd") is None or shutil.which("docker") is None:
        _install_engine()
    _start_engine()
    return "started"


def install_packages(*names: str) -> None:
    """Install Debian packages on this machine; the caller has made sure that we are root."""
    release = read_os_release()
    if not {"debian", "ubuntu"} & {release.get("ID", ""), *release.get("ID_LIKE", "").split()}:
        raise TestbedError(
            f"{', '.join(names)} must be installed first; this machine is not Debian or Ubuntu, so install the "
            "like with its package manager, then try again."
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    if not _has_systemd():
        environment["RUNLEVEL"] = "1"  # keeps the package's init script from starting the service behind our back
    apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    run([*apt, "update"], env=environment)
    run([*apt, "install", "-y", "--no-install-recommends", *names], env=environment)


def stop_own_engine() -> bool:
    """Stop the engine if we started it and nothing runs in it; whether it was stopped.

    What is left is what any stopped engine leaves: its images (our cache) and its empty bridge.
    """
    record = _read_record()
    if record is None or docker("ps", "--quiet"):
        return False
    pid, start = record
    if pid is None:
        run(["systemctl", "stop", "docker.socket", "docker.service"])
    elif process_start(pid) != start:
        _RECORD.unlink()  # ours has ended; the one that answers was started by somebody else
        return False
    else:
        os.kill(pid, signal.SIGTERM)
        if not wait_until(lambda: process_start(pid) != start, _STOP_SECONDS):
            raise TestbedError(f"dockerd (process {pid}) did not stop within {_STOP_SECONDS} s; see {_LOG}.")
    _RECORD.unlink()
    _LOG.unlink(missing_ok=True)
    _remove_legacy_iptables()
    return True


def process_start(pid: int) -> str | None:
    """When a process was started, in clock ticks since boot; None if there is none. Tells a reused pid apart."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]


def parse_pid(text: str) -> int | None:
    """The process id in a pid file; None if it holds none."""
    return int(text) if text.strip().isdigit() else None


def _install_engine() -> None:
    install_packages("docker.io")
    if shutil.which("docker") is None:
        install_packages("docker-cli")  # Debian 13 and later keep the client apart


def _has_systemd() -> bool:
    return Path("/run/systemd/system").is_dir()


def _start_engine() -> None:
    pid = None
    if _has_systemd():
        attempt(["systemctl", "start", "docker.service"])
    else:
        pid = _spawn_dockerd()
    if wait_until(engine_answers, _START_SECONDS, every=0.5):
        _RECORD.write_text(json.dumps({"pid": pid, "start": process_start(pid) if pid else None}))
        return
    if pid is None:
        tail = attempt(["journalctl", "--no-pager", "-n", "15", "-u", "docker.service"]).stdout
    else:
        attempt(["kill", str(pid)])
        tail = "\n".join(_LOG.read_text(errors="replace").splitlines()[-15:])
    raise TestbedError(
        f"Docker Engine was started but did not answer within {_START_SECONDS} s. Its log ends with:\n{tail}\n"
        "Fix what it complains about (`docker version` shows whether client and engine speak), then try again."
    )


def _spawn_dockerd() -> int:
    """Start dockerd so that it outlives this program and its terminal; returns its process id."""
    for pid_file in (Path("/run/docker.pid"), Path("/run/docker/containerd/containerd.pid")):
        _forget_stale_pid(pid_file)
    environment = dict(os.environ)
    folder = _legacy_iptables_folder()
    if folder:
        environment["PATH"] = f"{folder}:{environment.get('PATH', os.defpath)}"
    with _LOG.open("ab") as log:
        process = subprocess.Popen(
            ["dockerd"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    return process.pid


def _forget_stale_pid(pid_file: Path) -> None:
    """Remove a pid file whose number belongs to nobody or to another program: dockerd would refuse to start."""
    if not pid_file.is_file():
        return
    pid = parse_pid(pid_file.read_text())
    try:
        program = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        program = ""
    if program not in ("dockerd", "containerd"):
        pid_file.unlink()


def _legacy_iptables_folder() -> Path | None:
    """A folder to put before dockerd's PATH if only the legacy iptables works on this kernel.

    A folder of links leaves the machine's own choice (update-alternatives) alone.
    """
    if _lists_nat("iptables"):
        return None
    if not _lists_nat("iptables-legacy"):
        raise TestbedError(
            "Docker Engine needs iptables, and neither the nft nor the legacy variant works here "
            "(`iptables -t nat -L` tells why). Load the kernel's netfilter modules, then try again."
        )
    _LEGACY_IPTABLES.mkdir(exist_ok=True)
    for name in ("iptables", "ip6tables"):
        link, target = _LEGACY_IPTABLES / name, shutil.which(f"{name}-legacy")
        if target and not link.is_symlink():
            link.symlink_to(target)
    return _LEGACY_IPTABLES


def _remove_legacy_iptables() -> None:
    if _LEGACY_IPTABLES.is_dir():
        for name in ("iptables", "ip6tables"):
            (_LEGACY_IPTABLES / name).unlink(missing_ok=True)
        _LEGACY_IPTABLES.rmdir()


def _lists_nat(command: str) -> bool:
    return attempt([command, "-t", "nat", "-n", "-L"]).returncode == 0


def _read_record() -> tuple[int | None, str | None] | None:
    """Process id and start of the engine that we started (no process id: a systemd service); None if we did not."""
    try:
        record = json.loads(_RECORD.read_text())
    except FileNotFoundError:
        return None
    return record["pid"], record["start"]
