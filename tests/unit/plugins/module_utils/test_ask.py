# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _ask as ask


class Endpoint(BaseHTTPRequestHandler):
    """A scripted endpoint: answers every POST with the status and body it was told."""

    status: ClassVar[int] = 200
    body: ClassVar[bytes] = b""
    seen: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers["Authorization"], **request})
        self.send_response(self.status)
        self.send_header("X-LLM-Peer", "n1")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


@pytest.fixture
def url() -> Iterator[str]:
    Endpoint.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def question(url: str, stream: bool = False, count: int = 1) -> ask.Question:
    return ask.Question("q", url, "m", "hello", stream, count, 8)


def completion(text: str, tokens: int = 3) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}], "usage": {"completion_tokens": tokens}}).encode()


def test_an_answer_has_its_text_and_peer(url: str) -> None:
    Endpoint.status, Endpoint.body = 200, completion(" Paris")
    answer = ask.ask(question(url), ask.Access(api_key="k", timeout=5))
    assert (answer.text, answer.peer) == (" Paris", "n1")
    assert Endpoint.seen[0]["path"] == "/v1/chat/completions"
    assert Endpoint.seen[0]["key"] == "Bearer k"


def test_a_summary_counts_answers_and_peers(url: str) -> None:
    Endpoint.status, Endpoint.body = 200, completion("x")
    summary = ask.ask_all(question(url, count=5), ask.Access(timeout=5), concurrency=2)
    assert (summary["asked"], summary["answered"], summary["peers"], summary["errors"]) == (5, 5, {"n1": 5}, {})


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b'{"error": {"message": "bad key"}}', "HTTP 401: bad key"),
        (404, b'{"error": "model not found"}', "HTTP 404: model not found"),
        (500, b"oops", "HTTP 500: oops"),
        (200, b"oops", "not a chat completion"),
        (200, completion("", 0), "empty"),
    ],
)
def test_anything_else_is_no_answer_with_its_reason(url: str, status: int, body: bytes, reason: str) -> None:
    Endpoint.status, Endpoint.body = status, body
    with pytest.raises(ask.NoAnswerError, match=reason):
        ask.ask(question(url), ask.Access(timeout=5))


def piece(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() + b"\n\n"


def test_a_stream_is_joined(url: str) -> None:
    Endpoint.status, Endpoint.body = 200, piece("Pa") + b": comment\n\n" + piece("ris") + b"data: [DONE]\n\n"
    assert ask.ask(question(url, stream=True), ask.Access(timeout=5)).text == "Paris"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (piece("Pa"), "broke off"),
        (b"data: [DONE]\n\n", "no piece"),
        (piece("Pa") + b'data: {"error": {"message": "node lost"}}\n\n', "node lost"),
        (b"data: nonsense\n\n", "something else"),
    ],
)
def test_a_stream_without_its_end_is_no_answer(url: str, body: bytes, reason: str) -> None:
    Endpoint.status, Endpoint.body = 200, body
    with pytest.raises(ask.NoAnswerError, match=reason):
        ask.ask(question(url, stream=True), ask.Access(timeout=5))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for llm.example.com with its key, both in one file."""
    path = tmp_path / "endpoint.pem"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        str(path),
        "-out",
        str(path) + ".crt",
    ]
    names = ["-subj", "/CN=llm.example.com", "-addext", "subjectAltName=DNS:llm.example.com"]
    subprocess.run([*request, *names], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(str(path) + ".crt").read_text())
    return path


def test_an_endpoint_is_asked_at_an_address_by_its_name(certificate: Path) -> None:
    Endpoint.status, Endpoint.body = 200, completion("x")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    trusting = ask.Access(timeout=5, ca_file=f"{certificate}.crt")
    try:
        named = ask.Question("q", f"https://llm.example.com:{server.server_port}", "m", "p", False, 1, 8, "127.0.0.1")
        assert ask.ask(named, trusting).text == "x"
        with pytest.raises(ask.NoAnswerError, match="CERTIFICATE_VERIFY_FAILED"):
            ask.ask(question(f"https://127.0.0.1:{server.server_port}"), trusting)
        with pytest.raises(ask.NoAnswerError, match="CERTIFICATE_VERIFY_FAILED"):
            ask.ask(named, ask.Access(timeout=5))
    finally:
        server.shutdown()
        server.server_close()


def test_a_closed_port_is_said_so() -> None:
    summary = ask.ask_all(question("http://127.0.0.1:9", count=2), ask.Access(timeout=2), concurrency=2)
    assert summary["errors"] == {"connection refused": 2}
    assert summary["seconds"] is None


def test_a_wrong_address_is_said_so() -> None:
    with pytest.raises(ask.NoAnswerError, match="http://HOST:PORT"):
        ask.ask(question("node1:8000"), ask.Access())
