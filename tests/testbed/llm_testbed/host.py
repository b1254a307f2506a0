# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the nodes take over from this machine: Debian mirror, certificate authorities, pip and proxy settings."""

from __future__ import annotations

import configparser
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .shell import attempt

# Where administrators put their own authorities: Debian and Ubuntu, then Fedora and its relatives.
_LOCAL_AUTHORITIES = ("/usr/local/share/ca-certificates", "/etc/pki/ca-trust/source/anchors")
# These name a whole bundle, which is worth reading only if it is not the system's own.
_BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "timeout")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\n.+?\n-----END CERTIFICATE-----\n", re.DOTALL)


@dataclass(frozen=True)
class Mirrors:
    """Where Debian's packages come from: URIs as they stand in apt's sources. Empty: where Debian itself says."""

    main: str = ""
    security: str = ""


@dataclass(frozen=True)
class HostSettings:
    """Everything that a node image takes over from this machine."""

    mirrors: Mirrors = Mirrors()
    authorities: tuple[str, ...] = ()
    pip: Mapping[str, str] = field(default_factory=dict)
    proxies: Mapping[str, str] = field(default_factory=dict)
    apt_proxies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One archive that apt knows: addresses, suites and components."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]


def read_host_settings() -> HostSettings:
    """Look at this machine's files and environment. What is not there falls back to Debian's defaults."""
    found = {name: os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXY_VARIABLES}
    proxies = {name: value for name, value in found.items() if value}
    return HostSettings(
        mirrors=_read_mirrors(),
        authorities=_read_authorities(),
        pip=pip_settings(_read_pip_files(), os.environ),
        proxies=proxies,
        apt_proxies=parse_apt_proxies(attempt(["apt-config", "dump"]).stdout)
        or {scheme: proxies[f"{scheme}_proxy"] for scheme in ("http", "https") if f"{scheme}_proxy" in proxies},
    )


def system_bundle() -> Path | None:
    """This machine's bundle of certificate authorities, or None if it has none."""
    name = ssl.get_default_verify_paths().openssl_cafile
    candidates = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"), Path(name))
    return next((path for path in candidates if path.is_file()), None)


def read_os_release() -> dict[str, str]:
    """The fields of /etc/os-release, without quotes."""
    return parse_os_release(_read("/etc/os-release"))


def parse_os_release(text: str) -> dict[str, str]:
    """Fields of an os-release file: NAME → value, without quotes."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, value in pairs}


def parse_list_format(text: str) -> list[Source]:
    """Binary archives in apt's one-line format (sources.list)."""
    found = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s*([^#]*)", line.strip())
        if match:
            found.append(Source((match[1],), (match[2],), tuple(match[3].split())))
    return found


def parse_deb822_format(text: str) -> list[Source]:
    """Binary archives in apt's stanza format (*.sources); disabled ones are left out."""
    found = []
    uncommented = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", uncommented):
        # A line that begins with white space continues the field before it.
        lines = re.sub(r"\n[ \t]+", " ", stanza).splitlines()
        fields = {
            name.strip().lower(): tuple(value.split()) for name, _, value in (line.partition(":") for line in lines)
        }
        if "deb" in fields.get("types", ()) and fields.get("enabled") != ("no",):
            found.append(Source(fields.get("uris", ()), fields.get("suites", ()), fields.get("components", ())))
    return found


def choose_mirrors(sources: Iterable[Source], codename: str) -> Mirrors:
    """Pick Debian's own archives among all that apt knows (other vendors' often use the same suite names).

    A mirror of the security archive lies beside that of the main one, unless apt knows another.
    """
    main = security = ""
    for source in reversed([source for source in sources if "main" in source.components]):
        for uri in reversed(source.uris):
            address = urlsplit(uri)
            if address.scheme not in ("http", "https"):
                continue
            folder = address.path.rstrip("/").rsplit("/", 1)[-1]
            if codename in source.suites and folder == "debian":
                main = uri.rstrip("/")
            if f"{codename}-security" in source.suites:
                security = uri.rstrip("/")
    return Mirrors(main, security or f"{main}-security") if main else Mirrors()


def split_certificates(text: str) -> list[str]:
    """The PEM certificates in a file or a bundle, each ending with a line feed."""
    return _CERTIFICATE.findall(text.replace("\r\n", "\n").rstrip("\n") + "\n")


def pip_settings(files: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """pip's settings that also hold for other machines; later files win over earlier ones, the environment over all."""
    settings: dict[str, str] = {}
    for text in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            continue  # pip on this machine complains about it; the nodes do without
        if parser.has_section("global"):
            settings.update({name: value for name, value in parser["global"].items() if name in _PIP_OPTIONS})
    for name in _PIP_OPTIONS:
        value = environment.get("PIP_" + name.upper().replace("-", "_"))
        if value:
            settings[name] = value
    return settings


def parse_apt_proxies(dump: str) -> dict[str, str]:
    """Scheme → proxy, from the output of `apt-config dump`."""
    return dict(re.findall(r'^Acquire::(https?)::Proxy "([^"]+)";', dump, re.MULTILINE | re.IGNORECASE))


def _read_mirrors() -> Mirrors:
    release = read_os_release()
    if release.get("ID") != "debian":
        return Mirrors()
    folder = Path("/etc/apt/sources.list.d")
    sources = parse_list_format(_read("/etc/apt/sources.list"))
    for path in sorted(folder.glob("*.list")):
        sources += parse_list_format(_read(path))
    for path in sorted(folder.glob("*.sources")):
        sources += parse_deb822_format(_read(path))
    return choose_mirrors(sources, release.get("VERSION_CODENAME", ""))


def _read_authorities() -> tuple[str, ...]:
    files = [path for folder in _LOCAL_AUTHORITIES for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    system = system_bundle()
    for variable in _BUNDLE_VARIABLES:
        bundle = Path(os.environ.get(variable, "") or "/nonexistent")
        if bundle.is_file() and not (system and bundle.samefile(system)):
            files.append(bundle)
    certificates = [certificate for path in files for certificate in split_certificates(_read(path))]
    return tuple(dict.fromkeys(certificates))


def _read_pip_files() -> list[str]:
    home = Path.home()
    return [_read(path) for path in ("/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf")]


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
