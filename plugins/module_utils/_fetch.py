# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloading one large file whose SHA-256 is known: resumed, verified, never half there.

Standard library only, no Ansible import. What was fetched so far lives in a partial file; only its owner decides
what becomes of the whole one.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.client
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, BinaryIO, Callable, Sequence

BLOCK = 1024 * 1024
RECEIVE = 256 * 1024
# Answers that may be better on the next try.
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class FetchError(Exception):
    """A file could not be had; the message says what to do next."""


class WrongDigestError(FetchError):
    """The whole file came, and it isn't the one that was asked for."""

    def __init__(self, origin: str, expected: str, got: str) -> None:
        super().__init__(
            f"{origin} is not the wanted file: expected {expected}, got {got}. What was fetched is thrown away, and "
            "what was served before stays. Correct the digest or the source of this model."
        )
        self.expected = expected
        self.got = got


class NoSpaceError(FetchError):
    """The file does not fit on the disk."""


class BrokenTransferError(FetchError):
    """The transfer broke; what came is kept, and the next run goes on from there."""


# Called with the number of bytes that came and the whole file's size, first with none of them.
Moved = Callable[[int, "int | None"], None]


@dataclass(frozen=True)
class HttpOptions:
    """How to reach HTTP servers outside the node."""

    timeout: float = 30.0
    retries: int = 4
    pause: float = 1.0
    ca_file: str = ""
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""


@dataclass(frozen=True)
class Fetched:
    """What a download did: the file's size, and how many of its bytes were there already."""

    size: int
    resumed: int


def human(count: float) -> str:
    """Return a number of bytes for people: 253113024 → ``253.1 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def existing_parent(path: str) -> str:
    """Return the path, or its nearest parent that exists."""
    path = os.path.abspath(path)
    while not os.path.exists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def free_bytes(path: str) -> int:
    """Return how many bytes can still be written below the path, which need not exist yet."""
    stat = os.statvfs(existing_parent(path))
    return stat.f_bavail * stat.f_frsize


def require_space(path: str, needed: int, what: str) -> None:
    """Raise NoSpaceError when fewer than the needed bytes are free below the path."""
    free = free_bytes(path)
    if needed > free:
        raise NoSpaceError(
            f"{what} needs {human(needed)} ({needed} bytes) below {path}, where {human(free)} ({free} bytes) are free. "
            "Make room there, or choose another place for the models."
        )


def sha256_of(stream: BinaryIO, hasher: Any = None) -> Any:
    """Feed what is left of the stream to a hash and return it."""
    hasher = hasher or hashlib.sha256()
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    while True:
        count = stream.readinto(buffer)  # type: ignore[attr-defined]
        if not count:
            return hasher
        hasher.update(view[:count])


def sha256_file(path: str) -> str:
    """Return a file's digest as ``sha256:hex``."""
    with open(path, "rb", buffering=0) as stream:
        return "sha256:" + sha256_of(stream).hexdigest()


def split_credentials(url: str) -> tuple[str, str]:
    """Return the URL without its user and password, and these as an Authorization header's value, or ``""``."""
    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return url, ""
    login = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urllib.parse.urlunsplit(clean), "Basic " + base64.b64encode(login.encode()).decode()


def proxies_for(url: str, options: HttpOptions) -> dict[str, str]:
    """Return the proxies for a URL: the options', else the environment's."""
    host = urllib.parse.urlsplit(url).hostname or ""
    proxies = urllib.request.getproxies()
    for scheme, proxy in (("http", options.http_proxy), ("https", options.https_proxy), ("no", options.no_proxy)):
        if proxy:
            proxies[scheme] = proxy
    if urllib.request.proxy_bypass_environment(host, proxies):  # type: ignore[attr-defined]
        return {}
    return {scheme: proxy for scheme, proxy in proxies.items() if scheme in ("http", "https")}


def open_url(
    url: str,
    options: HttpOptions,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    token: str = "",
    *,
    handlers: Sequence[urllib.request.BaseHandler] = (),
) -> Any:
    """Open a URL and return the response; HTTP errors raise urllib's HTTPError."""
    clean, authorization = split_credentials(url)
    if urllib.parse.urlsplit(clean).scheme not in ("http", "https"):
        raise FetchError(f"{clean} is neither an http nor an https URL. Correct the model's source.url.")
    try:
        context = ssl.create_default_context(cafile=options.ca_file or None)
    except OSError as error:
        raise FetchError(
            f"The CA file {options.ca_file} cannot be read: {error}. Correct ca_file (llm_ca_file)."
        ) from error
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies_for(clean, options)),
        urllib.request.HTTPSHandler(context=context),
        *handlers,
    )
    request = urllib.request.Request(clean, method=method, headers={"Accept-Encoding": "identity", **(headers or {})})
    if token:
        authorization = "Bearer " + token
    if authorization:
        # Not sent on to where the server redirects.
        request.add_unredirected_header("Authorization", authorization)
    return opener.open(request, timeout=options.timeout)


def explain(url: str, error: BaseException, option: str = "source.url") -> FetchError:
    """Return what an error while talking to a URL means and what to do about it."""
    clean = split_credentials(url)[0]
    if isinstance(error, urllib.error.HTTPError):
        hints = {
            401: "It wants a login: write it into the URL as https://USER:PASSWORD@HOST/…",
            403: "It refuses access: check the URL and its login.",
            404: f"There is no such thing: check the model's {option} in llm_models.",
            407: "The proxy wants a login: check llm_http_proxy and llm_https_proxy.",
        }
        hint = hints.get(error.code, f"Try again later, or name another mirror in the model's {option}.")
        return FetchError(f"{clean} answered {error.code} {error.reason}. {hint}")
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLError):
        return FetchError(
            f"{clean}: the server's certificate is not trusted ({reason}). Set llm_ca_file to a file on the node that "
            "holds your network's CA."
        )
    if isinstance(reason, socket.timeout):
        reason = "no answer in time"
    return FetchError(
        f"{clean} cannot be reached from this node: {reason}. Check the model's {option} in llm_models; behind a "
        "proxy set llm_http_proxy, llm_https_proxy and llm_no_proxy."
    )


def remote_size(url: str, options: HttpOptions) -> int | None:
    """Return the size that a server states for a file, None when it states none; raise when there is no such file."""
    failure: BaseException = OSError("nothing was asked")
    # Servers that sign URLs for GET refuse HEAD: ask for the first byte then.
    for method, headers in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        try:
            with contextlib.closing(open_url(url, options, method, headers)) as response:
                return stated_size(response.status, response.headers)
        except urllib.error.HTTPError as error:
            failure = error
            if error.code == 404:
                break
        except (OSError, http.client.HTTPException) as error:
            raise explain(url, error) from error
    raise explain(url, failure) from failure


def stated_size(status: int, headers: Any) -> int | None:
    """Return the whole file's size out of an answer's headers."""
    if status == 206:
        found = re.search(r"/(\d+)\s*$", headers.get("Content-Range") or "")
        return int(found.group(1)) if found else None
    length = headers.get("Content-Length") or ""
    return int(length) if length.isdigit() else None


def range_start(headers: Any) -> int | None:
    """Return the first byte that a 206 answer carries."""
    found = re.match(r"\s*bytes\s+(\d+)-", headers.get("Content-Range") or "")
    return int(found.group(1)) if found else None


class Partial:
    """A growing file and the hash of what it holds."""

    def __init__(self, path: str) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self.stream = os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)
        self.hasher = sha256_of(self.stream)
        self.size = self.stream.tell()
        self.resumed = self.size

    def __enter__(self) -> Partial:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stream.close()

    @property
    def digest(self) -> str:
        """The digest of what is there."""
        return "sha256:" + self.hasher.hexdigest()

    def write(self, block: bytes) -> None:
        """Append a block."""
        view = memoryview(block)
        while view:
            written = self.stream.write(view)
            self.hasher.update(view[:written])
            self.size += written
            view = view[written:]

    def truncate(self, size: int = 0) -> None:
        """Keep only the first bytes."""
        self.stream.truncate(size)
        self.stream.seek(0)
        self.hasher = sha256_of(self.stream)
        self.size = size
        self.resumed = min(self.resumed, size)

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self.stream.fileno())


def download(
    url: str,
    path: str,
    digest: str,
    options: HttpOptions,
) -> Fetched:
    """Fetch a URL into a partial file until that is whole and has the digest; go on where an earlier try stopped.

    A file with another digest is thrown away (WrongDigestError). A broken transfer is kept (BrokenTransferError), after
    as many tries without any progress as the options say.
    """
    with Partial(path) as partial:
        complete(url, partial, digest, options)
        if partial.digest != digest and partial.resumed:
            # The part from an earlier run may be what is wrong: once more from the start.
            partial.truncate()
            complete(url, partial, digest, options)
        if partial.digest != digest:
            got = partial.digest
            os.unlink(path)
            raise WrongDigestError(split_credentials(url)[0], digest, got)
        partial.sync()
        return Fetched(partial.size, partial.resumed)


def complete(
    url: str,
    partial: Partial,
    digest: str,
    options: HttpOptions,
    *,
    moved: Moved | None = None,
    token: str = "",
) -> None:
    """Add to the partial file until the server says that it is whole."""
    failures = 0
    # A run that was killed between the last byte and the rename left it whole.
    while not (partial.size and partial.digest == digest):
        before = partial.size
        try:
            total = _receive(url, partial, options, moved, token)
            if total is None or partial.size == total:
                return
            failure: FetchError = FetchError(f"{split_credentials(url)[0]} broke off")
        except urllib.error.HTTPError as error:
            failure = explain(url, error)
            if error.code not in TRANSIENT:
                raise failure from error
        except (OSError, http.client.HTTPException) as error:
            refuse_full_disk(error, partial)
            failure = explain(url, error)
        failures = 1 if partial.size > before else failures + 1
        if failures > options.retries:
            partial.sync()
            raise BrokenTransferError(
                f"{failure} ({partial.size} bytes are kept in {partial.path}; run again to go on from there.)"
            )
        time.sleep(min(options.pause * 2 ** (failures - 1), 15))


def refuse_full_disk(error: BaseException, partial: Partial) -> None:
    """Raise NoSpaceError when that is what the error means."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        raise NoSpaceError(
            f"The disk filled up while {partial.path} grew ({human(partial.size)} so far, {error}). Make room; "
            "the next run goes on from there."
        ) from error


def _receive(
    url: str,
    partial: Partial,
    options: HttpOptions,
    moved: Moved | None,
    token: str,
) -> int | None:
    """Make one request and append its body; return the whole file's size where the server states it."""
    headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
    try:
        response = open_url(url, options, headers=headers, token=token)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not partial.size:
            raise
        # More than the file has, or all of it: what the digest says counts; if it is wrong, the caller starts anew.
        error.close()
        return partial.size
    with contextlib.closing(response):
        return append_body(response, partial, split_credentials(url)[0], moved)


def append_body(response: Any, partial: Partial, name: str, moved: Moved | None) -> int | None:
    """Append an answer's body to the partial file; return the whole file's size where the server states it."""
    if response.status == 206 and range_start(response.headers) != partial.size:
        partial.truncate()
        raise OSError("the server sent another range than was asked for")
    total = stated_size(response.status, response.headers)
    if response.status != 206 and partial.size:
        partial.truncate()
    if total is not None:
        require_space(os.path.dirname(partial.path), total - partial.size, name)
    if moved:
        moved(0, total)
    while True:
        # What is there at once, so that nothing is lost when it ceases.
        block = response.read1(RECEIVE)
        if not block:
            return total
        partial.write(block)
        if moved:
            moved(len(block), total)
