# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible's programs get of the user's environment: what they, ssh, and programs that know a password need.

No secrets: ansible-runner writes a playbook's environment into a file. Where a program needs one, it reads it from a
file of the user's (~/.vault-token, not VAULT_TOKEN).
"""

from __future__ import annotations

from collections.abc import Mapping

# LC_* besides.
ALLOWED = {
    "ANSIBLE_HOST_KEY_CHECKING",
    "ANSIBLE_LOCAL_TEMP",
    "ANSIBLE_PRIVATE_KEY_FILE",
    "ANSIBLE_REMOTE_TEMP",
    "ANSIBLE_REMOTE_USER",
    "ANSIBLE_SSH_ARGS",
    "ANSIBLE_SSH_COMMON_ARGS",
    "ANSIBLE_SSH_EXTRA_ARGS",
    "ANSIBLE_TIMEOUT",
    "ANSIBLE_VAULT_IDENTITY_LIST",
    "ANSIBLE_VAULT_PASSWORD_FILE",
    "DBUS_SESSION_BUS_ADDRESS",
    "GNUPGHOME",
    "GPG_TTY",
    "HOME",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "KRB5CCNAME",
    "LANG",
    "LOGNAME",
    "NO_PROXY",
    "PASSWORD_STORE_DIR",
    "PATH",
    "SHELL",
    "SSH_AUTH_SOCK",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
    "VAULT_ADDR",
    "VAULT_CACERT",
    "VAULT_CAPATH",
    "VAULT_CLIENT_CERT",
    "VAULT_CLIENT_KEY",
    "VAULT_NAMESPACE",
    "VAULT_TLS_SERVER_NAME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
}


def for_ansible(outside: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return an environment: what is allowed of the user's, and our own settings, which win."""
    allowed = {name: value for name, value in outside.items() if name in ALLOWED or name.startswith("LC_")}
    kept = {**allowed, **own}
    named = kept.get("LC_ALL") or kept.get("LC_CTYPE") or kept.get("LANG") or ""
    if "utf" not in named.lower():
        kept["LC_ALL"] = "C.UTF-8"  # Ansible refuses to start otherwise
    return kept
