# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers come back byte for byte and as they are made."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest
from balancer.harness import KEY, Balancer, MakeEngine, table, wait_for

PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"]


def read_stream(balancer: Balancer, path: str, body: dict) -> tuple[list[tuple[float, bytes]], bytes]:
    """The pieces of a streamed answer, each with the seconds since the request, and the whole."""
    connection = balancer.connection()
    started = time.monotonic()
    connection.request("POST", path, json.dumps(body), {"Authorization": "Bearer " + KEY})
    response = connection.getresponse()
    pieces = []
    try:
        while piece := response.read1(65536):
            pieces.append((time.monotonic() - started, piece))
    finally:
        connection.close()
    return pieces, b"".join(piece for _, piece in pieces)


@pytest.mark.parametrize("path", PATHS)
def test_sse_is_relayed_unchanged_and_at_once(balancer: Balancer, engine: MakeEngine, path: str) -> None:
    one = engine(tokens=5, gap=0.1)
    balancer.put(table(one))
    pieces, whole = read_stream(balancer, path, {"model": "m", "stream": True})
    assert whole == b"".join(one.events(path))
    assert len(pieces) >= 5
    assert pieces[0][0] < 0.15
    assert 0.4 < pieces[-1][0] < 1.5
    for _, piece in pieces:
        assert piece.endswith(b"\n\n"), "only whole events are forwarded"


def test_a_stream_to_a_client_of_http_1_0(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(tokens=5, gap=0.1)
    balancer.put(table(one))
    body = json.dumps({"model": "m", "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.0\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", balancer.port), 10) as client:
        client.sendall((head + body).encode())
        with client.makefile("rb") as answer:
            whole = answer.read()
    assert b" 200 " in whole.partition(b"\r\n")[0]
    assert whole.partition(b"\r\n\r\n")[2] == b"".join(one.events("/v1/chat/completions"))


@pytest.mark.parametrize("body", [{"model": "m"}, {"model": "m", "stream": True}])
def test_ndjson_is_relayed_unchanged_and_at_once(balancer: Balancer, engine: MakeEngine, body: Any) -> None:
    one = engine(kind="ollama", tokens=5, gap=0.1)
    balancer.put(table(one))
    pieces, whole = read_stream(balancer, "/api/chat", body)
    assert whole == b"".join(one.events("/api/chat"))
    assert len(pieces) >= 5
    assert pieces[0][0] < 0.15


def test_plain_answer_is_unchanged(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    answer = balancer.chat(stream=False)
    assert answer.json["choices"][0]["message"]["content"] == "hello"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert answer.headers["content-type"] == "application/json"
    line = balancer.logged(answer.headers["x-request-id"])
    assert line["stream"] is False


def test_peers_4xx_passes_and_counts_for_nothing(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(mode="bad400")
    balancer.put(table(one, engine("n2")))
    codes = [balancer.chat().status for _ in range(8)]
    assert 400 in codes
    assert balancer.peer("n1")["health"] == "up"
    assert len(one.inference()) == codes.count(400)


def test_501_passes_at_once(balancer: Balancer, engine: MakeEngine) -> None:
    one, two = engine(mode="not501"), engine("n2", mode="not501")
    balancer.put(table(one, two))
    assert balancer.ask(path="/v1/embeddings", body={"model": "m"}).status == 501
    assert len(one.inference()) + len(two.inference()) == 1


@pytest.mark.parametrize("mode", ["break_stream", "end_stream"])
@pytest.mark.parametrize("path", [*PATHS, "/api/chat"])
def test_broken_stream_ends_with_an_error_event(balancer: Balancer, engine: MakeEngine, path: str, mode: str) -> None:
    one = engine(kind="ollama", mode=mode)
    balancer.put(table(one))
    connection = balancer.connection()
    connection.request(
        "POST",
        path,
        b'{"model":"m","stream":true}',
        {"Authorization": "Bearer " + KEY, "X-Request-Id": "broken-" + mode},
    )
    response = connection.getresponse()
    text = b""
    with pytest.raises(Exception, match=r"IncompleteRead|0 bytes read"):
        while True:
            piece = response.read1(65536)
            if not piece:
                raise AssertionError("a silent, proper end")
            text += piece
    connection.close()
    sent = b"".join(one.events(path)[:2])
    assert text.startswith(sent), "whole events only"
    last = text[len(sent) :]
    if path.startswith("/api/"):
        assert "broke off" in json.loads(last)["error"]
    else:
        data = json.loads(last.split(b"data: ", 1)[1])
        assert data["error"]["code"] == "stream_broken"
        assert last.endswith(b"\n\n")
        assert last.startswith(b"event: error\n") == (path in ("/v1/responses", "/v1/messages"))
    wait_for(lambda: balancer.busy() == 0, 1, "slot is free")
    assert any(line["error"] == "stream_broken" for line in balancer.log() if line["id"] == "broken-" + mode)


def test_stream_that_stalls_is_cut_with_an_error(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(mode="stall_stream")
    balancer.put(table(one))
    connection = balancer.connection()
    started = time.monotonic()
    connection.request("POST", PATHS[0], b'{"model":"m","stream":true}', {"Authorization": "Bearer " + KEY})
    response = connection.getresponse()
    text = b""
    with pytest.raises(Exception, match=r"IncompleteRead|0 bytes read"):
        while piece := response.read1(65536):
            text += piece
    assert b'"code":"stream_idle"' in text
    assert 0.9 < time.monotonic() - started < 2
    wait_for(lambda: one.running == 0, 1, "the peer's connection is closed")


# The real client


def test_openai_client(balancer: Balancer, engine: MakeEngine) -> None:
    openai = pytest.importorskip("openai")
    one = engine(tokens=3)
    balancer.put(table(one))
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{balancer.port}/v1", api_key=KEY, max_retries=0)
    messages = [{"role": "user", "content": "hi"}]
    assert client.chat.completions.create(model="m", messages=messages).choices[0].message.content == "hello"
    assert len(list(client.chat.completions.create(model="m", messages=messages, stream=True))) == 3
    assert [model.id for model in client.models.list()] == ["m"]
    with pytest.raises(openai.NotFoundError, match="Known models: m"):
        client.chat.completions.create(model="other", messages=messages)
    with pytest.raises(openai.AuthenticationError, match="not known here"):
        client.with_options(api_key="wrong").models.list()
    one.mode = "break_stream"
    with pytest.raises(openai.APIError, match="broke off"):
        list(client.chat.completions.create(model="m", messages=messages, stream=True))
    one.mode = "error500"
    with pytest.raises(openai.InternalServerError, match="boom"):
        client.with_options(max_retries=5).chat.completions.create(model="m", messages=messages)
    assert len(one.inference()) == 4, "x-should-retry: false is heeded"


# Clients that leave


def leave(balancer: Balancer, body: bytes, seconds: float) -> None:
    sock = socket.create_connection(("127.0.0.1", balancer.port), 5)
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + KEY.encode()
        + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    time.sleep(seconds)
    sock.close()


@pytest.mark.parametrize("stream", [b"true", b"false"])
@pytest.mark.parametrize("mode", ["silent", "ok"])
def test_client_that_leaves_frees_the_slot(balancer: Balancer, engine: MakeEngine, stream: Any, mode: str) -> None:
    one = engine(mode=mode, tokens=200, gap=0.05, service_time=3 if stream == b"false" else 0)
    balancer.put(table(one))
    leave(balancer, b'{"model":"m","stream":' + stream + b"}", 0.3)
    wait_for(lambda: one.running == 0, 1, "the peer's connection is closed")
    wait_for(lambda: balancer.busy() == 0, 1, "slot is free")
    assert one.inference()[0].outcome == "left"


def test_client_that_leaves_while_it_waits(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine(service_time=1.5, peer={"slots": 1})
    balancer.put(table(one))
    first = threading.Thread(target=balancer.chat)
    first.start()
    wait_for(lambda: one.running == 1)
    leave(balancer, b'{"model":"m"}', 0.3)
    first.join()
    time.sleep(0.3)
    assert len(one.inference()) == 1


def test_pipelining_client_that_leaves(balancer: Balancer, engine: MakeEngine) -> None:
    """nginx's own check misses it: there are bytes to read on the connection."""
    one = engine(service_time=10)
    balancer.put(table(one))
    body = b'{"model":"m"}'
    sock = socket.create_connection(("127.0.0.1", balancer.port), 5)
    sock.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        + KEY.encode()
        + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
        + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    wait_for(lambda: one.running == 1)
    sock.close()
    wait_for(lambda: one.running == 0, 1, "the peer's connection is closed")
