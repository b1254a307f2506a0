# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say what a host has of what role balancer cares about, as one JSON object. Reads only.

Role balancer sends this text to the host's Python and gives it one argument, a JSON object:

marker         text that only our nginx.conf contains
nginx_conf     path of nginx.conf
port           port that the balancer is to listen on
lua_root       directory that holds our Lua directories
lua_directory  the one that is wanted
lua_files      its files: name -> SHA-256
certificate    path of the self-signed certificate, or an empty string
key            path of its key
names          DNS names and addresses that it must be valid for
renew_before   seconds before its end from which on it counts as ended
directories    directories that must exist
files          files that must exist
loaded         file in which nginx.service records what it has loaded
started        file in which nginx.service records with what it was started
drop_in        our part of nginx.service
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

NGINX = "/usr/sbin/nginx"
LISTEN = "0A"
# dpkg's states of a package whose files are here; all but the first are of an installation that was interrupted.
UNPACKED = ("installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending")


def output(*command: str) -> str | None:
    """Return a program's standard output, or None if it is missing or fails without saying anything."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return None
    text = done.stdout.decode("utf-8", "replace")
    return text if done.returncode == 0 or text else None


def text_of(path: Path) -> str | None:
    """Return a file's text, or None if there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def sha256_of(path: Path) -> str | None:
    """Return a file's SHA-256, or None if there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def package_version(name: str) -> str | None:
    """Return the version of a Debian package whose files are here, or None."""
    found = (output("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", name) or "").split()
    return found[1] if len(found) == 2 and found[0] in UNPACKED else None


def changed_files(verified: str) -> set[str]:
    """Return the paths that `dpkg --verify` reports as changed."""
    return {line.split(None, 1)[1].lstrip("c ").strip() for line in verified.splitlines() if line[2:3] == "5"}


def conf_kind(text: str | None, marker: str, changed: bool) -> str:
    """Say whose nginx.conf this is: absent, ours, packaged or foreign."""
    if text is None:
        return "absent"
    if marker in text:
        return "ours"
    return "foreign" if changed else "packaged"


def served_elsewhere(etc: Path, changed: set[str]) -> list[str]:
    """Return the files in nginx's directory that make it serve something that neither we nor the package brought."""
    found = []
    for site in sorted((etc / "sites-enabled").glob("*")):
        target = str(Path(os.path.realpath(str(site))))
        packaged = site.name == "default" and target == str(etc / "sites-available" / "default")
        if not packaged or target in changed:
            found.append(str(site))
    for path in sorted((etc / "conf.d").glob("*.conf")):
        if re.search(r"^\s*server\s*\{", text_of(path) or "", re.MULTILINE):
            found.append(str(path))
    return found


def nginx_state(nginx_conf: Path, marker: str) -> dict[str, Any]:
    """Say what nginx there is and whose configuration it has."""
    version = package_version("nginx-common")
    changed = changed_files(output("dpkg", "--verify", "nginx-common") or "") if version else set()
    text = text_of(nginx_conf)
    kind = conf_kind(text, marker, version is None or str(nginx_conf) in changed)
    return {
        "installed": Path(NGINX).exists(),
        "packaged": version is not None,
        "conf": kind,
        "serves": [] if kind == "ours" else served_elsewhere(nginx_conf.parent, changed),
        "active": (output("systemctl", "is-active", "nginx.service") or "").strip() == "active",
    }


def listening_inodes(table: str, port: int) -> list[str]:
    """Return the socket inodes that listen on the port in the text of /proc/net/tcp or tcp6."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
            found.append(fields[9])
    return found


def owner_of(inode: str, proc: Path) -> dict[str, Any] | None:
    """Return the process that holds a socket."""
    wanted = "socket:[" + inode + "]"
    for directory in proc.glob("[0-9]*"):
        try:
            if any(os.readlink(str(link)) == wanted for link in (directory / "fd").iterdir()):
                return {
                    "pid": int(directory.name),
                    "name": (directory / "comm").read_text().strip(),
                    "unit": unit_of((directory / "cgroup").read_text()),
                }
        except OSError:
            continue  # ended meanwhile
    return None


def unit_of(cgroups: str) -> str:
    """Return the systemd unit in the text of /proc/PID/cgroup, or an empty string."""
    units = re.findall(r"/([^/\s]+\.(?:service|scope|socket))", cgroups)
    return units[-1] if units else ""


def foreign_listener(port: int, proc: Path) -> dict[str, Any] | None:
    """Return the process that listens on the port and is not nginx.service's, or None."""
    inodes = [inode for name in ("tcp", "tcp6") for inode in listening_inodes(text_of(proc / "net" / name) or "", port)]
    for inode in inodes:
        owner = owner_of(inode, proc)
        if owner is None or owner["unit"] != "nginx.service":
            return owner or {"pid": 0, "name": "an unknown program", "unit": ""}
    return None


def lua_state(root: Path, directory: Path, files: dict[str, str]) -> dict[str, Any]:
    """Say whether the wanted Lua directory is whole, and which others there are, newest first."""
    wanted = directory / "llm_cluster"
    present = {path.name: sha256_of(path) for path in wanted.glob("*")}
    others = [path for path in root.glob("lua-*") if path != directory]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return {"intact": present == files, "others": [str(path) for path in others]}


def in_one_spelling(name: str) -> str:
    """Return a DNS name or an address so that equal ones are equal texts: an IPv6 address has many spellings."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def certificate_names(text: str) -> list[str]:
    """Return the names and addresses in what `openssl x509 -ext subjectAltName` prints."""
    found = []
    for part in re.split(r"[,\n]", text):
        kind, _colon, value = part.strip().partition(":")
        if kind in ("DNS", "IP Address"):
            found.append(in_one_spelling(value))
    return sorted(set(found))


def certificate_problem(path: Path, key: Path, names: list[str], renew_before: int) -> str:
    """Say why the self-signed certificate must be made anew, or return an empty string."""
    if not path.exists() or not key.exists():
        return "there is none yet"
    if output("openssl", "x509", "-in", str(path), "-noout", "-pubkey") != output(
        "openssl", "pkey", "-in", str(key), "-pubout"
    ):
        return "its key is another certificate's"
    remaining = ["openssl", "x509", "-in", str(path), "-noout", "-checkend", str(renew_before)]
    if subprocess.run(remaining, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode != 0:
        return "it ends soon"
    found = certificate_names(output("openssl", "x509", "-in", str(path), "-noout", "-ext", "subjectAltName") or "")
    if found != sorted({in_one_spelling(name) for name in names}):
        return "it is for other names: " + ", ".join(found)
    return ""


def certificate_state(wanted: dict[str, Any]) -> dict[str, str]:
    """Say what the self-signed certificate is and why it must be made anew, if so."""
    path, key = Path(wanted["certificate"]), Path(wanted["key"])
    return {
        "problem": certificate_problem(path, key, wanted["names"], int(wanted["renew_before"])),
        "pem": text_of(path) or "",
    }


def not_loaded(record: str | None) -> list[str]:
    """Return the files of a record (lines as sha256sum prints them) that have changed since."""
    lines = [line.split(None, 1) for line in (record or "").splitlines()]
    return [path for digest, path in lines if sha256_of(Path(path)) != digest]


def restart_due(started: str, drop_in: str | None) -> bool:
    """Say whether the written unit would record something else at its next start than it did at this one."""
    return 'echo "' + started + '"' not in (drop_in or "")


def main() -> None:
    wanted = json.loads(sys.argv[1])
    record = text_of(Path(wanted["loaded"]))
    started = (text_of(Path(wanted["started"])) or "").strip()
    state = {
        "nginx": nginx_state(Path(wanted["nginx_conf"]), wanted["marker"]),
        "listener": foreign_listener(int(wanted["port"]), Path("/proc")),
        "lua": lua_state(Path(wanted["lua_root"]), Path(wanted["lua_directory"]), wanted["lua_files"]),
        "certificate": certificate_state(wanted) if wanted["certificate"] else None,
        "missing_directories": [path for path in wanted["directories"] if not Path(path).is_dir()],
        "missing_files": [path for path in wanted["files"] if not Path(path).is_file()],
        "not_loaded": not_loaded(record),
        "started": started,
        "restart_due": restart_due(started, text_of(Path(wanted["drop_in"]))),
    }
    print(json.dumps(state))


if __name__ == "__main__":
    main()
