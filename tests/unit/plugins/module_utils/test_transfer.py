# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetching from peers and origin: real servers that have it, lack it, lie, stall or die."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _fetch, _transfer
from ansible_collections.llm.cluster.plugins.module_utils._fetch import BrokenTransferError, FetchError, HttpOptions
from ansible_collections.llm.cluster.plugins.module_utils._transfer import Source, fetch_blob, peer_sources

CONTENT = hashlib.shake_256(b"weights").digest(1_000_000)
WRONG = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2
QUICK = HttpOptions(timeout=5, retries=1, pause=0.01)
TOKEN = "not-a-secret-token"


class Server(ThreadingHTTPServer):
    """A peer or an origin. Each request takes one trick off the list, and the last one stays."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, tricks: list[str], content: bytes = CONTENT) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.tricks = tricks
        self.content = content
        self.ranges: list[str] = []
        self.tokens: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that left."""

    def peer(self, patience: float = 5.0) -> Source:
        return peer_sources([self.url], DIGEST, TOKEN, patience)[0]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        trick = self.server.tricks.pop(0) if len(self.server.tricks) > 1 else self.server.tricks[0]
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if trick == "drop":
            return
        first = int(asked.removeprefix("bytes=").removesuffix("-") or 0)
        body = self.server.content[first:]
        status = int(trick) if trick.isdigit() else 206 if asked else 200
        if first >= len(self.server.content):
            status = 416
        self.send_response(status)
        if status >= 400:
            self.end_headers()
            return
        if asked:
            self.send_header(
                "Content-Range", f"bytes {first}-{len(self.server.content) - 1}/{len(self.server.content)}"
            )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if trick in ("half", "stall", "silent"):
            self.wfile.write(body[: len(body) // 2 if trick != "silent" else 0])
            self.wfile.flush()
            time.sleep(0 if trick == "half" else 3)
            return
        self.wfile.write(body)


Make = Callable[..., Server]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Server] = []
    monkeypatch.setattr(_transfer, "PAUSE", 0.02)

    def one(*tricks: str, content: bytes = CONTENT) -> Server:
        made.append(Server(list(tricks) or ["good"], content))
        Thread(target=made[-1].serve_forever, args=(0.01,), daemon=True).start()
        return made[-1]

    yield one
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "model.part"


def left(part: Path) -> list[str]:
    """What lies in the folder."""
    return sorted(path.name for path in part.parent.iterdir())


REST = f"bytes={HALF}-"


@pytest.mark.parametrize(
    ("first", "second", "origin", "asked"),
    [
        pytest.param(["good"], ["good"], ["good"], [[""], [], []], id="the first has it"),
        pytest.param(["half", "drop"], ["good"], ["good"], [["", REST, REST], [REST], []], id="the next one ends it"),
        pytest.param(["half", "404"], ["401"], ["good"], [["", REST], [REST], [REST]], id="the origin ends it"),
        pytest.param(["404", "503", "good"], ["good"], ["good"], [["", "", ""], [], []], id="asked until it has it"),
        pytest.param(
            ["half", "half", "good"], ["good"], ["good"], [["", REST, f"bytes={HALF + HALF // 2}-"], [], []], id="cut"
        ),
        pytest.param(["500"], ["418"], ["good"], [["", ""], [""], [""]], id="errors"),
        pytest.param(["stall"], ["good"], ["good"], [[""], [REST], []], id="silence"),
    ],
)
def test_sources_in_their_order(
    serve: Make, part: Path, *, first: list[str], second: list[str], origin: list[str], asked: list[list[str]]
) -> None:
    servers = [serve(*tricks) for tricks in (first, second, origin)]
    sources = [servers[0].peer(0.5), servers[1].peer(), Source(servers[2].url)]
    fetched = fetch_blob(sources, str(part), DIGEST, QUICK)
    assert fetched == _fetch.Fetched(len(CONTENT), 0)
    assert part.read_bytes() == CONTENT
    assert left(part) == ["model.part"]
    got = [server.ranges for server in servers]
    # How often one is asked within its patience is a matter of time.
    assert [list(dict.fromkeys(each)) for each in got] == [list(dict.fromkeys(each)) for each in asked]
    assert servers[0].tokens == {f"Bearer {TOKEN}"}
    assert servers[2].tokens <= {""}


def test_a_peer_that_pauses_is_asked_anew_within_its_patience(
    serve: Make, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_transfer, "PROBE", 0.2)
    pauses, other = serve("stall", "503", "good"), serve()
    fetch_blob([pauses.peer(5.0), other.peer()], str(part), DIGEST, QUICK)
    assert (pauses.ranges, other.ranges) == (["", REST, REST], [])


def test_a_peer_that_is_down_is_not_waited_for(serve: Make, part: Path) -> None:
    began = time.monotonic()
    dead = Source("http://127.0.0.1:9/blobs/x", TOKEN, 60.0, peer=True)
    fetch_blob([dead, serve().peer()], str(part), DIGEST, QUICK)
    assert time.monotonic() - began < 2


def test_an_answer_without_bytes_is_silence(serve: Make, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transfer, "PROBE", 0.1)
    with pytest.raises(FetchError, match=r"nothing came for 0\.6 s"):
        fetch_blob([serve("silent").peer(0.6)], str(part), DIGEST, QUICK)


def test_goes_on_where_an_earlier_run_stopped(serve: Make, part: Path) -> None:
    part.write_bytes(CONTENT[:HALF])
    peer = serve()
    assert fetch_blob([peer.peer()], str(part), DIGEST, QUICK).resumed == HALF
    assert peer.ranges == [REST]


def test_whole_already(part: Path) -> None:
    part.write_bytes(CONTENT)
    assert fetch_blob([Source("http://127.0.0.1:9/")], str(part), DIGEST, QUICK).resumed == len(CONTENT)


@pytest.mark.parametrize("size", [None, len(CONTENT)])
@pytest.mark.parametrize("there", [WRONG, WRONG[:HALF], WRONG + b"x"], ids=["whole", "half", "too long"])
def test_wrong_bytes_of_an_earlier_run_are_thrown_away(serve: Make, part: Path, there: bytes, size: int | None) -> None:
    part.write_bytes(there)
    peer = serve()
    assert fetch_blob([peer.peer()], str(part), DIGEST, QUICK, size=size).resumed == 0
    assert part.read_bytes() == CONTENT


def test_who_gave_wrong_bytes_is_not_asked_again(serve: Make, part: Path) -> None:
    liar, honest, origin = serve(content=WRONG), serve(), serve()
    fetch_blob([liar.peer(), honest.peer(), Source(origin.url)], str(part), DIGEST, QUICK)
    assert part.read_bytes() == CONTENT
    assert (liar.ranges, honest.ranges, origin.ranges) == ([""], [""], [])


def test_of_two_that_gave_parts_the_right_one_is_kept(serve: Make, part: Path) -> None:
    liar, honest = serve("half", "401", content=WRONG), serve()
    fetch_blob([liar.peer(), honest.peer()], str(part), DIGEST, QUICK)
    assert part.read_bytes() == CONTENT
    assert honest.ranges == [REST, ""]


def test_an_origin_with_another_file_is_told(serve: Make, part: Path) -> None:
    peer, origin = serve("404"), serve(content=WRONG)
    with pytest.raises(_fetch.WrongDigestError) as failure:
        fetch_blob([peer.peer(0.2), Source(origin.url)], str(part), DIGEST, QUICK)
    assert failure.value.expected == DIGEST
    assert left(part) == []


def test_all_gone_names_each_and_why_but_no_secrets(serve: Make, part: Path) -> None:
    stalls, refuses, broken = serve("half", "503"), serve("401"), serve("404")
    dead = Source("http://127.0.0.1:9/blobs/x", TOKEN, 5.0, peer=True)
    login = Source(broken.url.replace("http://", "http://me:pass-word@"))
    with pytest.raises(BrokenTransferError) as failure:
        fetch_blob([stalls.peer(0.3), refuses.peer(), dead, login], str(part), DIGEST, QUICK)
    said = str(failure.value)
    for words in (
        stalls.url,
        "nothing came for 0.3 s",
        refuses.url,
        "401",
        "127.0.0.1:9",
        "refused",
        broken.url,
        "404",
    ):
        assert words in said
    assert f"{HALF} bytes are kept" in said
    assert "run again" in said
    assert TOKEN not in said
    assert "pass-word" not in said
    assert left(part) == ["model.part"]


def test_one_source_alone_speaks_for_itself(serve: Make, part: Path) -> None:
    with pytest.raises(FetchError, match=r"source\.url"):
        fetch_blob([Source(serve("404").url)], str(part), DIGEST, QUICK)
    with pytest.raises(FetchError, match="nothing to fetch from"):
        fetch_blob([], str(part), DIGEST, QUICK)


def test_the_size_is_noted_while_it_grows(serve: Make, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noted = []
    note = part.with_name("model.part.size")
    take = _transfer.Bucket.take

    def look(self: Any, count: int) -> None:
        noted.append((count > 0, note.read_text()))
        take(self, count)

    monkeypatch.setattr(_transfer.Bucket, "take", look)
    fetch_blob([serve().peer()], str(part), DIGEST, QUICK)
    # Before the first byte, and from then on.
    assert noted[0] == (False, "1000000")
    assert {text for _, text in noted} == {"1000000"}
    assert left(part) == ["model.part"]
    part.unlink()
    # Known beforehand: before anybody answers.
    with pytest.raises(FetchError):
        fetch_blob([serve("404").peer(0.1)], str(part), DIGEST, QUICK, size=5)
    assert not note.exists()


def test_a_full_disk_ends_it_whoever_could_still_be_asked(
    serve: Make, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetch, "free_bytes", lambda path: 1000)
    origin = serve()
    with pytest.raises(_fetch.NoSpaceError):
        fetch_blob([serve().peer(), Source(origin.url)], str(part), DIGEST, QUICK)
    assert origin.ranges == []


def test_peers_are_never_asked_through_a_proxy(serve: Make, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    fetch_blob([serve().peer()], str(part), DIGEST, HttpOptions(retries=0, http_proxy="http://127.0.0.1:9"))
    assert part.read_bytes() == CONTENT


def test_the_rate_is_bounded(serve: Make, part: Path) -> None:
    began = time.monotonic()
    fetch_blob([Source(serve().url)], str(part), DIGEST, QUICK, max_rate=2_000_000)
    assert time.monotonic() - began >= 0.35


def test_the_token_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert _transfer.read_token(str(tmp_path / "token")) == TOKEN
    with pytest.raises(FetchError, match="model_share"):
        _transfer.read_token(str(tmp_path / "none"))


def test_urls_of_peers() -> None:
    sources = peer_sources(["http://192.0.2.1:8090", "http://[2001:db8::1]:8090/"], "sha256:ab", "t", 7.0)
    assert sources == [
        Source("http://192.0.2.1:8090/blobs/sha256-ab", "t", 7.0, peer=True),
        Source("http://[2001:db8::1]:8090/blobs/sha256-ab", "t", 7.0, peer=True),
    ]
