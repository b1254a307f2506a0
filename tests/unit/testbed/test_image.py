# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a node image, and when it must be built anew."""

from __future__ import annotations

from dataclasses import replace

import pytest
from llm_testbed.host import HostSettings, Mirrors
from llm_testbed.image import image_tag, node_files, render_apt_sources, render_pip_conf

PLAIN = HostSettings()


def test_apt_sources() -> None:
    text = render_apt_sources("trixie", Mirrors("http://m.example/debian", "http://s.example/debian-security"))
    release, security = text.split("\n\n")
    assert "URIs: http://m.example/debian\nSuites: trixie trixie-updates\n" in release
    assert "URIs: http://s.example/debian-security\nSuites: trixie-security\n" in security


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, []),
        ({"timeout": "9"}, ["timeout = 9"]),
        (
            {"extra-index-url": "\nhttps://a.example\nhttps://b.example"},
            ["extra-index-url = https://a.example", "    https://b.example"],
        ),
    ],
)
def test_pip_conf(settings: dict[str, str], expected: list[str]) -> None:
    lines = render_pip_conf(settings).splitlines()
    assert lines[:2] == ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt"]
    assert lines[3:] == expected


def test_files_for_a_plain_host_have_no_proxy_and_no_authority() -> None:
    assert not [path for path in node_files("debian-13", PLAIN) if "proxy" in path or "ca-certificates" in path]


def test_files_for_a_host_behind_a_proxy() -> None:
    settings = replace(
        PLAIN,
        authorities=("CERT 1\n", "CERT 2\n"),
        proxies={"http_proxy": "http://p.example:1"},
        apt_proxies={"http": "http://p.example:1"},
    )
    files = node_files("debian-13", settings)
    assert files["etc/environment"] == "http_proxy=http://p.example:1\nHTTP_PROXY=http://p.example:1\n"
    assert files["etc/apt/apt.conf.d/90host-proxy"] == 'Acquire::http::Proxy "http://p.example:1";\n'
    assert files["usr/local/share/ca-certificates/test-bed-host-1.crt"] == "CERT 2\n"


@pytest.mark.parametrize(
    "changed",
    [
        replace(PLAIN, mirrors=Mirrors("http://m.example/debian")),
        replace(PLAIN, authorities=("CERT\n",)),
        replace(PLAIN, pip={"timeout": "9"}),
    ],
)
def test_tag_follows_what_the_image_takes_from_the_host(changed: HostSettings) -> None:
    assert image_tag("debian-13", changed) != image_tag("debian-13", PLAIN)
    assert image_tag("debian-13", PLAIN) == image_tag("debian-13", HostSettings())
