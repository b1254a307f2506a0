# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one of the collection's playbooks, watch it, and say what came of it.

ansible-runner writes the environment and all variables into its artifacts. So the environment is an allow-list, secrets
come from the vault only, and the artifacts lie in a private folder that is gone at the end. The readable log stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from . import _folder
from ._environment import for_ansible
from ._errors import DONE, DRIFT, FAILED, UNREACHABLE, ClusterError, RunFailedError
from ._processes import Process, below, end

# What ssh may ask, although nobody is there; and the answer that makes it say what is wrong.
QUESTIONS = {
    r"Are you sure you want to continue connecting.*\?\s*$": "no",
    r"Enter passphrase for key .*:\s*$": "",
    r"[Pp]assword:\s*$": "",
    r"[Vv]ault password.*:\s*$": "",
}
# Playbooks that messages name, and their commands where those have another name.
NAMED = ("site", "verify", "status", "stats", "load", "lock", "drift", "sync", "drain", "resume")
COMMANDS_OF = {"site": "deploy"}
# How long Ansible has to end by itself once it was told to, in seconds. It needs a moment only; but an interrupt that
# comes while it forks is lost (Python ignores what is raised there), and then it would just go on.
GRACE = 5.0
KEEP_LOGS = 30
COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# The usual causes, and the words of ssh by which one knows each.
CAUSES = {
    "The host is off, or its address or port is wrong: ping it, look at ansible_host and ansible_port.": (
        "refused",
        "timed out",
        "No route",
        "Could not resolve",
        "unreachable",
    ),
    "The user or the key is not accepted there: try ssh USER@HOST, set ansible_user; ssh-copy-id brings your key.": (
        "Permission denied",
        "Too many authentication failures",
    ),
    "This machine doesn't know the host's own key, or it has changed: log in once by ssh, and compare it.": (
        "Host key verification failed",
        "IDENTIFICATION HAS CHANGED",
    ),
}


Results = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Failure:
    """One host's failed task."""

    host: str
    task: str
    reason: str
    advice: str = ""
    unreachable: bool = False


@dataclass
class HostState:
    """How far a host got."""

    phase: str = ""
    task: str = ""
    busy: bool = False
    ok: int = 0
    changed: int = 0
    failed: bool = False
    unreachable: bool = False


@dataclass
class Run:
    """What came of a playbook."""

    name: str
    log: Path
    hosts: dict[str, HostState] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    # What failed and the playbook itself goes on after.
    ignored: list[Failure] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0
    # What the playbook wrote for programs; may hold a key.
    answer: dict[str, Any] = field(default_factory=dict, repr=False)
    # Whether the answer says why it failed: drift, or nodes that can't be reached.
    judged: bool = False

    @property
    def changed(self) -> int:
        """How many tasks changed something, on all hosts."""
        return sum(host.changed for host in self.hosts.values())

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 3 drift found, 4 only hosts that could not be reached."""
        if self.judged and self.failures and not self.interrupted:
            if self.answer.get("drift"):
                return DRIFT
            if self.answer.get("unreachable"):
                return UNREACHABLE
        if self.interrupted or any(
            not self.hosts.get(failure.host, HostState()).unreachable for failure in self.failures
        ):
            return FAILED
        return UNREACHABLE if self.failures else DONE

    def summary(self) -> str:
        """Return what happened, in a few lines."""
        lines: list[str] = []
        for failure in self.failures:
            lines.append(f"{failure.host}: {'not reached' if failure.unreachable else 'failed'} at: {failure.task}")
            lines += [f"    {line}" for line in failure.reason.splitlines()]
            if failure.advice:
                lines += [f"    → {line}" for line in failure.advice.splitlines()]
        if self.interrupted:
            lines += self.standing()
        verdict = {DONE: "done", FAILED: "failed", DRIFT: "drift found", UNREACHABLE: "not all hosts reached"}
        word = "stopped" if self.interrupted else verdict[self.exit_code]
        lines.append(
            f"{self.name}: {word} after {self.seconds:.0f} s; {len(self.hosts)} hosts, {self.changed} changes; "
            f"log: {self.log}"
        )
        return "\n".join(lines)

    def standing(self) -> list[str]:
        """Return how things stand after an interruption."""
        lines = [f"Stopped in the middle of {self.name}. Where things stand:"]
        for name, host in self.hosts.items():
            doing = (
                f"stopped in {host.phase}, at: {host.task}"
                if host.busy
                else f"idle after {host.phase}, at: {host.task}"
            )
            lines.append(f"    {name}: {doing}; {host.changed} changes made")
        if not self.hosts:
            return ["Stopped before anything was done."]
        return [*lines, "    → Run the same command again: what is done already is left as it is."]


class Watcher(Protocol):
    """What sees a run's progress."""

    def start(self, run: Run) -> None: ...

    def step(self, run: Run, host: str) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self, run: Run) -> None: ...


class Silent:
    """Sees nothing."""

    def start(self, run: Run) -> None: ...

    def step(self, run: Run, host: str) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self, run: Run) -> None: ...


class Recorder:
    """Makes of Ansible's events what a run has to tell."""

    def __init__(
        self, run: Run, watcher: Watcher, log: Any, show_diff: bool = False, results: Results | None = None
    ) -> None:
        self.run = run
        self.watcher = watcher
        self.log = log
        self.show_diff = show_diff
        self.results = results
        self.pid: int | None = None
        self.play = ""
        self.shows = False
        self.recent: list[str] = []

    def handle(self, event: Mapping[str, Any]) -> bool:
        """Take one event. True: ansible-runner counts only events that were taken this way."""
        text = COLOUR.sub("", str(event.get("stdout") or "")).strip("\r\n")
        if text:
            self.log.write(text + "\n")
            self.log.flush()
            self.recent = [*self.recent[-40:], *text.splitlines()]
        data = event.get("event_data") or {}
        self.pid = event.get("pid") or self.pid
        if data.get("play"):
            self.play = str(data["play"])
        kind = str(event.get("event"))
        if kind == "playbook_on_task_start":
            self.shows = str(data.get("task_action")) == "llm.cluster.show"
        if kind == "verbose" and self.shows and text:
            self.message(text)
        if self.show_diff and "--- before" in text:
            self.run.messages.append(text[text.find("--- before") :])
        if kind == "playbook_on_stats":
            self.forget_rescued(data)
        host = data.get("host")
        if host and kind.startswith("runner_"):
            self.host_event(kind, str(host), data)
        return True

    def host_event(self, kind: str, host: str, data: Mapping[str, Any]) -> None:
        """Note what one host does."""
        state = self.run.hosts.setdefault(host, HostState())
        if re.search(r"\b(include|import)_(role|tasks)$", str(data.get("task_action", ""))):
            return  # no work, but what leads to it
        state.phase = str(data.get("role") or self.play).removeprefix("llm.cluster.")
        state.task = str(data.get("task") or "")
        state.busy = kind == "runner_on_start"
        result = data.get("res") or {}
        if kind == "runner_on_ok":
            state.ok += 1
            state.changed += bool(result.get("changed"))
            if self.results:
                self.results(host, result)
            if str(data.get("task_action", "")).endswith("debug") and "msg" in result:
                self.message(result["msg"])
        elif kind == "runner_on_failed":
            ignored = bool(data.get("ignore_errors"))
            state.failed = state.failed or not ignored
            failures = self.run.ignored if ignored else self.run.failures
            failures.append(Failure(host, state.task, reason_of(result), advice_of(result)))
        elif kind == "runner_on_unreachable" and not result.get("skip_reason"):
            state.unreachable = True
            reason = reason_of(result)
            self.run.failures.append(Failure(host, state.task, reason, reach_advice(reason), unreachable=True))
        if kind in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            # Only now: a role that has nothing to do on a host is no phase of it.
            self.watcher.step(self.run, host)

    def forget_rescued(self, totals: Mapping[str, Any]) -> None:
        """Drop the failures that the playbook itself has dealt with: those hosts did not fail in the end."""
        bad = {host for kind in ("failures", "dark") for host, times in (totals.get(kind) or {}).items() if times}
        self.run.failures = [failure for failure in self.run.failures if failure.host in bad]
        for name, host in self.run.hosts.items():
            host.failed = host.failed and name in bad

    def message(self, content: Any) -> None:
        """Note what a playbook has to say to people."""
        text = in_our_words("\n".join(map(str, content)) if isinstance(content, list) else str(content))
        if text not in self.run.messages:
            self.run.messages.append(text)

    def finish(self, code: int | None) -> None:
        """Say why when Ansible ended badly without a host's failure: a broken file, a missing password, a kill.

        :param code: ansible-playbook's exit code; None if a signal ended it
        """
        if self.run.interrupted:
            return
        if code is None:
            # Beside what hosts failed at, too: the others were not done either.
            reason = "ansible-playbook was killed, by somebody or for want of memory (dmesg tells): not all was done."
            cure = "Run the same command again: what is done already is left as it is."
            self.run.failures.append(Failure("this machine", self.play or "start", reason, cure))
        elif code and not self.run.failures:
            start = next((i for i, line in enumerate(self.recent) if re.search(r"\b(ERROR|Error)\b", line)), 0)
            reason = "\n".join(self.recent[start:][:12]) or f"ansible-playbook ended with {code}"
            self.run.failures.append(Failure("this machine", "start", reason, "Mend this and run the command again."))


def reason_of(result: Mapping[str, Any]) -> str:
    """Return why a task failed, as short as it can be said."""
    if result.get("results"):
        # A loop: the items that failed.
        failed = [item for item in result["results"] if isinstance(item, Mapping) and item.get("failed")]
        reasons = list(dict.fromkeys(reason_of(item) for item in failed))
        if reasons:
            return "\n".join(reasons)
    content = result.get("msg")
    text = "\n".join(map(str, content)) if isinstance(content, list) else str(content or "")
    error = str(result.get("stderr") or result.get("module_stderr") or "").strip()
    if result.get("censored"):
        text = "Its output holds secrets and is not shown."
    elif error and (not text or text in ("non-zero return code", "MODULE FAILURE")):
        text = error.splitlines()[-1] if "Traceback" in error else "\n".join(error.splitlines()[-6:])
    return in_our_words(text.strip().removeprefix("Task failed: ")) or "no reason was given; see the log"


def in_our_words(text: str) -> str:
    """Return what a playbook says with the commands of this program where it names playbooks."""

    def command(found: re.Match[str]) -> str:
        return "llm cluster " + COMMANDS_OF.get(found["name"], found["name"])

    text = re.sub(r"ansible-playbook (?:playbooks/|llm\.cluster\.)?(?P<name>\w+)(?:\.yml)? -i INVENTORY", command, text)
    text = re.sub(rf"(?<![\w./-])(?:playbooks/)?(?P<name>{'|'.join(NAMED)})\.yml\b", command, text)
    return text.replace("-e sync_take_over=true", "--take-over")


def advice_of(result: Mapping[str, Any]) -> str:
    """Return what to do, where the reason does not say so itself."""
    text = json.dumps(result, default=str)
    if "sudo: a password is required" in text or "Missing sudo password" in text:
        return "The user needs sudo without a password, or ansible_become_password in the vault."
    if "Attempting to decrypt but no vault secrets found" in text or "Decryption failed" in text:
        return "Set vault_password_file in ansible.cfg to the right file."
    return ""


def reach_advice(reason: str) -> str:
    """Return the usual causes why a host can't be reached, first the one that ssh's words speak for."""
    causes = sorted(CAUSES, key=lambda cause: not any(word in reason for word in CAUSES[cause]))
    return "Usual causes:\n" + "\n".join(f"{number}. {cause}" for number, cause in enumerate(causes, 1))


def environment(prepared: Mapping[str, str], outside: Mapping[str, str]) -> dict[str, str]:
    """Return what a playbook gets: what is allowed of the user's environment, and what ansible-runner set."""
    own = {name: value for name, value in prepared.items() if outside.get(name) != value}
    if "ANSIBLE_HOST_KEY_CHECKING" not in outside:
        # ansible-runner switches it off unless it is set.
        own.pop("ANSIBLE_HOST_KEY_CHECKING", None)
    return for_ansible(outside, own)


def new_log(cluster: str, name: str) -> Path:
    """Return where this run's log goes; the oldest ones make room."""
    folder = _folder.logs_home() / cluster
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in sorted(folder.glob("*.log"))[: -KEEP_LOGS + 1]:
        old.unlink(missing_ok=True)
    return folder / f"{datetime.now():%Y-%m-%dT%H.%M.%S.%f}-{name}.log"


class Stopper:
    """Ends a run when the user says so: Ansible is told first, and killed only if it doesn't listen."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.asked = 0.0
        self.processes: set[Process] = set()

    def signalled(self, *_arguments: Any) -> None:
        """Take Ctrl-C or a request to end."""
        first = not self.asked
        self.asked = self.asked or time.monotonic()
        self.recorder.run.interrupted = True
        if not first:
            self.asked -= GRACE
            return
        if self.recorder.pid:
            # Now, because later nothing leads from one to the other: the workers have sessions of their own.
            self.processes |= below(self.recorder.pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.recorder.pid, signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal may be what has gone
            self.recorder.watcher.say("Stopping; this may take some seconds.")

    def must_end(self) -> bool:
        """Whether to kill it now."""
        if not self.asked:
            return False
        if self.recorder.pid:
            self.processes |= below(self.recorder.pid)
        return self.recorder.pid is None or time.monotonic() - self.asked > GRACE

    def clear(self) -> None:
        """End what Ansible left behind: workers go on until their modules end, and so do programs of theirs here."""
        if self.processes:
            end(self.processes)

    def watch_over(self, runner: Any) -> None:
        """Run Ansible to its end, or to the one that the user wants."""
        with self.listening():
            try:
                runner.run()
            except BaseException:
                # Ansible has a session of its own, and would go on with nobody watching.
                if self.recorder.pid:
                    self.processes |= below(self.recorder.pid)
                raise
            finally:
                self.clear()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals meanwhile; only a program's main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self.signalled) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_playbook(
    folder: Path,
    playbook: str | Path,
    *,
    name: str = "",
    cluster: str = "",
    limit: str | None = None,
    tags: str | None = None,
    extra: Mapping[str, Any] | None = None,
    inventory: Sequence[Path] = (),
    check: bool = False,
    diff: bool = False,
    answer: str = "",
    judged: bool = False,
    passing: bool = False,
    results: Results | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Run a playbook on a cluster, and return what came of it.

    :param playbook: a name of the collection's (``site``), or a file
    :param extra: variables; never secrets, and not on the command line either
    :param inventory: inventories besides the cluster's own
    :param answer: the variable that tells the playbook where to write what it has to say to programs (``Run.answer``)
    :param judged: whether that answer says why it failed
    :param passing: whether this is one look of many, whose log is of no interest when all went well
    :param results: gets each host's results, as they come
    :raises RunFailedError: unless all went well
    """
    _folder.check_vault(folder)
    ansible_playbook = _folder.program("ansible-playbook")
    # Not before: this takes a quarter of a second.
    import ansible_runner

    title = name or str(playbook)
    watcher = watcher or Silent()
    path = new_log(cluster or folder.name, title)
    run = Run(title, path, judged=judged)
    began = time.monotonic()
    private = Path(tempfile.mkdtemp(prefix="llm-cluster-"))
    try:
        (private / "env").mkdir(mode=0o700)
        # Looks twice a second for a second Ctrl-C.
        (private / "env" / "settings").write_text(json.dumps({"pexpect_timeout": 0.5}), encoding="utf-8")
        variables = dict(extra or {})
        if answer:
            variables[answer] = str(private / "answer.json")
        if variables:
            (private / "env" / "extravars").write_text(json.dumps(variables), encoding="utf-8")
        config = ansible_runner.RunnerConfig(
            private_data_dir=str(private),
            playbook=str(playbook) if isinstance(playbook, Path) else f"llm.cluster.{playbook}",
            inventory=[str(folder), *map(str, inventory)],
            limit=limit,
            tags=tags,
            cmdline=" ".join((["--check"] if check else []) + (["--diff"] if diff else [])) or None,
            passwords=dict(QUESTIONS),
            quiet=True,
            suppress_output_file=True,
            envvars=_folder.ansible_settings(folder),
        )
        config.prepare()
        config.command[0] = str(ansible_playbook)
        config.env = environment(config.env, os.environ)
        config.env["PATH"] = f"{ansible_playbook.parent}:{config.env.get('PATH', os.defpath)}"
        config.cwd = str(folder)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as log:
            recorder = Recorder(run, watcher, log, show_diff=diff, results=results)
            stopper = Stopper(recorder)
            watcher.start(run)
            try:
                runner = ansible_runner.Runner(
                    config=config, event_handler=recorder.handle, cancel_callback=stopper.must_end
                )
                stopper.watch_over(runner)
            finally:
                run.seconds = time.monotonic() - began
                with contextlib.suppress(OSError):  # a terminal that has gone
                    watcher.stop(run)
        recorder.finish(runner.rc)
        if answer and (private / "answer.json").is_file():
            run.answer = json.loads((private / "answer.json").read_text(encoding="utf-8"))
    except ansible_runner.exceptions.AnsibleRunnerException as error:
        raise ClusterError(f"ansible-playbook could not be run: {error}") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)
    if passing and (run.interrupted or run.exit_code == DONE):
        path.unlink(missing_ok=True)
    if run.exit_code != DONE:
        raise RunFailedError(run)
    return run
