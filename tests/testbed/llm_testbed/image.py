# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Node images: a Debian base from wherever one can be had, made into a bare server with systemd and SSH."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .engine import docker, install_packages
from .host import HostSettings, Mirrors, system_bundle
from .shell import TestbedError, attempt, side_by_side

# What `--host NAME=SYSTEM` may name → Debian's code name.
SYSTEMS = {"debian-12": "bookworm", "debian-13": "trixie"}

_REPOSITORY = "llm-testbed"
_PULL_SECONDS = 45
_RECIPE = Path(__file__).parent / "node" / "Dockerfile"
# Relative to /. sshd needs host keys before its own check of the configuration, hence the emptied list.
_SSH_HOST_KEYS = """[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
"""
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_NO_DOCS = ("path-exclude=/usr/share/man/*", "path-exclude=/usr/share/doc/*", "path-exclude=/usr/share/locale/*")


def ensure_images(systems: set[str], settings: HostSettings, *, rebuild: bool = False) -> dict[str, str]:
    """Have an image for each system, building those that are missing; returns system → image tag."""
    tags = {system: image_tag(system, settings) for system in sorted(systems)}
    missing = [system for system, tag in tags.items() if rebuild or not image_exists(tag)]
    bases = dict(zip(missing, side_by_side(lambda system: _find_base(SYSTEMS[system], rebuild), missing), strict=True))
    if None in bases.values():
        _prepare_bootstrap()
    side_by_side(lambda system: _build(system, tags[system], bases[system], settings, rebuild=rebuild), missing)
    return tags


def image_tag(system: str, settings: HostSettings) -> str:
    """The tag of a system's image: it changes whenever the recipe or what the image takes from the host changes."""
    digest = hashlib.sha256(_RECIPE.read_bytes())
    for path, content in sorted(node_files(system, settings).items()):
        digest.update(f"\0{path}\0{content}".encode())
    return f"{_REPOSITORY}:{system}-{digest.hexdigest()[:12]}"


def image_id(tag: str) -> str:
    """The id of a local image; it tells apart two builds of one recipe."""
    return docker("image", "inspect", "--format", "{{.Id}}", tag)


def image_exists(tag: str) -> bool:
    """Whether there is a local image of this tag."""
    return attempt(["docker", "image", "inspect", tag]).returncode == 0


def node_files(system: str, settings: HostSettings) -> dict[str, str]:
    """The files that a node image has beyond its packages: path relative to / → content."""
    files = {
        "etc/default/locale": "LANG=C.UTF-8\n",  # every installed server has one; pam_env complains without
        "etc/pip.conf": render_pip_conf(settings.pip),
        "etc/systemd/system/ssh.service.d/host-keys.conf": _SSH_HOST_KEYS,
    }
    if settings.mirrors.main:
        files["etc/apt/sources.list.d/debian.sources"] = render_apt_sources(SYSTEMS[system], settings.mirrors)
    for number, certificate in enumerate(settings.authorities):
        files[f"usr/local/share/ca-certificates/test-bed-host-{number}.crt"] = certificate
    if settings.apt_proxies:
        lines = [f'Acquire::{scheme}::Proxy "{uri}";\n' for scheme, uri in sorted(settings.apt_proxies.items())]
        files["etc/apt/apt.conf.d/90host-proxy"] = "".join(lines)
    if settings.proxies:
        lines = [f"{name}={value}\n{name.upper()}={value}\n" for name, value in sorted(settings.proxies.items())]
        files["etc/environment"] = "".join(lines)
    return files


def render_apt_sources(codename: str, mirrors: Mirrors) -> str:
    """apt's sources of a Debian release: the release, its updates, its security updates."""
    stanza = f"Types: deb\nURIs: {{}}\nSuites: {{}}\nComponents: main\nSigned-By: {_KEYRING}\n"
    return "\n".join(
        [
            stanza.format(mirrors.main, f"{codename} {codename}-updates"),
            stanza.format(mirrors.security, f"{codename}-security"),
        ]
    )


def render_pip_conf(settings: Mapping[str, str]) -> str:
    """pip's configuration: the host's settings, and the node's own bundle instead of the one that pip brings."""
    lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt", "disable-pip-version-check = true"]
    # An option may have several values, one a line: pip wants the further ones indented.
    lines += [f"{name} = " + value.strip().replace("\n", "\n    ") for name, value in sorted(settings.items())]
    return "\n".join(lines) + "\n"


def _build(system: str, tag: str, base: str | None, settings: HostSettings, *, rebuild: bool) -> None:
    codename = SYSTEMS[system]
    if base is None:
        base = _made_base(codename)
        _bootstrap(codename, settings.mirrors.main, base)
    older = docker("image", "ls", "--quiet", "--no-trunc", "--filter", f"reference={_REPOSITORY}:{system}-*").split()
    with tempfile.TemporaryDirectory(prefix="llm-testbed-") as folder:
        context = Path(folder)
        shutil.copyfile(_RECIPE, context / "Dockerfile")
        bundle = system_bundle()
        (context / "bundle.crt").write_bytes(bundle.read_bytes() if bundle else b"")
        for name, content in node_files(system, settings).items():
            target = context / "rootfs" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content, encoding="utf-8")
        # COPY keeps modes, also those of folders that are already there: the caller's umask must not count.
        for path in context.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        cache = ["--no-cache"] if rebuild else []
        docker("build", "--quiet", "--force-rm", *cache, "--build-arg", f"BASE={base}", "--tag", tag, str(context))
    for image in set(older) - {image_id(tag)}:
        attempt(["docker", "image", "rm", image])  # refused, rightly, while a container uses it


def _made_base(codename: str) -> str:
    return f"{_REPOSITORY}-base:{codename}"


def _find_base(codename: str, rebuild: bool) -> str | None:
    """The tag of a minimal Debian, pulled if a registry answers soon; None if one has to be made."""
    public = f"debian:{codename}-slim"
    if attempt(["docker", "pull", "--quiet", public], timeout=_PULL_SECONDS).returncode == 0:
        return public
    candidates = () if rebuild else (public, _made_base(codename))
    return next((tag for tag in candidates if image_exists(tag)), None)


def _prepare_bootstrap() -> None:
    if os.geteuid() != 0:
        raise TestbedError(
            "No Debian base image could be pulled, and making one with mmdebstrap needs root. "
            "Give Docker access to a registry (or to a mirror of one), or run the test bed as root."
        )
    if shutil.which("mmdebstrap") is None or not _KEYRING.is_file():
        install_packages("mmdebstrap", "debian-archive-keyring")


def _bootstrap(codename: str, mirror: str, tag: str) -> None:
    command = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--keyring={_KEYRING}"]
    command += [f"--dpkgopt={option}" for option in _NO_DOCS]
    command += [codename, "-"]
    if mirror:
        command.append(f"deb {mirror} {codename} main")
    with tempfile.TemporaryFile() as complaints:
        bootstrap = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints)
        imported = subprocess.run(
            ["docker", "import", "-", tag], stdin=bootstrap.stdout, capture_output=True, text=True, check=False
        )
        if bootstrap.stdout:
            bootstrap.stdout.close()
        if bootstrap.wait() != 0:
            complaints.seek(0)
            tail = complaints.read().decode(errors="replace").strip().splitlines()[-15:]
            attempt(["docker", "image", "rm", tag])  # half an archive may have been imported
            raise TestbedError(
                f"mmdebstrap could not make Debian {codename} from {mirror or 'its usual mirror'}:\n  "
                + "\n  ".join(tail)
            )
    if imported.returncode != 0:
        raise TestbedError(f"`docker import` did not take what mmdebstrap made: {imported.stderr.strip()}")
