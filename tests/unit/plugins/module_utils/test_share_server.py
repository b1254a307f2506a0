# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The share as its clients see it, over real connections."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _share_server
from ansible_collections.llm.cluster.plugins.module_utils._share_server import Bucket, Files, RefusedError, Share

TOKEN = "a-token-of-forty-characters-or-so"
CONTENT = hashlib.shake_256(b"weights").digest(1_000_000)
HEX = hashlib.sha256(CONTENT).hexdigest()
NAME = "sha256-" + HEX


class Node:
    """A store and its share."""

    def __init__(self, folder: Path, address: str = "127.0.0.1", allowed: str = "127.0.0.1") -> None:
        self.models, self.partials = folder / "models", folder / "partial"
        for path in (self.models / "blobs", self.partials / "manifests"):
            path.mkdir(parents=True)
        files = Files(str(self.models), str(self.partials))
        self.share = Share((address, 0), TOKEN.encode(), files, [allowed], 0)
        self.port = self.share.server_address[1]
        self.thread = Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        with contextlib.suppress(_share_server.NobodyAsksError):
            self.share.serve_forever(0.01)

    def ask(
        self, path: str = f"/blobs/{NAME}", method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask as a node does; return status, headers and body."""
        connection = http.client.HTTPConnection(self.share.server_address[0], self.port, timeout=10)
        try:
            shown = {"Authorization": f"Bearer {TOKEN}", **headers}
            connection.request(method, path, headers={name: value for name, value in shown.items() if value})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def grow(self, *pieces: bytes, pause: float = 0.1) -> None:
        """Add to the partial file, piece after piece."""
        with (self.partials / f"{NAME}.part").open("ab", buffering=0) as stream:
            for piece in pieces:
                time.sleep(pause)
                stream.write(piece)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def one(**how: str) -> Node:
        made.append(Node(tmp_path / str(len(made)), **how))
        return made[-1]

    yield one
    for node in made:
        node.share.shutdown()
        node.share.server_close()


@pytest.fixture
def node(make: Callable[..., Node]) -> Node:
    return make()


@pytest.mark.parametrize(
    "place",
    [f"models/{NAME}.gguf", f"models/blobs/{NAME}", f"partial/manifests/{NAME}"],
    ids=["gguf", "blob", "manifest"],
)
def test_whole_files(node: Node, place: str) -> None:
    (node.models.parent / place).write_bytes(CONTENT)
    status, headers, body = node.ask()
    assert (status, headers["Content-Length"], body) == (200, str(len(CONTENT)), CONTENT)
    status, headers, body = node.ask(method="HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(len(CONTENT)), b"")


@pytest.mark.parametrize(
    ("asked", "status", "said", "body"),
    [
        ("bytes=999990-", 206, "bytes 999990-999999/1000000", CONTENT[-10:]),
        ("bytes=5-9", 206, "bytes 5-9/1000000", CONTENT[5:10]),
        ("bytes=999990-2000000", 206, "bytes 999990-999999/1000000", CONTENT[-10:]),
        ("bytes=1000000-", 416, "bytes */1000000", b""),
        ("bytes=9-5", 416, "bytes */1000000", b""),
        ("bytes=1-2,5-6", 200, None, CONTENT),
        ("lines=1-2", 200, None, CONTENT),
    ],
)
def test_ranges(node: Node, asked: str, status: int, said: str | None, body: bytes) -> None:
    (node.models / f"{NAME}.gguf").write_bytes(CONTENT)
    got, headers, sent = node.ask(Range=asked)
    assert (got, headers.get("Content-Range"), sent) == (status, said, body)


@pytest.mark.parametrize(
    ("path", "method", "authorization", "status"),
    [
        ("/blobs/" + NAME, "GET", "", 401),
        ("/blobs/" + NAME, "GET", "Bearer " + TOKEN[:-1], 401),
        ("/blobs/" + NAME, "GET", "Basic " + TOKEN, 401),
        ("/none", "GET", "Bearer wrong", 401),
        ("/blobs/" + NAME, "POST", f"Bearer {TOKEN}", 405),
        ("/", "GET", f"Bearer {TOKEN}", 404),
        ("/blobs/" + NAME + "/../x", "GET", f"Bearer {TOKEN}", 404),
        ("/blobs/../secret", "GET", f"Bearer {TOKEN}", 404),
        ("/blobs/sha256-" + "A" * 64, "GET", f"Bearer {TOKEN}", 404),
        ("/blobs/" + NAME + "?x", "GET", f"Bearer {TOKEN}", 404),
    ],
)
def test_refusals(node: Node, path: str, method: str, authorization: str, status: int) -> None:
    (node.models / f"{NAME}.gguf").write_bytes(CONTENT)
    (node.models.parent / "secret").write_text("secret")
    got, _headers, body = node.ask(path, method, Authorization=authorization)
    assert (got, body) == (status, b"")


@pytest.mark.parametrize("head", [b"GET\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET / HTTP/1.1\r\nnonsense\r\n\r\n"])
def test_what_is_no_request(head: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        _share_server.parse_head(head.partition(b"\r\n\r\n")[0], TOKEN.encode())
    assert refused.value.status == 400


def test_a_head_without_end_is_cut(node: Node) -> None:
    with socket.create_connection(("127.0.0.1", node.port), 5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"x" * _share_server.LONGEST_HEAD)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_links_and_folders_are_not_served(node: Node) -> None:
    secret = node.models.parent / "secret"
    secret.write_bytes(CONTENT)
    (node.models / f"{NAME}.gguf").symlink_to(secret)
    (node.models / "blobs" / NAME).mkdir()
    assert node.ask()[0] == 404


def test_strangers_are_cut_off_unheard(make: Callable[..., Node]) -> None:
    node = make(allowed="192.0.2.1")
    with socket.create_connection(("127.0.0.1", node.port), 5) as connection:
        assert connection.recv(100) == b""


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_addresses_are_compared_in_one_form(text: str, plain: str) -> None:
    assert _share_server.plain_address(text) == plain


def test_over_ipv6(make: Callable[..., Node]) -> None:
    node = make(address="::1", allowed="0:0::1")
    (node.models / f"{NAME}.gguf").write_bytes(CONTENT)
    assert node.ask()[2] == CONTENT


def test_a_growing_file_is_sent_as_it_grows_and_is_moved_meanwhile(node: Node) -> None:
    part = node.partials / f"{NAME}.part"
    part.write_bytes(CONTENT[:1000])
    (node.partials / f"{NAME}.part.size").write_text(str(len(CONTENT)))
    answers: list[bytes] = []
    asking = Thread(target=lambda: answers.append(node.ask(Range="bytes=500-")[2]))
    asking.start()
    node.grow(CONTENT[1000:400_000], CONTENT[400_000:999_000])
    with part.open("ab") as stream:
        part.rename(node.models / "blobs" / NAME)
        time.sleep(0.1)
        stream.write(CONTENT[999_000:])
    asking.join(5)
    assert answers == [CONTENT[500:]]


def test_a_growing_file_that_is_begun_anew(node: Node) -> None:
    part = node.partials / f"{NAME}.gguf.part"
    part.write_bytes(CONTENT[:1000])
    (node.partials / f"{NAME}.gguf.part.size").write_text(str(len(CONTENT)))
    answers: list[bytes] = []
    asking = Thread(target=lambda: answers.append(node.ask()[2]))
    asking.start()
    time.sleep(0.2)
    part.unlink()
    time.sleep(0.1)
    part.write_bytes(CONTENT)
    asking.join(5)
    assert answers == [CONTENT]


def test_what_is_not_there_yet(node: Node) -> None:
    assert node.ask()[0] == 404
    began = time.monotonic()
    status, headers, _body = node.ask(Prefer="wait=1")
    assert (status, headers["Retry-After"]) == (503, "1")
    assert time.monotonic() - began >= 1
    # A file whose whole size nobody knows cannot be promised.
    (node.partials / f"{NAME}.part").write_bytes(CONTENT[:9])
    assert node.ask(Prefer="wait=0")[0] == 503
    answers: list[bytes] = []
    asking = Thread(target=lambda: answers.append(node.ask(Prefer="wait=10")[2]))
    asking.start()
    time.sleep(0.1)
    (node.partials / f"{NAME}.part.size").write_text(str(len(CONTENT)))
    node.grow(CONTENT[9:])
    asking.join(5)
    assert answers == [CONTENT]


def test_a_client_that_leaves_frees_its_place(node: Node) -> None:
    (node.partials / f"{NAME}.part").write_bytes(b"")
    (node.partials / f"{NAME}.part.size").write_text("5")
    said: list[str] = []
    node.share.say = said.append
    with socket.create_connection(("127.0.0.1", node.port), 5) as connection:
        connection.sendall(f"GET /blobs/{NAME} HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert connection.recv(12) == b"HTTP/1.1 200"
    deadline = time.monotonic() + 5
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(said) == 1
    assert TOKEN not in said[0]


def test_it_ends_when_nobody_asks_any_more(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    (node.partials / f"{NAME}.part").write_bytes(CONTENT[:10])
    (node.partials / f"{NAME}.part.size").write_text(str(len(CONTENT)))
    waiting = Thread(target=node.ask, daemon=True)
    waiting.start()
    time.sleep(0.2)
    monkeypatch.setattr(_share_server, "IDLE_SECONDS", 0.1)
    node.thread.join(0.5)
    assert node.thread.is_alive(), "somebody waits for a file that grows"
    node.grow(CONTENT[10:])
    waiting.join(5)
    node.thread.join(5)
    assert not node.thread.is_alive()


def test_the_bucket_bounds_all_together() -> None:
    bucket = Bucket(1_000_000)
    began = time.monotonic()

    def take() -> None:
        for _piece in range(10):
            bucket.take(20_000)

    threads = [Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.28 <= time.monotonic() - began <= 0.8
    Bucket(0).take(1 << 60)


def test_the_program_ends_at_once_when_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", str(_share_server.__file__), "--address=127.0.0.1", f"--port={port}"),
            *(f"--models-dir={tmp_path}", f"--partial-dir={tmp_path}", "--allowed=127.0.0.1,::1"),
            f"--token-file={tmp_path / 'token'}",
        ],
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 10
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), 5)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    with connection:
        # In the middle of a request.
        connection.sendall(b"GET")
        os.kill(program.pid, signal.SIGTERM)
        assert program.wait(1) == -signal.SIGTERM
