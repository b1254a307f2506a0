# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""``llm cluster logs`` on two balancers whose logs are files here, and on a node whose journalctl is a stand-in."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from cli.conftest import Cluster, Place, closed_port, processes_of

JOURNALCTL = """#!/bin/sh
# SIMULATED: one entry to begin with, another one after its cursor.
case "$*" in
  *--after-cursor=s=1*) number=2 ;;
  *--after-cursor=*) exit 0 ;;
  *) number=1 ;;
esac
echo '{"__CURSOR": "s='$number'", "__REALTIME_TIMESTAMP": "179540640'$number'000000",'\\
     '"_SYSTEMD_UNIT": "ollama.service", "MESSAGE": "entry '$number'"}'
"""


def line(second: int) -> str:
    who = {
        "time": f"2026-11-23T04:00:{second:02}+00:00",
        "key": "team-a",
        "model": "gemma3:4b",
        "peer": f"node{second}",
    }
    return json.dumps({**who, "status": 200, "total": 1.5, "prompt_tokens": 7, "completion_tokens": 9}) + "\n"


@pytest.fixture
def logs(folder: Path, tmp_path: Path) -> list[Path]:
    """The logs of two balancers."""
    nodes = (folder / "nodes.yml").read_text().replace("    balancer:\n", "    balancer:\n    balancer2:\n")
    (folder / "nodes.yml").write_text(nodes)
    files = [tmp_path / f"{host}.log" for host in ("balancer", "balancer2")]
    for number, file in enumerate(files):
        file.write_text("".join(line(second) for second in range(1 + number, 7, 2)))
        (folder / "host_vars" / f"{file.stem}.yml").write_text(f"balancer_access_log: {file}\n")
    return files


def test_who_answered_what_is_shown_of_all_balancers_by_time(cluster: Cluster, logs: list[Path], place: Place) -> None:
    shown = cluster("logs", "-n", "4", TZ="UTC")
    assert shown.returncode == 0, shown.stderr
    head, *rows = [row.split() for row in shown.stdout.splitlines()]
    assert head == ["time", "balancer", "status", "seconds", "tokens", "model", "peer", "key", "error"]
    assert [(row[1], row[2], row[7]) for row in rows] == [
        ("04:00:03", "balancer", "node3"),
        ("04:00:04", "balancer2", "node4"),
        ("04:00:05", "balancer", "node5"),
        ("04:00:06", "balancer2", "node6"),
    ]
    raw = cluster("logs", "balancer", "--json", "-n", "1")
    assert raw.stdout == line(5)
    # What only looks leaves no log that pushes those of work out.
    assert list((place.home / ".local" / "state" / "llm-cluster" / "office").iterdir()) == []


def test_a_balancer_that_can_not_be_reached_is_named_and_the_others_are_shown(
    cluster: Cluster, logs: list[Path], folder: Path
) -> None:
    (folder / "host_vars" / "balancer2.yml").write_text(
        f"ansible_connection: ssh\nansible_host: 127.0.0.1\nansible_port: {closed_port()}\n"
    )
    shown = cluster("logs", "-n", "1")
    assert shown.returncode == 4, shown.stdout + shown.stderr
    assert "node5" in shown.stdout
    assert "balancer2: not reached" in shown.stderr
    assert "Connection refused" in shown.stderr
    logs[0].unlink()
    (folder / "host_vars" / "balancer2.yml").write_text(f"balancer_access_log: {logs[1]}\n")
    gone = cluster("logs", "-n", "1")
    assert gone.returncode == 1
    assert f"There is no {logs[0]}" in gone.stderr
    assert "node6" in gone.stdout
    wrong = cluster("logs", "nodeX")
    assert (wrong.returncode, "Did you mean node2 or node1?" in wrong.stderr) == (2, True)


def test_following_shows_what_comes_over_a_rotation_and_ends_by_ctrl_c(
    place: Place, folder: Path, logs: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "output"
    with output.open("w") as stream:
        following = subprocess.Popen(
            [str(place.python.parent / "llm"), "cluster", "logs", "-f", "-n", "1"],
            cwd=folder,
            env={**place.environment, "TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )

    def seen(words: str) -> None:
        deadline = time.monotonic() + 30
        while words not in output.read_text():
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)

    seen("node5")
    seen("node6")
    with logs[0].open("a") as writer:
        writer.write(line(7))
        writer.flush()
        seen("node7")
        logs[0].rename(tmp_path / "balancer.log.1")
        logs[0].touch()
        writer.write(line(8))
    seen("node8")
    with logs[0].open("a") as writer:
        writer.write(line(9))
    seen("node9")
    began = time.monotonic()
    following.send_signal(signal.SIGINT)
    assert following.wait(30) == 0, output.read_text()
    assert time.monotonic() - began < 10
    assert "Stopped" not in output.read_text()
    assert output.read_text().count("balancer") == len(output.read_text().splitlines())
    assert processes_of(folder) == []


def test_a_nodes_journal_is_followed(place: Place, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "journalctl").write_text(JOURNALCTL)
    (tmp_path / "bin" / "journalctl").chmod(0o755)
    environment = {**place.environment, "TZ": "UTC"}
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"
    following = subprocess.Popen(
        [str(place.python.parent / "llm"), "cluster", "logs", "node1", "-f", "-n", "1"],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout
    assert [following.stdout.readline() for _ in range(2)] == [
        "2026-11-23 04:00:01  ollama  entry 1\n",
        "2026-11-23 04:00:02  ollama  entry 2\n",
    ]
    following.send_signal(signal.SIGTERM)
    assert following.wait(30) == 0
