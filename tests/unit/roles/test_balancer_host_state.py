# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What role balancer finds out about a host before it changes anything, and the programs it sends there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from unit.loading import load_file

FILES = Path(__file__).parents[3] / "roles" / "balancer" / "files"


state = load_file(FILES / "host_state.py")

# As /proc/net/tcp has them: 80 listens, 8000 listens, 80 is also the far end of a connection.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0B02AD0A:0050 0102AD0A:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 20 4 30 10 -1
"""


@pytest.mark.parametrize(("port", "inodes"), [(80, ["4711"]), (8000, ["4712"]), (443, [])])
def test_listening_inodes(port: int, inodes: list[str]) -> None:
    assert state.listening_inodes(TCP, port) == inodes


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("1:name=systemd:/docker/abc/system.slice/apache2.service\n", "apache2.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/\n", ""),
    ],
)
def test_unit_of(cgroups: str, unit: str) -> None:
    assert state.unit_of(cgroups) == unit


def listening_host(tmp_path: Path, cgroup: str) -> Path:
    """Make a /proc whose process 42 listens on port 80."""
    process = tmp_path / "42"
    (process / "fd").mkdir(parents=True)
    (process / "fd" / "3").symlink_to("socket:[4711]")
    (process / "comm").write_text("nginx\n")
    (process / "cgroup").write_text(cgroup)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(TCP)
    return tmp_path


def test_nginx_service_is_no_foreign_listener(tmp_path: Path) -> None:
    proc = listening_host(tmp_path, "0::/system.slice/nginx.service\n")
    assert state.foreign_listener(80, proc) is None
    assert state.foreign_listener(443, proc) is None


def test_foreign_listener_is_named(tmp_path: Path) -> None:
    proc = listening_host(tmp_path, "0::/system.slice/docker.service\n")
    assert state.foreign_listener(80, proc) == {"pid": 42, "name": "nginx", "unit": "docker.service"}


def test_listener_outside_our_sight_is_foreign(tmp_path: Path) -> None:
    proc = listening_host(tmp_path, "")
    assert state.foreign_listener(8000, proc)["name"] == "an unknown program"


def test_changed_files() -> None:
    verified = (
        "??5?????? c /etc/nginx/nginx.conf\n"
        "missing     /usr/share/doc/nginx-common/copyright\n"
        "??5??????   /usr/share/nginx/html/index.html\n"
        "?????????   /etc/nginx/mime.types\n"
    )
    assert state.changed_files(verified) == {"/etc/nginx/nginx.conf", "/usr/share/nginx/html/index.html"}


@pytest.mark.parametrize(
    ("text", "changed", "kind"),
    [
        (None, False, "absent"),
        ("# marker\n", True, "ours"),
        ("user www-data;\n", False, "packaged"),
        ("user www-data;\n", True, "foreign"),
    ],
)
def test_conf_kind(text: str | None, changed: bool, kind: str) -> None:
    assert state.conf_kind(text, "marker", changed) == kind


def test_served_elsewhere(tmp_path: Path) -> None:
    for directory in ("sites-available", "sites-enabled", "conf.d"):
        (tmp_path / directory).mkdir()
    default = tmp_path / "sites-available" / "default"
    default.write_text("server {}")
    (tmp_path / "sites-enabled" / "default").symlink_to(default)
    (tmp_path / "conf.d" / "log.conf").write_text("log_format x y;\n# no server { here\n")
    assert state.served_elsewhere(tmp_path, set()) == []
    assert state.served_elsewhere(tmp_path, {str(default)}) == [str(tmp_path / "sites-enabled" / "default")]

    (tmp_path / "sites-enabled" / "shop").symlink_to(default)
    (tmp_path / "conf.d" / "app.conf").write_text("server {\n  listen 8080;\n}\n")
    assert state.served_elsewhere(tmp_path, set()) == [
        str(tmp_path / "sites-enabled" / "shop"),
        str(tmp_path / "conf.d" / "app.conf"),
    ]


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("installed 1.22.1-9", "1.22.1-9"),
        ("half-configured 1.22.1-9", "1.22.1-9"),  # an installation that was interrupted: it is the distribution's
        ("unpacked 1.22.1-9", "1.22.1-9"),
        ("half-installed 1.22.1-9", None),
        ("config-files 1.22.1-9", None),
        (None, None),
    ],
)
def test_package_version(monkeypatch: pytest.MonkeyPatch, said: str | None, version: str | None) -> None:
    monkeypatch.setattr(state, "output", lambda *_: said)
    assert state.package_version("nginx-common") == version


def test_not_loaded(tmp_path: Path) -> None:
    same, changed, gone = (tmp_path / name for name in ("same", "changed", "gone"))
    for path in (same, changed, gone):
        path.write_text("a")
    record = "".join(f"{state.sha256_of(path)}  {path}\n" for path in (same, changed, gone))
    assert state.not_loaded(record) == []
    changed.write_text("b")
    gone.unlink()
    assert state.not_loaded(record) == [str(changed), str(gone)]
    assert state.not_loaded(None) == []


def test_restart_due() -> None:
    drop_in = "ExecStartPost=-/bin/sh -c 'echo \"shared memory: 16 8\" >/run/llm-cluster/started'\nTimeoutStopSec=310\n"
    assert not state.restart_due("shared memory: 16 8", drop_in)
    assert state.restart_due("shared memory: 16 80", drop_in)
    assert state.restart_due("shared memory: 16", drop_in)
    assert state.restart_due("", drop_in), "it was not started by this unit"
    assert state.restart_due("shared memory: 16 8", None)


def install_lua(directory: Path, files: dict[str, str]) -> None:
    """Run the role's program that installs Lua."""
    command = [sys.executable, str(FILES / "install_lua.py"), str(directory)]
    subprocess.run(command, input=json.dumps(files).encode(), check=True)


def test_lua_is_installed_whole(tmp_path: Path) -> None:
    root, files = tmp_path / "lib", {"a.lua": "return 'ü'\n", "b.lua": ""}
    hashes = {name: state.hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    wanted = root / "lua-1"
    assert not state.lua_state(root, wanted, hashes)["intact"]
    install_lua(wanted, files)
    assert state.lua_state(root, wanted, hashes) == {"intact": True, "others": []}
    assert (wanted / "llm_cluster" / "a.lua").read_text(encoding="utf-8") == files["a.lua"]
    assert [path.name for path in root.iterdir()] == ["lua-1"]

    (wanted / "llm_cluster" / "stray.lua").write_text("")
    assert not state.lua_state(root, wanted, hashes)["intact"]
    install_lua(wanted, files)
    assert state.lua_state(root, root / "lua-2", hashes) == {"intact": False, "others": [str(wanted)]}
    assert state.lua_state(root, wanted, hashes)["intact"]


def test_certificate_names() -> None:
    printed = "X509v3 Subject Alternative Name: \n    DNS:Node_1, IP Address:10.0.0.1, IP Address:FD00:0:0:0:0:0:0:1\n"
    assert state.certificate_names(printed) == ["10.0.0.1", "fd00::1", "node_1"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_self_signed_certificate(tmp_path: Path) -> None:
    certificate, key, names = tmp_path / "x.crt", tmp_path / "x.key", ["Balancer", "10.0.0.1", "fd00::1"]

    def problem(names: list[str], renew_before: int = 86400) -> str:
        found: str = state.certificate_problem(certificate, key, names, renew_before)
        return found

    def sign(*arguments: str) -> str:
        command = [sys.executable, str(FILES / "self_sign.py"), str(certificate), str(key), *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    assert problem(names) == "there is none yet"
    assert sign("30", *names) == certificate.read_text()
    assert problem(names) == ""
    assert problem(["balancer", "10.0.0.1", "FD00:0::0001"]) == "", "the same names in another spelling"
    assert problem([*names, "other"]).startswith("it is for other names: 10.0.0.1")
    assert problem(names, renew_before=86400 * 31) == "it ends soon"
    assert key.stat().st_mode & 0o777 == 0o600
    assert certificate.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.crt", "x.key"]

    old = key.read_text()
    sign("30", *names)
    key.write_text(old)
    assert problem(names) == "its key is another certificate's"
