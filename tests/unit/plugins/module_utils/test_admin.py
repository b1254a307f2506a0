# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The admin client: what it sends, and what each answer or failure turns into."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ansible_collections.llm.cluster.plugins.module_utils._admin import (
    AdminClient,
    AdminError,
    RefusedError,
    UnreachableError,
    error_message,
    read_answer,
)


def whole_request(connection: socket.socket) -> bytes:
    """Read head and body: they may come in two pieces, and an answer before the second would break the sender off."""
    data = b""
    while True:
        piece = connection.recv(65536)
        data += piece
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if not piece or (end and len(body) >= int(length.group(1) if length else 0)):
            return data


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Serve one raw answer at the socket; yield the list that receives the request."""
    requests: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                requests.append(whole_request(connection))
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield requests
        thread.join(5)


def http_answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def test_get_returns_the_object(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with answering(path, http_answer("200 OK", b'{"version": 3}')) as requests:
        assert AdminClient(str(path)).get("/state") == {"version": 3}
    assert requests[0].startswith(b"GET /state HTTP/1.1\r\n")
    assert b"Content-Type" not in requests[0]


def test_put_sends_json(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with answering(path, http_answer("200 OK", b'{"changed": true}')) as requests:
        assert AdminClient(str(path)).put("/routing", {"b": 1, "a": "ü"}) == {"changed": True}
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert json.loads(body) == {"a": "ü", "b": 1}


def test_refusal_carries_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    answer = http_answer("400 Bad Request", b'{"error": {"message": "peer a: no slots"}}')
    with answering(path, answer), pytest.raises(RefusedError) as caught:
        AdminClient(str(path)).put("/routing", {})
    assert caught.value.status == 400
    assert caught.value.reason == "peer a: no slots"
    assert "PUT /routing with 400: peer a: no slots" in str(caught.value)


def test_missing_socket(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"There is no admin socket .*journalctl -u nginx"):
        AdminClient(str(tmp_path / "none.sock")).get("/state")


def test_socket_without_a_listener(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    with pytest.raises(UnreachableError, match=r"Nobody listens .*journalctl -u nginx"):
        AdminClient(str(path)).get("/state")


def test_silent_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(UnreachableError, match=r"no answer within 0\.05 s"):
            AdminClient(str(path), timeout=0.05).get("/state")


def test_connection_that_breaks_off(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
    with answering(path, answer), pytest.raises(UnreachableError, match="broke off"):
        AdminClient(str(path)).get("/state")


@pytest.mark.parametrize(
    ("status", "raw", "error", "words"),
    [
        (500, b"<html>oops</html>", AdminError, "500: <html>oops</html>.*journalctl"),
        (503, b"", AdminError, "no reason given"),
        (404, b'{"error": "not found"}', RefusedError, "404: not found"),
        (200, b"hello", AdminError, "not this collection's balancer"),
        (200, b"[1]", AdminError, "not this collection's balancer"),
        (200, b"\xff\xfe", AdminError, "not this collection's balancer"),
        (302, b"{}", AdminError, "status 302"),
    ],
)
def test_answers_that_are_errors(status: int, raw: bytes, error: type[AdminError], words: str) -> None:
    with pytest.raises(error, match=words):
        read_answer("GET /state", status, raw)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": {"message": "why"}}, "why"),
        ({"error": "why"}, "why"),
        ({"error": {}}, None),
        ({"error": 3}, None),
        ([], None),
        (None, None),
    ],
)
def test_error_message(answer: object, message: str | None) -> None:
    assert error_message(answer) == message
