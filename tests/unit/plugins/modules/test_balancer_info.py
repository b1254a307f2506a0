# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The module run as Ansible runs it, against a socket with a canned answer."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils import basic
from ansible_collections.llm.cluster.plugins.module_utils import _balancer_state
from ansible_collections.llm.cluster.plugins.modules import balancer_info


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Path) -> dict[str, Any]:
    arguments = {"socket": str(path), "_ansible_check_mode": True}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    with pytest.raises(SystemExit):
        balancer_info.main()
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_returns_the_documented_form(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer = json.dumps(
        {
            "version": 3,
            "peers": [{"name": "n1/a", "node": "n1"}, {"name": "n2", "node": "n2"}, {"name": "n1/b", "node": "n1"}],
        }
    ).encode()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "admin.sock"))
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)

        thread = threading.Thread(target=serve)
        thread.start()
        result = run(monkeypatch, capsys, tmp_path / "admin.sock")
        thread.join()
    assert result["changed"] is False
    assert [peer["name"] for peer in result["nodes"]["n1"]] == ["n1/a", "n1/b"]
    documented = yaml.safe_load(balancer_info.RETURN)
    assert set(documented) == set(result) - {"changed", "invocation", "warnings"}
    # What is in the documentation is in the answer, and the sample shows it all.
    assert set(documented["nodes"]["contains"]) == set(result["nodes"]["n2"][0])
    assert set(documented["nodes"]["sample"]["node1"][0]) == set(result["nodes"]["n2"][0])
    assert set(documented["queue"]["contains"]) == set(documented["queue"]["sample"]) == set(result["queue"])
    assert set(documented["minute"]["contains"]) == set(documented["minute"]["sample"]) == set(result["minute"])
    assert set(result["nodes"]["n2"][0]["minute"]) == set(result["minute"])
    for kind in ("keys", "workers"):
        fields = set(_balancer_state._NOTHING[kind[:-1]])
        assert set(documented[kind]["contains"]) == set(documented[kind]["sample"][0]) == fields


def test_no_balancer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = run(monkeypatch, capsys, tmp_path / "admin.sock")
    assert result["failed"]
    assert "not a balancer" in result["msg"]
