# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What nodes take over from the machine: apt mirrors, certificates, pip and proxy settings."""

from __future__ import annotations

import pytest
from llm_testbed.host import (
    Mirrors,
    Source,
    choose_mirrors,
    parse_apt_proxies,
    parse_deb822_format,
    parse_list_format,
    parse_os_release,
    pip_settings,
    split_certificates,
)

ONE_LINE = """
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/other.gpg] https://vendor.example/debian/12/prod bookworm main
deb http://mirror.example/debian/ bookworm main contrib  # ours
deb-src http://source.example/debian bookworm main
deb http://mirror.example/debian-security bookworm-security main
"""

DEB822 = """
Types: deb
# where we got it from: http://snapshot.example/debian
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb deb-src
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main
"""

LISTED = Mirrors("http://mirror.example/debian", "http://mirror.example/debian-security")
DEFAULTS = Mirrors()


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (parse_list_format(ONE_LINE), LISTED),
        (parse_deb822_format(DEB822), LISTED),
        ([], DEFAULTS),
        # Cloud images name a file of mirrors, which is of no use on another machine.
        (parse_list_format("deb mirror+file:/etc/apt/mirrors/debian.list bookworm main"), DEFAULTS),
        (parse_list_format("deb http://vendor.example/linux/debian bookworm stable"), DEFAULTS),
        (parse_list_format("deb http://old.example/debian bullseye main"), DEFAULTS),
        (
            parse_list_format(
                "deb http://first.example/debian bookworm main\ndeb http://b.example/debian bookworm main"
            ),
            Mirrors("http://first.example/debian", "http://first.example/debian-security"),
        ),
    ],
)
def test_choose_mirrors(sources: list[Source], expected: Mirrors) -> None:
    assert choose_mirrors(sources, "bookworm") == expected


def test_deb822_continuation_and_disabled_stanza() -> None:
    assert [source.suites for source in parse_deb822_format(DEB822)] == [
        ("bookworm", "bookworm-updates"),
        ("bookworm-security",),
    ]


def test_os_release_without_quotes() -> None:
    assert parse_os_release('ID=debian\n# no=thing\nVERSION_CODENAME="bookworm"\n') == {
        "ID": "debian",
        "VERSION_CODENAME": "bookworm",
    }


ONE = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
TWO = "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ONE, [ONE]),
        (ONE.rstrip(), [ONE]),
        ("# Our CA\n" + ONE + "\n# Another\n" + TWO, [ONE, TWO]),
        (ONE.replace("\n", "\r\n"), [ONE]),
        ("not a certificate", []),
    ],
)
def test_split_certificates(text: str, expected: list[str]) -> None:
    assert split_certificates(text) == expected


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ([], {}, {}),
        (
            ["[global]\nindex-url = https://a.example/simple\ncert = /here/only\n"],
            {},
            {"index-url": "https://a.example/simple"},
        ),
        (["[global]\ntimeout = 1\n", "[global]\ntimeout = 2\n"], {}, {"timeout": "2"}),
        (["[global]\ntimeout = 1\n"], {"PIP_TIMEOUT": "3", "PIP_FIND_LINKS": "/here/only"}, {"timeout": "3"}),
        (["[install]\ntimeout = 1\n"], {"PIP_INDEX_URL": ""}, {}),
        (["no section"], {}, {}),
    ],
)
def test_pip_settings(files: list[str], environment: dict[str, str], expected: dict[str, str]) -> None:
    assert pip_settings(files, environment) == expected


def test_apt_proxies() -> None:
    dump = 'Acquire::http::Proxy "http://proxy.example:3128";\nAcquire::http::Proxy::local.example "DIRECT";\n'
    assert parse_apt_proxies(dump) == {"http": "http://proxy.example:3128"}
