# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a self-signed certificate and its key, and print the certificate.

Arguments: path of the certificate, path of its key, days, then its names and addresses.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIGURATION = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = {common_name}
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
subjectAltName = @names
[names]
{names}
"""


def alternative_names(names: list[str]) -> str:
    """Return names and addresses as the lines of an OpenSSL section."""
    lines = []
    for number, name in enumerate(names, 1):
        try:
            ipaddress.ip_address(name)
            kind = "IP"
        except ValueError:
            kind = "DNS"
        lines.append(f"{kind}.{number} = {name}")
    return "\n".join(lines)


def main() -> None:
    certificate, key, days, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:]
    os.umask(0o077)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=str(certificate.parent)) as name:
        aside = Path(name)
        configuration = aside / "openssl.cnf"
        # A common name has at most 64 characters; clients look at the alternative names only.
        text = CONFIGURATION.format(common_name=names[0][:64], names=alternative_names(names))
        configuration.write_text(text, encoding="utf-8")
        command = ["openssl", "req", "-x509", "-config", str(configuration), "-days", days, "-sha256", "-nodes"]
        command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        command += ["-keyout", str(aside / "key"), "-out", str(aside / "crt")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (aside / "crt").chmod(0o644)
        (aside / "key").replace(key)
        (aside / "crt").replace(certificate)
    print(certificate.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
