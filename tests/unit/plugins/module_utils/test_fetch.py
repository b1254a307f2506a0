# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads from a real HTTP server that cuts, corrupts, stalls, ignores Range or answers it wrongly."""

from __future__ import annotations

import base64
import errno
import hashlib
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _fetch
from ansible_collections.llm.cluster.plugins.module_utils._fetch import HttpOptions

CONTENT = hashlib.shake_256(b"weights").digest(3_000_000)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
QUICK = HttpOptions(timeout=5, retries=2, pause=0.01)


class Mirror(ThreadingHTTPServer):
    """Serves CONTENT. Each request takes one trick off the list; without any it is a good server."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tricks: list[str] = []
        self.seen: list[tuple[str, str]] = []  # method, Range
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/model.gguf"

    @property
    def gets(self) -> list[str]:
        return [asked for method, asked in self.seen if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Mirror

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.server.seen.append((self.command, asked))
        self.server.headers.append(dict(self.headers.items()))
        trick = self.server.tricks.pop(0) if self.server.tricks else ""
        if trick.isdigit():
            self.send_response(int(trick))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = CONTENT if trick != "corrupt" else bytes(byte ^ 1 for byte in CONTENT)
        start = 0
        if asked and trick != "ignore range":
            first, _, last = asked.partition("=")[2].partition("-")
            start = int(first)
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            end = int(last) + 1 if last else len(body)
            self.send_response(206)
            claimed = start if trick != "wrong range" else start + 1
            self.send_header("Content-Range", f"bytes {claimed}-{end - 1}/{len(body)}")
            body = body[start:end]
        else:
            self.send_response(200)
        if trick == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(body), 500_000):
                piece = body[at : at + 500_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if trick == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        if trick == "stall":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            time.sleep(1.5)
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "model.part"


HALF, QUARTER = len(CONTENT) // 2, len(CONTENT) // 4


@pytest.mark.parametrize(
    ("there", "tricks", "ranges", "resumed"),
    [
        pytest.param(b"", [], [""], 0, id="whole"),
        pytest.param(b"", ["chunked"], [""], 0, id="without a length"),
        pytest.param(b"", ["cut"], ["", f"bytes={HALF}-"], 0, id="cut once"),
        pytest.param(b"", ["503", "429", "cut"], ["", "", "", f"bytes={HALF}-"], 0, id="busy, then cut"),
        pytest.param(b"", ["cut", "ignore range"], ["", f"bytes={HALF}-"], 0, id="cut, and Range is ignored"),
        pytest.param(b"", ["cut", "wrong range"], ["", f"bytes={HALF}-", ""], 0, id="another range than asked for"),
        pytest.param(CONTENT[:QUARTER], [], [f"bytes={QUARTER}-"], QUARTER, id="resumed"),
        pytest.param(CONTENT, [], [], len(CONTENT), id="whole already"),
        pytest.param(CONTENT[:HALF], ["ignore range"], [f"bytes={HALF}-"], 0, id="resumed, but Range is ignored"),
        pytest.param(b"x" * HALF, [], [f"bytes={HALF}-", ""], 0, id="a wrong part is given up"),
        pytest.param(CONTENT + b"x", [], [f"bytes={len(CONTENT) + 1}-", ""], 0, id="too long a part is given up"),
    ],
)
def test_download(
    mirror: Mirror, part: Path, *, there: bytes, tricks: list[str], ranges: list[str], resumed: int
) -> None:
    part.write_bytes(there)
    mirror.tricks = tricks
    fetched = _fetch.download(mirror.url, str(part), DIGEST, QUICK)
    assert part.read_bytes() == CONTENT
    assert fetched == _fetch.Fetched(len(CONTENT), resumed)
    assert mirror.gets == ranges


def test_wrong_content_is_thrown_away_and_named(mirror: Mirror, part: Path) -> None:
    mirror.tricks = ["corrupt"]
    got = "sha256:" + hashlib.sha256(bytes(byte ^ 1 for byte in CONTENT)).hexdigest()
    with pytest.raises(_fetch.WrongDigestError) as failure:
        _fetch.download(mirror.url, str(part), DIGEST, QUICK)
    assert (failure.value.expected, failure.value.got) == (DIGEST, got)
    assert DIGEST in str(failure.value)
    assert got in str(failure.value)
    assert not part.exists()


def test_a_broken_transfer_is_kept_and_the_next_run_goes_on(mirror: Mirror, part: Path) -> None:
    mirror.tricks = ["cut", "502", "502"]
    with pytest.raises(_fetch.BrokenTransferError, match=f"{HALF} bytes are kept"):
        _fetch.download(mirror.url, str(part), DIGEST, QUICK)
    assert part.read_bytes() == CONTENT[:HALF]
    mirror.seen.clear()
    assert _fetch.download(mirror.url, str(part), DIGEST, QUICK).resumed == HALF
    assert mirror.gets == [f"bytes={HALF}-"]


def test_progress_restores_the_tries(mirror: Mirror, part: Path) -> None:
    mirror.tricks = ["502", "502", "cut", "502", "cut", "502"]
    _fetch.download(mirror.url, str(part), DIGEST, QUICK)
    assert part.read_bytes() == CONTENT


def test_silence_is_a_broken_transfer(mirror: Mirror, part: Path) -> None:
    mirror.tricks = ["stall"]
    began = time.monotonic()
    _fetch.download(mirror.url, str(part), DIGEST, HttpOptions(timeout=0.3, retries=2, pause=0.01))
    assert time.monotonic() - began < 1.4
    assert mirror.gets == ["", f"bytes={HALF}-"]


@pytest.mark.parametrize(
    ("status", "says"), [("404", "source.url"), ("401", "USER:PASSWORD"), ("403", "refuses access"), ("410", "mirror")]
)
def test_refusals_are_final_and_say_what_to_do(mirror: Mirror, part: Path, status: str, says: str) -> None:
    mirror.tricks = [status]
    with pytest.raises(_fetch.FetchError, match=says) as failure:
        _fetch.download(mirror.url, str(part), DIGEST, QUICK)
    assert mirror.url in str(failure.value)
    assert len(mirror.gets) == 1


def test_nobody_there(part: Path) -> None:
    with pytest.raises(_fetch.FetchError, match=r"http://127\.0\.0\.1:9/x.*llm_models.*llm_http_proxy"):
        _fetch.download("http://127.0.0.1:9/x", str(part), DIGEST, HttpOptions(retries=0))
    with pytest.raises(_fetch.FetchError, match="neither an http nor an https"):
        _fetch.download("file:///etc/passwd", str(part), DIGEST, QUICK)
    with pytest.raises(_fetch.FetchError, match="llm_ca_file"):
        _fetch.remote_size("https://127.0.0.1:9/x", HttpOptions(ca_file="/none"))


def test_a_full_disk_is_told_before_and_with_both_numbers(
    mirror: Mirror, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetch, "free_bytes", lambda path: 2_000_000)
    with pytest.raises(_fetch.NoSpaceError, match=r"3\.0 MB \(3000000 bytes\).*2\.0 MB \(2000000 bytes\)"):
        _fetch.download(mirror.url, str(part), DIGEST, QUICK)
    part.write_bytes(CONTENT[:HALF])
    _fetch.download(mirror.url, str(part), DIGEST, QUICK)


def test_a_disk_that_fills_up_meanwhile(mirror: Mirror, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: _fetch.Partial, block: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_fetch.Partial, "write", write)
    with pytest.raises(_fetch.NoSpaceError, match="filled up"):
        _fetch.download(mirror.url, str(part), DIGEST, QUICK)


@pytest.mark.parametrize(
    ("tricks", "methods"), [([], ["HEAD"]), (["403"], ["HEAD", "GET"]), (["405"], ["HEAD", "GET"])]
)
def test_the_size_beforehand(mirror: Mirror, tricks: list[str], methods: list[str]) -> None:
    mirror.tricks = tricks
    assert _fetch.remote_size(mirror.url, QUICK) == len(CONTENT)
    assert [method for method, _ in mirror.seen] == methods


def test_a_login_in_the_url_is_sent_and_not_told(mirror: Mirror) -> None:
    url = mirror.url.replace("http://", "http://me:s%40crt@")
    _fetch.remote_size(url, QUICK)
    assert mirror.headers[0]["Authorization"] == "Basic " + base64.b64encode(b"me:s@crt").decode()
    mirror.tricks = ["404"]
    with pytest.raises(_fetch.FetchError) as failure:
        _fetch.remote_size(url, QUICK)
    assert "s%40crt" not in str(failure.value)


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = HttpOptions(http_proxy="http://p:1", no_proxy="mirror.lan,.inside")
    assert _fetch.proxies_for("http://x.example/", asked) == {"http": "http://p:1"}
    assert _fetch.proxies_for("http://mirror.lan/", asked) == {}
    assert _fetch.proxies_for("http://a.inside/", asked) == {}
    monkeypatch.setenv("https_proxy", "http://env:2")
    assert _fetch.proxies_for("https://x.example/", HttpOptions()) == {"https": "http://env:2"}


def test_goes_through_the_proxy(mirror: Mirror, part: Path) -> None:
    proxy = mirror.url.replace("/model.gguf", "")
    options = HttpOptions(timeout=5, retries=0, http_proxy=proxy, no_proxy="other")
    _fetch.download("http://upstream.invalid/model.gguf", str(part), DIGEST, options)
    assert mirror.headers[0]["Host"] == "upstream.invalid"


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (253113024, "253.1 MB"), (4.2e12, "4.2 TB")])
def test_sizes_for_people(count: float, text: str) -> None:
    assert _fetch.human(count) == text
