#!/usr/bin/python

# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: model_share
short_description: Serve a node's model files to the other nodes for a while
description:
  - Starts a small server on the node that gives model files, by digest, to the addresses in O(allowed) that show
    O(token); also files that the node is fetching itself, as they grow. V(llm.cluster.model) takes from it what stands
    in its option C(models[].peers).
  - It runs as C(llm-cluster-share.service), a transient unit that systemd ends after O(runtime_max) at the latest. The
    unit can read the two folders and nothing else of the node's data, and can write nothing but its own C(/tmp).
  - A server that is left from an interrupted run is replaced.
author:
  - llm.cluster contributors (@llm-cluster)
attributes:
  check_mode:
    support: full
    description: Says whether the server would be started, replaced or stopped.
  diff_mode:
    support: full
    description: Where the server listens, before and after.
options:
  state:
    description: Whether the server runs. V(stopped) also removes its program and its token.
    type: str
    default: started
    choices: [started, stopped]
  address:
    description: The address to listen on. Needed for V(started), as the options below.
    type: str
  port:
    description: The port to listen on.
    type: int
    default: 8090
  token:
    description:
      - What the other nodes have to show, of at least 16 letters, digits and C(._~-). Made anew for each run.
      - The unit and this node's own fetches read it from RV(token_file), which only root can read.
    type: str
  allowed:
    description: The nodes' IP addresses. Connections from others are closed at once.
    type: list
    elements: str
  models_dir:
    description: Where the whole files are.
    type: path
  partial_dir:
    description: Where files grow while they are fetched.
    type: path
  runtime_max:
    description: Longest time for which the server runs, in seconds, if nobody stops it.
    type: int
    default: 14400
  max_rate:
    description: Bytes per second that it sends at most, to all nodes together. V(0) is unbounded.
    type: int
    default: 0
"""

EXAMPLES = r"""
- name: Serve this node's models to the other nodes, for an hour at most
  llm.cluster.model_share:
    address: 192.0.2.11
    port: 8090
    token: "{{ share_token }}"
    allowed: [192.0.2.11, 192.0.2.12, 192.0.2.13]
    models_dir: /var/lib/llama-cpp/models
    partial_dir: /var/lib/llama-cpp/partial
    runtime_max: 3600

- name: Stop that
  llm.cluster.model_share:
    state: stopped
"""

RETURN = r"""
unit:
  description: The server's unit.
  returned: success
  type: str
  sample: llm-cluster-share.service
token_file:
  description: The file on the node that holds the token while the server runs.
  returned: success
  type: str
  sample: /run/llm-cluster/share/token
"""

import contextlib
import hashlib
import inspect
import ipaddress
import json
import os
import re
import shutil
import socket
import sys
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.llm.cluster.plugins.module_utils import _share_server
from ansible_collections.llm.cluster.plugins.module_utils._engines._ollama_store import OllamaStore

UNIT = "llm-cluster-share.service"
FOLDER = "/run/llm-cluster/share"
# Longest time until the server answers, and until systemd has ended it.
START_SECONDS = 20.0
STOP_SECONDS = 30.0
NEEDED = ("address", "token", "allowed", "models_dir", "partial_dir")
# What of the root folder a Python program needs, or systemd hides in its own way.
KEPT = ("bin", "dev", "home", "lib", "lib32", "lib64", "libx32", "proc", "root", "sbin", "sys", "tmp", "usr")

HARDENING = {
    "DevicePolicy": "closed",
    "DynamicUser": "yes",
    "IPAddressDeny": "any",
    "KeyringMode": "private",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "MemoryMax": "512M",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProcSubset": "pid",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHome": "tmpfs",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "ProtectSystem": "strict",
    "RemoveIPC": "yes",
    "RestrictAddressFamilies": "AF_INET AF_INET6",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "SystemCallArchitectures": "native",
    "TasksMax": "256",
    "UMask": "0077",
}
# In this order: the second takes away from the first.
SYSTEM_CALLS = ("@system-service", "~@privileged @resources")


class ShareError(Exception):
    """The server could not be started or stopped; the message says what to do next."""


def check(params: dict[str, Any]) -> None:
    """Raise ShareError for options that cannot work."""
    missing = [name for name in NEEDED if not params[name]]
    if missing:
        raise ShareError(f"state is started, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
    if not re.fullmatch(r"[A-Za-z0-9._~-]{16,200}", params["token"]):
        raise ShareError("token must have at least 16 letters, digits and ._~- and no other characters.")
    if not 0 < params["port"] < 65536:
        raise ShareError(f"port {params['port']} is not a port number.")
    for address in [params["address"], *params["allowed"]]:
        try:
            ipaddress.ip_address(address)
        except ValueError as error:
            raise ShareError(f"{address!r} is not an IP address: set llm_address of that node to one.") from error
    for name in ("models_dir", "partial_dir"):
        if not re.fullmatch(r"/[^\s:\"'\\%]+", params[name]):
            raise ShareError(f"{name}: {params[name]} must be absolute, without spaces, quotes, colons and the like.")


def hidden_folders(names: list[str]) -> list[str]:
    """Return those of the root folder's entries that the server need not see."""
    return ["/" + name for name in sorted(names) if name not in KEPT]


def reading_capability(status: str) -> str:
    """Return the one capability that lets the server read files of root and of the engine, from /proc/self/status.

    Containers often lack the one that is for reading only. What the unit sees is mounted read-only in either case.
    """
    found = re.search(r"^CapBnd:\s*([0-9a-f]+)$", status, re.MULTILINE)
    only_read = not found or int(found.group(1), 16) & 1 << 2
    return "CAP_DAC_READ_SEARCH" if only_read else "CAP_DAC_OVERRIDE"


def properties(params: dict[str, Any], hidden: list[str], capability: str) -> list[str]:
    """Return the unit's properties."""
    visible = [params["models_dir"], params["partial_dir"], FOLDER]
    allowed = [*params["allowed"], params["address"]]
    values = {
        **HARDENING,
        "AmbientCapabilities": capability,
        "CapabilityBoundingSet": capability,
        "BindReadOnlyPaths": " ".join(visible),
        "Description": "Model files for the other nodes of the cluster",
        "IPAddressAllow": " ".join(dict.fromkeys(allowed)),
        "RuntimeMaxSec": str(params["runtime_max"]),
        "TemporaryFileSystem": " ".join(path + ":ro" for path in hidden),
    }
    pairs = [f"{name}={value}" for name, value in sorted(values.items())]
    return [*pairs, *("SystemCallFilter=" + calls for calls in SYSTEM_CALLS)]


def command(params: dict[str, Any], python: str, hidden: list[str], capability: str) -> list[str]:
    """Return the command that starts the unit. The token isn't in it."""
    options = {
        "address": params["address"],
        "port": str(params["port"]),
        "models-dir": params["models_dir"],
        "partial-dir": params["partial_dir"],
        "allowed": ",".join(params["allowed"]),
        "max-rate": str(params["max_rate"]),
        "token-file": f"{FOLDER}/token",
    }
    return [
        *("systemd-run", "--quiet", "--collect", "--service-type=exec", "--unit=" + UNIT),
        *("--property=" + pair for pair in properties(params, hidden, capability)),
        *("--", python, "-I", "-S", "-B", f"{FOLDER}/server.py"),
        *(f"--{name}={value}" for name, value in options.items()),
    ]


def fingerprint(started: list[str], token: str, program: str) -> str:
    """Return what tells this server from one that was started otherwise."""
    return hashlib.sha256(json.dumps([started, token, program]).encode()).hexdigest()


def ask(address: str, port: int) -> bool:
    """Whether the server answers; without a token it says 401."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=2) as connection:
        connection.sendall(b"HEAD / HTTP/1.1\r\n\r\n")
        return connection.recv(64).startswith(b"HTTP/1.1 401 ")
    return False


class Share:
    """The server on this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params

    def _run(self, *words: str) -> tuple[int, str]:
        code, out, err = self.module.run_command(list(words))
        return code, (out + err).strip()

    @property
    def _state(self) -> str:
        """What systemd says of the unit: active, activating, failed, inactive …"""
        return self._run("systemctl", "is-active", UNIT)[1].splitlines()[-1]

    @property
    def noted(self) -> dict[str, Any]:
        """What was noted when the server was started."""
        with contextlib.suppress(OSError, ValueError), open(f"{FOLDER}/started.json", encoding="utf-8") as stream:
            return dict(json.load(stream))
        return {}

    @property
    def runs(self) -> bool:
        """Whether there is a server, in whatever state."""
        return self._state not in ("inactive", "unknown")

    def start(self) -> bool:
        """Have the server as the options say; return whether that changes anything."""
        check(self.params)
        program = inspect.getsource(_share_server)
        hidden = hidden_folders([name for name in os.listdir("/") if os.path.isdir("/" + name)])
        with open("/proc/self/status", encoding="ascii") as status:
            capability = reading_capability(status.read())
        started = command(self.params, self._python(), hidden, capability)
        mark = fingerprint(started, self.params["token"], program)
        if self.noted.get("mark") == mark and self._state == "active":
            return False
        if self.module.check_mode:
            return True
        self._stop()
        for path in (self.params["models_dir"], self.params["partial_dir"]):
            make_folder(path)
        # Of an Ollama store others ask for the manifests by their digests too.
        OllamaStore(self.params["models_dir"], self.params["partial_dir"]).share_all()
        os.makedirs(os.path.dirname(FOLDER), mode=0o755, exist_ok=True)
        os.mkdir(FOLDER, 0o700)
        write(f"{FOLDER}/server.py", program)
        write(f"{FOLDER}/token", self.params["token"])
        try:
            self._launch(started)
        except ShareError:
            self._stop()
            raise
        write(
            f"{FOLDER}/started.json",
            json.dumps({"mark": mark, "address": self.params["address"], "port": self.params["port"]}),
        )
        return True

    @staticmethod
    def _python() -> str:
        return "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable

    def _launch(self, started: list[str]) -> None:
        address, port = self.params["address"], self.params["port"]
        code, said = self._run(*started)
        if code:
            raise ShareError(f"{UNIT} could not be started: {said}")
        deadline = time.monotonic() + START_SECONDS
        while not ask(address, port):
            state = self._state
            if state not in ("active", "activating") or time.monotonic() > deadline:
                journal = self._run("journalctl", "--unit=" + UNIT, "--lines=5", "--output=cat", "--no-pager")[1]
                raise ShareError(
                    f"{UNIT} does not answer at {address} port {port} ({state}): {journal or 'its journal is empty'}. "
                    "If the port is taken choose another one (llm_share_port)."
                )
            time.sleep(0.05)

    def stop(self) -> bool:
        """Have no server; return whether that changes anything."""
        there = os.path.isdir(FOLDER) or self.runs
        if there and not self.module.check_mode:
            self._stop()
        return there

    def _stop(self) -> None:
        if self.runs:
            code, said = self._run("systemctl", "stop", UNIT)
            deadline = time.monotonic() + STOP_SECONDS
            # A failed unit goes away only when it is told to.
            self._run("systemctl", "reset-failed", UNIT)
            while self.runs:
                if code or time.monotonic() > deadline:
                    raise ShareError(f"{UNIT} could not be stopped: {said}. Look with: systemctl status {UNIT}")
                time.sleep(0.1)
        shutil.rmtree(FOLDER, ignore_errors=True)


def make_folder(path: str) -> None:
    """Create a folder as its nearest parent is owned."""
    if os.path.isdir(path):
        return
    make_folder(os.path.dirname(path))
    os.mkdir(path, 0o755)
    parent = os.stat(os.path.dirname(path))
    os.chown(path, parent.st_uid, parent.st_gid)


def write(path: str, text: str) -> None:
    """Write a file that only its owner can read."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)


def main() -> None:
    """Run as an Ansible module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "default": "started", "choices": ["started", "stopped"]},
            "address": {"type": "str"},
            "port": {"type": "int", "default": 8090},
            "token": {"type": "str", "no_log": True},
            "allowed": {"type": "list", "elements": "str"},
            "models_dir": {"type": "path"},
            "partial_dir": {"type": "path"},
            "runtime_max": {"type": "int", "default": 14400},
            "max_rate": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    share = Share(module)
    noted = share.noted
    before = f"{noted['address']} port {noted['port']}\n" if noted else "stopped\n"
    try:
        started = module.params["state"] == "started"
        changed = share.start() if started else share.stop()
    except (ShareError, OSError) as error:
        module.fail_json(msg=str(error))
    after = f"{module.params['address']} port {module.params['port']}\n" if started else "stopped\n"
    module.exit_json(changed=changed, unit=UNIT, token_file=f"{FOLDER}/token", diff={"before": before, "after": after})


if __name__ == "__main__":
    main()
