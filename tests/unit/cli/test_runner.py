# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of Ansible's events: progress, failures with their reasons, summaries and exit codes."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_cluster_ops import _runner
from llm_cluster_ops._errors import RunFailedError
from llm_cluster_ops._progress import Lines, LiveTable
from llm_cluster_ops._runner import Failure, HostState, Recorder, Run, Silent
from rich.console import Console


def new_run(**fields: Any) -> Run:
    return Run("deploy", Path("/logs/x.log"), **fields)


def event(kind: str, host: str | None = "node1", text: str = "", **data: Any) -> dict[str, Any]:
    found = {"play": "Converge", "task": "Install it", **data}
    return {"event": kind, "pid": 42, "stdout": text, "event_data": {**found, **({"host": host} if host else {})}}


@pytest.fixture
def recorder() -> Recorder:
    return Recorder(new_run(), Silent(), io.StringIO())


def test_every_event_is_taken_and_told_where_a_host_is(recorder: Recorder) -> None:
    assert recorder.handle(event("runner_on_start", role="llm.cluster.ollama"))
    assert recorder.run.hosts["node1"] == HostState(phase="ollama", task="Install it", busy=True)
    assert recorder.handle(
        event("runner_on_ok", role="ollama", res={"changed": True}, text="\x1b[0;33mchanged: [node1]")
    )
    assert recorder.run.hosts["node1"] == HostState("ollama", "Install it", False, ok=1, changed=1)
    assert recorder.log.getvalue() == "changed: [node1]\n"
    assert recorder.pid == 42


def test_a_failure_has_host_task_and_reason(recorder: Recorder) -> None:
    recorder.handle(event("runner_on_failed", res={"msg": ["Nothing was changed.", "Use another port."]}))
    recorder.handle(event("playbook_on_stats", None, failures={"node1": 1}, dark={}))
    assert recorder.run.failures == [Failure("node1", "Install it", "Nothing was changed.\nUse another port.")]
    assert recorder.run.exit_code == 1
    assert recorder.run.summary().splitlines()[:3] == [
        "node1: failed at: Install it",
        "    Nothing was changed.",
        "    Use another port.",
    ]


def test_what_a_playbook_rescued_or_ignored_is_no_failure(recorder: Recorder) -> None:
    recorder.handle(event("runner_on_failed", res={"msg": "ignored"}, ignore_errors=True))
    recorder.handle(event("runner_on_failed", res={"msg": "rescued"}))
    recorder.handle(event("runner_on_unreachable", "node2", res={"msg": "away"}))
    recorder.handle(event("playbook_on_stats", None, failures={}, dark={}, rescued={"node1": 1}))
    assert recorder.run.failures == []
    assert recorder.run.exit_code == 0


def test_a_host_that_was_not_reached_and_then_failed_for_it_was_not_reached(recorder: Recorder) -> None:
    recorder.handle(event("runner_on_unreachable", res={"msg": "Connection refused"}))
    recorder.handle(event("runner_on_failed", res={"msg": "not all balancers"}))
    recorder.handle(event("playbook_on_stats", None, failures={"node1": 1}, dark={}))
    assert recorder.run.exit_code == 4
    recorder.handle(event("runner_on_failed", "node2", res={"msg": "broken"}))
    assert recorder.run.exit_code == 1


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"msg": "Task failed: no"}, "no"),
        ({"msg": "", "stderr": "a\nb"}, "a\nb"),
        ({"msg": "MODULE FAILURE", "module_stderr": "Traceback\n  x\nOSError: disk"}, "OSError: disk"),
        ({"msg": "All items", "results": [{"failed": True, "msg": "one"}, {"msg": "fine"}]}, "one"),
        ({"censored": "the output has been hidden"}, "Its output holds secrets and is not shown."),
        ({}, "no reason was given; see the log"),
    ],
)
def test_reasons(result: dict[str, Any], reason: str) -> None:
    assert _runner.reason_of(result) == reason


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("ssh: connect to host x port 22: Connection refused", "The host is off"),
        ("ops@x: Permission denied (publickey).", "The user or the key"),
        ("Host key verification failed.", "This machine doesn't know"),
    ],
)
def test_the_likeliest_cause_comes_first_of_three(words: str, first: str) -> None:
    lines = _runner.reach_advice(words).splitlines()
    assert lines[1].startswith(f"1. {first}")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("said", "ours"),
    [
        (
            "Lock it with: ansible-playbook playbooks/lock.yml -i INVENTORY --check",
            "Lock it with: llm cluster lock --check",
        ),
        ("run llm.cluster.sync", "run llm.cluster.sync"),
        (
            "/x/models.lock.yml is not up to date. Run lock.yml",
            "/x/models.lock.yml is not up to date. Run llm cluster lock",
        ),
        ("ansible-playbook llm.cluster.site -i INVENTORY", "llm cluster deploy"),
        ("then run sync.yml again, see main.yml", "then run llm cluster sync again, see main.yml"),
        ("run sync.yml again with -e sync_take_over=true.", "run llm cluster sync again with --take-over."),
    ],
)
def test_messages_name_our_commands(said: str, ours: str) -> None:
    assert _runner.in_our_words(said) == ours


def test_what_ansible_says_before_any_host_is_the_reason(recorder: Recorder) -> None:
    recorder.handle(event("verbose", None, text="[ERROR]: the playbook could not be found"))
    recorder.finish(1)
    assert recorder.run.failures[0].reason == "[ERROR]: the playbook could not be found"


def test_a_playbook_that_is_killed_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "office"
    folder.mkdir()
    (folder / "nodes.yml").write_text("llm_nodes: {hosts: {node1: {ansible_connection: local}}}\n")
    # A lookup runs in a worker; that one's parent is ansible-playbook.
    (folder / "killed.yml").write_text(
        "- name: Work\n  hosts: llm_nodes\n  gather_facts: false\n  tasks:\n    - ansible.builtin.debug:\n"
        "        msg: \"{{ lookup('pipe', 'kill -9 $(ps -o ppid= -p $PPID)') }}\"\n"
    )
    with pytest.raises(RunFailedError, match="ansible-playbook was killed") as failed:
        _runner.run_playbook(folder, folder / "killed.yml", name="killed")
    assert failed.value.exit_code == 1
    assert [(failure.host, failure.task) for failure in failed.value.run.failures] == [("this machine", "Work")]


def test_a_kill_counts_beside_hosts_that_were_not_reached(recorder: Recorder) -> None:
    recorder.handle(event("runner_on_unreachable", res={"msg": "away"}))
    recorder.finish(None)
    assert recorder.run.exit_code == 1


def test_reports_of_the_playbooks_are_kept_as_messages_once(recorder: Recorder) -> None:
    recorder.handle(event("playbook_on_task_start", None, task_action="llm.cluster.show"))
    recorder.handle(event("verbose", None, text="node1  up"))
    recorder.handle(event("playbook_on_task_start", None, task_action="ansible.builtin.debug"))
    recorder.handle(event("verbose", None, text="chatter"))
    for host in ("node1", "node2"):
        recorder.handle(event("runner_on_ok", host, task_action="ansible.builtin.debug", res={"msg": ["a", "b"]}))
    assert recorder.run.messages == ["node1  up", "a\nb"]


def test_diffs_are_told_as_they_are(recorder: Recorder) -> None:
    diff = "--- before: /x/site.yml\n+++ after: /x/site.yml\n-a\n+b"
    recorder.handle(event("runner_on_file_diff", text=f"TASK [x]\n{diff}"))
    assert recorder.run.messages == []
    recorder.show_diff = True
    recorder.handle(event("runner_on_file_diff", text=f"TASK [x]\n{diff}"))
    assert recorder.run.messages == [diff]


def test_only_what_is_allowed_of_the_environment_gets_through() -> None:
    outside = {"HOME": "/h", "OPENAI_API_KEY": "s", "LANG": "C", "LC_TIME": "x", "ANSIBLE_STDOUT_CALLBACK": "y"}
    prepared = {**outside, "ANSIBLE_STDOUT_CALLBACK": "awx_display", "ANSIBLE_HOST_KEY_CHECKING": "False"}
    assert _runner.environment(prepared, outside) == {
        "HOME": "/h",
        "LANG": "C",
        "LC_TIME": "x",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_STDOUT_CALLBACK": "awx_display",
    }
    kept = _runner.environment({**prepared, "LANG": "de_DE.UTF-8"}, {"ANSIBLE_HOST_KEY_CHECKING": "False"})
    assert kept["ANSIBLE_HOST_KEY_CHECKING"] == "False"
    assert "LC_ALL" not in kept


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 0),
        ({"interrupted": True}, 1),
        ({"failures": [Failure("a", "t", "r")], "judged": True, "answer": {"drift": ["a"], "unreachable": ["b"]}}, 3),
        ({"failures": [Failure("a", "t", "r")], "judged": True, "answer": {"drift": [], "unreachable": ["b"]}}, 4),
        ({"failures": [Failure("a", "t", "r")], "answer": {"drift": ["a"]}}, 1),
        ({"answer": {"drift": ["a"]}, "judged": True}, 0),
    ],
)
def test_exit_codes(fields: dict[str, Any], code: int) -> None:
    assert new_run(**fields).exit_code == code


def test_an_interrupted_run_says_how_things_stand() -> None:
    run = new_run(
        interrupted=True, hosts={"a": HostState("ollama", "Fetch", True, changed=2), "b": HostState("models", "x")}
    )
    text = run.summary()
    assert "a: stopped in ollama, at: Fetch; 2 changes made" in text
    assert "b: idle after models, at: x; 0 changes made" in text
    assert "deploy: stopped after" in text
    assert new_run(interrupted=True).summary().startswith("Stopped before anything was done.")


class Gone(Silent):
    """A terminal that was closed."""

    def say(self, text: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@contextlib.contextmanager
def at_work() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, as ansible-playbook is."""
    working = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        yield working
    finally:
        working.kill()
        working.wait()


def test_a_closed_terminal_ends_the_work_too(recorder: Recorder) -> None:
    recorder.watcher = Gone()
    with at_work() as working:
        recorder.pid = working.pid
        _runner.Stopper(recorder).signalled()
        assert working.wait(timeout=10) == -signal.SIGINT
    assert recorder.run.interrupted


def test_whatever_breaks_the_watching_ends_the_work(recorder: Recorder) -> None:
    class Broken:
        def run(self) -> None:
            raise SystemExit(1)  # as rich does when nobody reads its lines any more

    with at_work() as working:
        recorder.pid = working.pid
        with pytest.raises(SystemExit):
            _runner.Stopper(recorder).watch_over(Broken())
        assert working.wait(timeout=10) == -signal.SIGTERM


def test_old_logs_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for _ in range(_runner.KEEP_LOGS + 3):
        _runner.new_log("office", "drain").touch()
    assert len(list((tmp_path / "llm-cluster" / "office").iterdir())) == _runner.KEEP_LOGS


def test_lines_are_told_when_a_phase_begins() -> None:
    console = Console(file=io.StringIO(), width=80)
    lines = Lines(console)
    run = new_run(hosts={"node1": HostState(phase="ollama")})
    lines.start(run)
    for _ in range(2):
        lines.step(run, "node1")
    run.hosts["node1"].phase = "models"
    lines.step(run, "node1")
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert [line.split("s  ")[1] for line in told.splitlines()] == ["node1: ollama", "node1: models"]


def test_the_table_shows_hosts_with_phase_task_and_state() -> None:
    console = Console(file=io.StringIO(), width=100)
    hosts = {"node1": HostState("ollama", "Fetch [it]", True, changed=3), "node2": HostState("models", failed=True)}
    console.print(LiveTable(console).table(new_run(hosts=hosts)))
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert "node1  ollama  Fetch [it]        3" in told
    assert "node2  failed" in told
