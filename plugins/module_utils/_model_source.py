# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking where models come from which version there is: its digest and size, without fetching it.

Standard library only, no Ansible import.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, Mapping

from ansible_collections.llm.cluster.plugins.module_utils import _fetch
from ansible_collections.llm.cluster.plugins.module_utils._engines import EngineError
from ansible_collections.llm.cluster.plugins.module_utils._engines._ollama_store import (
    MANIFEST_AT_MOST,
    parse_reference,
    read_manifest,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines.ollama import MANIFEST_TYPE

HEX = re.compile(r"\b[0-9a-fA-F]{64}\b")
# A file of digests is a few lines; more is something else.
DIGESTS_AT_MOST = 64 * 1024


@dataclass(frozen=True)
class Offer:
    """What a source has. Without a digest the problem says why."""

    digest: str = ""
    size: int | None = None
    problem: str = ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keep the headers of answers that redirect: hubs say there which file it is, before another host serves it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def redirect_request(self, *answer: Any) -> Any:
        """Follow as usual; the answer is (request, body, status, reason, headers, new URL)."""
        self.seen.append(answer[4])
        return super().redirect_request(*answer)


def ask_source(source: Mapping[str, Any], insecure: bool, http_options: _fetch.HttpOptions) -> Offer:
    """Ask one source; what goes wrong is in the answer."""
    try:
        if source.get("url"):
            return ask_url(str(source["url"]), http_options)
        return ask_registry(str(source["registry"]), insecure, http_options)
    except (EngineError, _fetch.FetchError) as error:
        return Offer(problem=str(error))


def ask_registry(name: str, insecure: bool, http_options: _fetch.HttpOptions) -> Offer:
    """Return the version that a registry has under a tag: the manifest's digest, and the size of all its parts."""
    url = parse_reference(name).manifest_url(insecure)
    try:
        with contextlib.closing(_fetch.open_url(url, http_options, "GET", {"Accept": MANIFEST_TYPE})) as response:
            manifest = read_manifest(response.read(MANIFEST_AT_MOST))
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return Offer(
                problem=f"{url} answered {error.code}: the registry wants Ollama's own login. Have the model on one "
                "node, and take its version from there: -e lock_from=NODE"
            )
        raise _fetch.explain(url, error, "source.registry") from error
    except (OSError, http.client.HTTPException) as error:
        raise _fetch.explain(url, error, "source.registry") from error
    return Offer(manifest.digest, manifest.size)


def ask_url(url: str, http_options: _fetch.HttpOptions) -> Offer:
    """Return what a server says of a file: its size, and its SHA-256 if the headers or a file beside it tell that."""
    failure: BaseException = OSError("nothing was asked")
    # Servers that sign URLs for GET refuse HEAD: ask for the first byte then.
    for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        redirects = _Redirects()
        try:
            with contextlib.closing(
                _fetch.open_url(url, http_options, method, headers, handlers=[redirects])
            ) as response:
                size = _fetch.stated_size(response.status, response.headers)
                stated = [stated_digest(answer) for answer in (*redirects.seen, response.headers)]
        except urllib.error.HTTPError as error:
            failure = error
            if error.code == 404:
                break
            continue
        except (OSError, http.client.HTTPException) as error:
            raise _fetch.explain(url, error) from error
        digest = next(filter(None, stated), "") or digest_beside(url, http_options)
        if digest:
            return Offer(digest, size)
        return Offer(
            size=size,
            problem=f"{_fetch.split_credentials(url)[0]}: the server does not say which version this is. Write the "
            "digest into llm_models (sha256sum FILE), have the server offer it as URL.sha256, or take it from a node "
            "that has the model: -e lock_from=NODE",
        )
    raise _fetch.explain(url, failure) from failure


def stated_digest(headers: Any) -> str:
    """Return the SHA-256 of the whole file that an answer's headers state, empty if there is none."""
    for name in ("Repr-Digest", "Digest"):
        found = re.search(r"sha-256=:?([A-Za-z0-9+/]{43}=)", headers.get(name) or "", re.IGNORECASE)
        if found:
            with contextlib.suppress(binascii.Error):
                return "sha256:" + base64.b64decode(found.group(1)).hex()
    linked = (headers.get("X-Linked-ETag") or "").strip().strip('"')
    return "sha256:" + linked.lower() if HEX.fullmatch(linked) else ""


def digest_beside(url: str, http_options: _fetch.HttpOptions) -> str:
    """Return the digest that ``URL.sha256`` has for the file, empty if there is no such thing."""
    parts = urllib.parse.urlsplit(url)
    beside = urllib.parse.urlunsplit(parts._replace(path=parts.path + ".sha256"))
    try:
        with contextlib.closing(_fetch.open_url(beside, http_options)) as response:
            text = response.read(DIGESTS_AT_MOST).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return ""
    return digest_in(text, urllib.parse.unquote(parts.path.rpartition("/")[2]))


def digest_in(text: str, name: str) -> str:
    """Return the digest of a file in the output of ``sha256sum``: the line that names it, or the only one there is."""
    lines = [(line, found.group().lower()) for line in text.splitlines() for found in [HEX.search(line)] if found]
    named = [digest for line, digest in lines if name in line]
    known = set(named or [digest for _line, digest in lines])
    return "sha256:" + known.pop() if len(known) == 1 else ""
