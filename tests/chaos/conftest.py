# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures, and the table of what was proved that is printed at the end."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chaos.bed import FULL, Bed, Row

ROWS = pytest.StashKey[list[Row]]()
RESULTS = pathlib.Path(__file__).resolve().parents[2] / ".build" / "results"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture
def bed() -> Iterator[Callable[..., Bed]]:
    """Makes beds: each with an nginx and a fleet of its own."""
    made: list[Bed] = []

    def make(**kwargs: Any) -> Bed:
        made.append(Bed(**kwargs))
        return made[-1]

    yield make
    for each in made:
        each.destroy()


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[str], Row]:
    """Adds a line to the table; its verdict is the test's."""

    def add(fault: str) -> Row:
        line = Row(fault)
        request.config.stash[ROWS].append(line)
        request.node.stash.setdefault(ROWS, []).append(line)
        return line

    return add


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        for line in item.stash.get(ROWS, []):
            line.verdict = "ok" if report.passed else "FAILED"
        item.stash[ROWS] = []  # a second try has rows of its own


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    form = "whole" if FULL else "short form"
    terminalreporter.section(f"faults and figures ({form}; simulated engines, real nginx)")
    terminalreporter.write_line(f"{'fault':44} {'requests':>8} {'failed':>6} {'p99':>8}  verdict  seen")
    for line in rows:
        p99 = f"{line.p99:6.2f} s" if line.p99 else ""
        terminalreporter.write_line(
            f"{line.fault:44} {line.requests or '':>8} {line.failed:>6} {p99:>8}  {line.verdict:7}  {line.note}"
        )
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "chaos.json").write_text(json.dumps([vars(line) for line in rows], indent=1))


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    files = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-out", files[0], "-keyout", files[1]]
    subprocess.run(command, check=True, capture_output=True)
    return files
