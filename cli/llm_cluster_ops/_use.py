# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up the ``llm`` of whoever calls it for a cluster's endpoint, as role client does it for users of the hosts."""

from __future__ import annotations

import importlib.util
import os
import ssl
from pathlib import Path
from types import ModuleType
from typing import Any

import llm

from . import _folder, _inventory
from ._errors import ClusterError

# Where systems keep the certificates that they trust.
CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


def client_module() -> ModuleType:
    """Return the collection's module llm_client, which knows how llm's files are edited."""
    path = _folder.collection() / "plugins" / "modules" / "llm_client.py"
    spec = importlib.util.spec_from_file_location("llm_cluster_ops_client", path)
    if spec is None or spec.loader is None:
        raise ClusterError(f"{path} is missing. Install llm-cluster-ops again (docs/cli.md).")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def key_name(cluster: str) -> str:
    """Return the name of the cluster's key in llm's key store; it also marks the entries that are ours."""
    return f"llm-cluster-{cluster}"


def set_up(cluster: str, endpoint: dict[str, Any]) -> list[str]:
    """Write the endpoint's models and key. Returns the models' names."""
    client, name, folder = client_module(), key_name(cluster), llm.user_dir()
    base = client.api_base(endpoint["url"])
    wanted = [
        client.plan_file(
            str(folder / client.MODELS_FILE),
            0o644,
            lambda text: client.merge_models(text or "", name, endpoint["models"], base, name),
        )
    ]
    if endpoint["key"]:
        wanted.append(
            client.plan_file(
                str(folder / client.KEYS_FILE),
                0o600,
                lambda text: client.merge_key(text, name, endpoint["key"]),
                close=True,
            )
        )
    apply(client, wanted)
    return [str(model["model_id"]) for model in endpoint["models"]]


def undo(cluster: str) -> list[Path]:
    """Take out what set_up put in, and nothing else. Returns the files that changed."""
    client, name, folder = client_module(), key_name(cluster), llm.user_dir()
    wanted = [
        client.plan_file(
            str(folder / client.MODELS_FILE), 0o644, lambda text: text and client.remove_models(text, name)
        ),
        client.plan_file(str(folder / client.KEYS_FILE), 0o600, lambda text: client.remove_key(text, name)),
    ]
    changed = apply(client, wanted)
    bundle = trust_file(cluster)
    if bundle.is_file():
        bundle.unlink()
        changed.append(bundle)
    return changed


def trust_file(cluster: str) -> Path:
    """Return where the certificates are that this user's llm is to trust for the endpoint's sake."""
    return Path(llm.user_dir()) / f"{key_name(cluster)}.pem"


def trust(cluster: str, certificate: str) -> Path | None:
    """Write the endpoint's certificate beside those that are trusted anyway. llm itself has no setting for one.

    :returns: the file for SSL_CERT_FILE, or None where machines know the certificate
    """
    bundle = trust_file(cluster)
    if not certificate:
        bundle.unlink(missing_ok=True)
        return None
    # SSL_CERT_FILE takes the place of all others, so all others have to be in it.
    _inventory.replace(bundle, f"{known_certificates(bundle)}\n# {cluster}\n{certificate.strip()}\n")
    return bundle


def known_certificates(bundle: Path) -> str:
    """Return the certificates that llm trusts without the bundle, as far as they are in one file."""
    for file in (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().openssl_cafile, *CERTIFICATES):
        if file and Path(file).is_file() and not (bundle.exists() and bundle.samefile(file)):
            return _inventory.text_of(Path(file)).rstrip()
    return ""


def apply(client: ModuleType, changes: list[Any]) -> list[Path]:
    """Make the changes that are needed; all were planned before the first is made."""
    needed = [change for change in changes if change.needed]
    for change in needed:
        client.apply_change(change)
    return [Path(change.path) for change in needed]
