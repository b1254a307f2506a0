# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching a file from the first of several sources that has it: other nodes of the cluster, then where it came from.

Standard library only, no Ansible import. What one source gave, the next one goes on from: a file's bytes are the same
everywhere, as its digest says. A source that gave others is not asked again.

Other nodes serve what they have by _share_server while a distribution runs, also files that they are fetching
themselves. Beside a partial file its whole size is noted (``PARTIAL.size``), so that they can.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import time
import urllib.parse
from dataclasses import dataclass
from typing import Iterable, Iterator

from ansible_collections.llm.cluster.plugins.module_utils import _fetch
from ansible_collections.llm.cluster.plugins.module_utils._fetch import (
    BrokenTransferError,
    Fetched,
    FetchError,
    HttpOptions,
    Partial,
    WrongDigestError,
)
from ansible_collections.llm.cluster.plugins.module_utils._share_server import Bucket

# Inside a LAN a node that is up takes a connection at once. One that took none so often is down.
CONNECT = 3.0
TRIES = 3
# After so much silence a peer is asked anew, which shows whether it is up.
PROBE = 10.0
# Between two tries at a peer.
PAUSE = 0.5
# Longest time in which a peer may keep a question that it cannot answer yet.
WAIT = 10.0


@dataclass(frozen=True)
class Source:
    """Where a file can be had: the whole URL, and the bearer token to show there.

    patience: seconds of silence before a peer is given up for the next source. Sources that aren't peers are asked as
    the HTTP options say.
    """

    url: str
    token: str = ""
    patience: float = 60.0
    peer: bool = False


class NotYetError(Exception):
    """A peer is up, but hasn't got the file or the next bytes of it yet."""


def peer_sources(peers: Iterable[str], digest: str, token: str, patience: float) -> list[Source]:
    """Return the sources of a file at other nodes' shares, which are given as ``http://ADDRESS:PORT``."""
    blob = "/blobs/" + digest.replace(":", "-", 1)
    return [Source(peer.rstrip("/") + blob, token, patience, peer=True) for peer in peers]


def read_token(path: str) -> str:
    """Return the token of a distribution, which the shares' module left on the node."""
    try:
        with open(path, encoding="ascii") as stream:
            return stream.read().strip()
    except (OSError, ValueError) as error:
        raise FetchError(
            f"The token for other nodes' shares cannot be read: {error}. Start this node's share first "
            "(llm.cluster.model_share), or leave peers out."
        ) from error


def note_size(path: str, size: int) -> None:
    """Note the whole size of a partial file, so that it can be served while it grows."""
    note = path + ".size"
    with open(note + ".new", "w", encoding="ascii") as stream:
        stream.write(str(size))
    os.rename(note + ".new", note)


def forget_size(path: str) -> None:
    """Remove that note."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + ".size")


def fetch_blob(
    sources: list[Source],
    path: str,
    digest: str,
    options: HttpOptions,
    *,
    max_rate: int = 0,
    size: int | None = None,
) -> Fetched:
    """Fetch a file into a partial file until that is whole and has the digest; go on where an earlier try stopped.

    The sources are asked in their order, and what one has begun the next one ends. max_rate: bytes per second, 0 for
    all there are. size: of the whole file, if it is known beforehand.

    Raises NoSpaceError, WrongDigestError when the last source alone gave a whole file that is another one (it is thrown
    away then), and else BrokenTransferError, which says of each source why it was given up; what came is kept then.
    """
    with Partial(path) as partial, _noted(path, size):
        transfer = _Transfer(partial, digest, options, Bucket(max_rate), size)
        transfer.run(sources)
        partial.sync()
        return Fetched(partial.size, partial.resumed)


@contextlib.contextmanager
def _noted(path: str, size: int | None) -> Iterator[None]:
    if size is not None:
        note_size(path, size)
    try:
        yield
    finally:
        forget_size(path)


class _Transfer:
    """One file on its way."""

    def __init__(self, partial: Partial, digest: str, options: HttpOptions, bucket: Bucket, size: int | None) -> None:
        self.partial = partial
        self.digest = digest
        self.options = options
        self.bucket = bucket
        self.noted = size
        self.moved_at = time.monotonic()

    @property
    def whole(self) -> bool:
        """Whether the file is there."""
        return bool(self.partial.size) and self.partial.digest == self.digest

    def run(self, sources: list[Source]) -> None:
        """Ask one source after the other until the file is whole."""
        waiting = list(sources)
        reasons: list[str] = []
        problem = FetchError("there is nothing to fetch from")
        # What the partial file holds may come from an earlier run, or from several sources: then nobody is to blame.
        mixed = self.partial.size > 0
        if mixed and self.noted is not None and self.partial.size >= self.noted and not self.whole:
            self.partial.truncate()
            mixed = False
        while not self.whole:
            if not waiting:
                raise self._gone(reasons, problem)
            source = waiting[0]
            before = self.partial.size
            try:
                self._receive(source)
            except _fetch.NoSpaceError:
                raise
            except FetchError as error:
                problem = error
                reasons.append(str(error))
                waiting.pop(0)
                mixed = mixed or self.partial.size > before
                continue
            if self.whole:
                break
            problem = WrongDigestError(_name(source), self.digest, self.partial.digest)
            self.partial.truncate()
            if not mixed:
                reasons.append(f"{_name(source)} gave {problem.got} instead")
                waiting.pop(0)
                if not waiting and not source.peer:
                    os.unlink(self.partial.path)
                    raise problem
            mixed = False

    def _gone(self, reasons: list[str], last: FetchError) -> FetchError:
        """Return why the file cannot be had."""
        if len(reasons) < 2:
            return last
        kept = ""
        if self.partial.size:
            kept = f" ({self.partial.size} bytes are kept in {self.partial.path}; run again to go on from there.)"
        return BrokenTransferError(
            f"{self.digest} could not be had from any of its {len(reasons)} sources: {' | '.join(reasons)}{kept}"
        )

    def _moved(self, count: int, total: int | None) -> None:
        """Note what came, and wait as long as that much may take."""
        if total is not None and total != self.noted:
            self.noted = total
            note_size(self.partial.path, total)
        self.bucket.take(count)
        if count:
            self.moved_at = time.monotonic()

    def _receive(self, source: Source) -> None:
        """Append what a source has; return when it says that the file is whole."""
        if source.peer:
            self._receive_from_peer(source)
        else:
            _fetch.complete(source.url, self.partial, self.digest, self.options, moved=self._moved, token=source.token)

    def _receive_from_peer(self, source: Source) -> None:
        self.moved_at = time.monotonic()
        failures = 0
        while not self.whole:
            before = self.partial.size
            reason: object = "broke off"
            try:
                total = self._ask_peer(source)
                if total is not None and self.partial.size >= total:
                    return
                failures = 1 if self.partial.size > before else failures + 1
            except NotYetError as error:
                reason, failures = error, 0
            except (OSError, http.client.HTTPException) as error:
                _fetch.refuse_full_disk(error, self.partial)
                reason = error or error.__class__.__name__
                failures = 1 if self.partial.size > before else failures + 1
            if self._left(source) <= PAUSE:
                raise FetchError(f"{_name(source)}: nothing came for {source.patience:g} s (last: {reason})")
            if failures >= TRIES:
                raise FetchError(f"{_name(source)} failed {failures} times: {reason}")
            time.sleep(PAUSE)

    def _left(self, source: Source) -> float:
        """Seconds of silence that a source still has."""
        return source.patience - (time.monotonic() - self.moved_at)

    def _ask_peer(self, source: Source) -> int | None:
        """Make one request to a peer, never through a proxy, and append what it gives; return the file's size."""
        where = urllib.parse.urlsplit(source.url)
        left = max(self._left(source), PAUSE)
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=min(CONNECT, left))
        try:
            connection.connect()
            # Who gave some of it has the file: silence means that it is down.
            wait = 1 if self.partial.size else max(int(min(WAIT, left / 2)), 1)
            headers = {"Authorization": "Bearer " + source.token, "Prefer": f"wait={wait}"}
            if self.partial.size:
                headers["Range"] = f"bytes={self.partial.size}-"
            connection.sock.settimeout(wait + CONNECT)
            connection.request("GET", where.path, headers=headers)
            wire = connection.sock
            response = connection.getresponse()
            if response.status in (404, 503):
                raise NotYetError("it hasn't got the file yet")
            if response.status == 416:
                # More than the file has, or all of it, and the digest is another one.
                self.partial.truncate()
                raise OSError("it has less than what is here already")
            if response.status not in (200, 206):
                raise FetchError(f"{_name(source)} answered {response.status} {response.reason}")
            wire.settimeout(min(PROBE, source.patience))
            try:
                return _fetch.append_body(response, self.partial, _name(source), self._moved)
            except socket.timeout as error:
                raise NotYetError("it sends nothing") from error
        finally:
            connection.close()


def _name(source: Source) -> str:
    """Return the source's URL without a login."""
    return _fetch.split_credentials(source.url)[0]
