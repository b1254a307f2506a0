# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may ask, what may be asked, and how it is read."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import socket
import time
from typing import Any

import pytest
from balancer.harness import KEY, Balancer, MakeBalancer, MakeEngine, hashed, table, wait_for

# Keys


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic " + KEY},
        {"Authorization": KEY},
        {"Authorization": "Bearer " + KEY + "x"},
        {"Authorization": "Bearer " + "x" * 2000},
        {"x-api-key": KEY},
    ],
)
def test_refuses_without_a_good_key(balancer: Balancer, engine: MakeEngine, headers: Any) -> None:
    one = engine()
    balancer.put(table(one))
    answer = balancer.chat(key=None, headers=headers)
    assert answer.status == 401
    assert answer.code == "invalid_api_key"
    assert answer.json["error"]["type"] == "authentication_error"
    assert one.inference() == []


@pytest.mark.parametrize("headers", [{"Authorization": "Bearer " + KEY}, {"authorization": "bearer " + KEY}])
def test_accepts_a_key_and_keeps_it_from_the_peer(balancer: Balancer, engine: MakeEngine, headers: Any) -> None:
    one = engine()
    balancer.put(table(one))
    answer = balancer.chat(key=None, headers={**headers, "X-Request-Id": "req-1.a:b", "Cookie": "a=b", "X-Other": "c"})
    assert answer.status == 200
    assert answer.headers["x-request-id"] == "req-1.a:b"
    got = one.inference()[0].headers
    assert KEY not in json.dumps(got)
    assert not {"cookie", "x-other", "authorization", "accept-encoding"} & set(got)
    assert got["x-request-id"] == "req-1.a:b"
    assert "server" not in answer.headers or answer.headers["server"] == "nginx"


def test_messages_route_takes_anthropics_header(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine()))
    body = {"model": "m", "messages": []}
    assert balancer.ask(path="/v1/messages", body=body, key=None, headers={"x-api-key": KEY}).status == 200
    refused = balancer.ask(path="/v1/messages", body=body, key=None, headers={"x-api-key": "no"})
    assert refused.status == 401
    assert refused.json["type"] == "error"


def test_keys_change_without_reload(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    pids = balancer.worker_pids()
    balancer.put(table(one, keys=[{"name": "other", "sha256": hashed("new-key").upper()}]))
    assert balancer.chat().status == 401
    assert balancer.chat(key="new-key").status == 200
    balancer.put(table(one, keys=[], require_key=False))
    assert balancer.chat(key=None).status == 200
    assert balancer.worker_pids() == pids


def test_log_names_the_key_and_hides_it(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    answer = balancer.ask(body={"model": "m", "messages": [{"content": "secret prompt"}]})
    line = balancer.logged(answer.headers["x-request-id"])
    assert (line["key"], line["model"], line["peer"], line["attempts"], line["status"]) == ("tester", "m", "n1", 1, 200)
    assert line["bytes"] == len(answer.body)
    assert 0 <= line["ttfb"] <= line["total"] + 0.01
    text = (balancer.dir / "access.log").read_text() + balancer.errors()
    assert KEY not in text
    assert "secret prompt" not in text


@pytest.mark.parametrize("given", ["bad id", "x" * 200, 'a"b', "a\tb"])
def test_unsafe_request_id_is_replaced(balancer: Balancer, engine: MakeEngine, given: str) -> None:
    balancer.put(table(engine()))
    answer = balancer.chat(headers={"X-Request-Id": given})
    assert len(answer.headers["x-request-id"]) == 32


# Models


def test_model_chooses_the_peer(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = engine("a", models=["m", "llama"]), engine("b", models=["gemma:270m", "q:latest"])
    balancer.put(table(a, b))
    for model, name in {"llama": "a", "gemma:270m": "b", "q": "b", "q:latest": "b", "m": "a", "m:latest": "a"}.items():
        answer = balancer.chat(model=model)
        assert (answer.json["from"], answer.headers["x-llm-peer"]) == (name, name), model


def test_unknown_model_names_the_known_ones(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine(models=["m", "gemma:270m"])))
    answer = balancer.chat(model="nope")
    assert (answer.status, answer.code, answer.json["error"]["param"]) == (404, "model_not_found", "model")
    assert "gemma:270m" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (b'{"messages": [], "n": 1.10}', b'{"model":"m","messages": [], "n": 1.10}'),
        (b" {}", b' {"model":"m"}'),
        (b'{"model": null, "big": 12345678901234567890}', b'{"model": "m", "big": 12345678901234567890}'),
        (b'{"a":1,"model":""}', b'{"a":1,"model":"m"}'),
        (b'{"model":"m","x":[],"y":{}}', b'{"model":"m","x":[],"y":{}}'),
    ],
)
def test_default_model_is_spliced_in_and_no_other_byte_changes(
    balancer: Balancer, engine: MakeEngine, sent: bytes, got: bytes
) -> None:
    one = engine()
    balancer.put(table(one))
    assert balancer.ask(body=sent).status == 200
    assert one.inference()[0].body == got


def test_no_model_and_no_default(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine(), default_model=""))
    answer = balancer.ask(body={})
    assert (answer.status, answer.code) == (400, "model_required")


# Bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"model":"m"',
        b'{"model":"m"}}',
        b'{"model":"m"} x',
        b"[1]",
        b'"x"',
        b"{'model':1}",
        b'{"a":[}',
        b'{"a":[1}',
        b'{"a":tru}',
        b'{"a":"x}',
        b'{"model":"m",}',
        b'{"model":"m","model":"n"}',
        b'{"model":"m","MODEL":"n"}',
        b'{"Model":"m"}',
        b'{"mod\\u0065l":"m"}',
        b'{"mod\xc3\xa9l":"m"}',
        b'{"model":1}',
        b'{"model":"m","stream":"yes"}',
        b'{"model":"a\\x"}',
        b'{"a":' + b"[" * 100000 + b"]" * 100000 + b"}",
        b'{"a":' + b"[" * 1000000,
        b'{"a" 1}',
        b'{"a":\x00}',
        b"\xff\xfe{}",
        b'{"model":"' + b"m" * 5000 + b'"}',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_malformed_bodies_are_400(balancer: Balancer, engine: MakeEngine, body: Any) -> None:
    one = engine()
    balancer.put(table(one))
    pids = balancer.worker_pids()
    answer = balancer.ask(body=body)
    assert answer.status == 400
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert one.inference() == []
    assert balancer.worker_pids() == pids


@pytest.mark.parametrize("size", [3 << 20, 5 << 20])  # above the table's limit, above nginx's
def test_large_body_is_413(balancer: Balancer, engine: MakeEngine, size: int) -> None:
    balancer.put(table(engine()))
    body = b'{"model":"m","a":"' + b"x" * size + b'"}'
    answer = balancer.ask(body=body)
    assert (answer.status, answer.code) == (413, "request_too_large")
    # Without a length the size shows only while reading.
    assert b" 413 " in _chunked(balancer, body).split(b"\r\n", 1)[0]


def _chunked(balancer: Balancer, body: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", balancer.port), 5) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + KEY.encode()
            + b"\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        with contextlib.suppress(OSError):  # refused before it has read all
            sock.sendall(b"%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n")
        return sock.recv(65536)


def test_chunked_body_works(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    body = b'{"model":"m","a":"' + b"x" * 300000 + b'"}'
    assert b" 200 " in _chunked(balancer, body).split(b"\r\n", 1)[0]
    assert one.inference()[0].body == body


def test_body_of_two_megabytes_arrives_unchanged(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    body = b'{"messages":"' + b'\\"x' * 600000 + b'"}'
    assert balancer.ask(body=body).status == 200
    assert one.inference()[0].body == b'{"model":"m",' + body[1:]


# The surface

OPEN = [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/m"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
]
OLLAMA = [
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
    ("POST", "/api/show"),
    ("GET", "/api/tags"),
    ("GET", "/api/ps"),
    ("GET", "/api/version"),
]
CLOSED = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:00"),
    ("HEAD", "/api/blobs/sha256:00"),
    ("POST", "/slots/0"),
    ("GET", "/slots"),
    ("POST", "/props"),
    ("GET", "/props"),
    ("GET", "/"),
    ("GET", "/state"),
    ("PUT", "/routing"),
    ("GET", "/v1/chat/completions"),
    ("PUT", "/v1/chat/completions"),
    ("DELETE", "/v1/models/m"),
    ("POST", "/v1/models"),
    ("GET", "/v1/models/"),
    ("POST", "/v1/files"),
    ("POST", "//v1/chat/completions"),
    ("POST", "/v1/chat/completions/"),
    ("POST", "/v1/chat/completions%00"),
    ("POST", "/API/chat"),
    ("POST", "/v1/../api/pull"),
    ("POST", "/v1/chat/..%2f..%2fapi/pull"),
    ("OPTIONS", "/v1/models"),
    ("POST", "/load"),
    ("GET", "/llm-nginx-error/400"),
    ("POST", "/llm-nginx-error/413"),
]


@pytest.mark.parametrize(("method", "path"), OPEN + OLLAMA)
def test_open_surface(balancer: Balancer, engine: MakeEngine, method: str, path: str) -> None:
    one = engine(kind="ollama")
    balancer.put(table(one))
    answer = balancer.ask(method, path, body=b'{"model":"m"}' if method == "POST" else None)
    assert answer.status == 200
    if method == "POST":
        assert one.inference()[0].path == path


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nothing", "/cluster"])
def test_the_body_of_a_head_request_is_no_second_request(balancer: Balancer, engine: MakeEngine, path: str) -> None:
    balancer.put(table(engine()))
    hidden = b"GET /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"HEAD {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(hidden)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", balancer.port), 10) as client:
        client.sendall(head.encode() + hidden)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            assert answer.read().count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_closed_surface(balancer: Balancer, engine: MakeEngine, method: str, path: str) -> None:
    one = engine(kind="ollama")
    balancer.put(table(one))
    answer = balancer.ask(method, path, body=b'{"model":"m"}' if method in ("POST", "PUT") else None)
    assert answer.status in (404, 400, 405)
    assert answer.headers["content-type"] == "application/json"
    assert [seen.path for seen in one.seen] == []


@pytest.mark.parametrize(("method", "path"), OLLAMA)
def test_ollama_routes_need_an_ollama_peer(balancer: Balancer, engine: MakeEngine, method: str, path: str) -> None:
    balancer.put(table(engine()))
    answer = balancer.ask(method, path, body=b'{"model":"m"}' if method == "POST" else None)
    assert answer.status == 404
    assert isinstance(answer.json["error"], str)


def test_query_strings_stay_here(balancer: Balancer, engine: MakeEngine) -> None:
    one = engine()
    balancer.put(table(one))
    assert balancer.ask(path="/v1/chat/completions?api-version=1", body=b'{"model":"m"}').status == 200
    assert one.inference()[0].path == "/v1/chat/completions"


SMUGGLED = [
    b"Content-Length: 13\r\nContent-Length: 14\r\n",
    b"Content-Length: 13\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Content-Length: +13\r\n",
    b"Content-Length: -1\r\n",
]


@pytest.mark.parametrize("headers", SMUGGLED)
def test_smuggling_variants_reach_no_peer(balancer: Balancer, engine: MakeEngine, headers: Any) -> None:
    one = engine()
    balancer.put(table(one))
    with socket.create_connection(("127.0.0.1", balancer.port), 5) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + KEY.encode()
            + b"\r\n"
            + headers
            + b'Connection: close\r\n\r\n{"model":"m"}'
        )
        answer = sock.recv(65536)
    assert answer.split(b" ", 2)[1] in (b"400", b"501")
    assert one.inference() == []


def test_huge_headers_are_refused(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine()))
    answer = balancer.chat(headers={"X-Big": "x" * 20000})
    assert answer.status == 400
    assert answer.code == "headers_too_large"


# Lists


def test_models(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine("a", models=["m", "x/y:1"]), engine("b", models=["z", "m"])))
    listed = balancer.ask("GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["m", "x/y:1", "z"]
    for path in ("x/y:1", "x%2Fy:1", "z:latest"):
        assert balancer.ask("GET", "/v1/models/" + path).json["object"] == "model"
    missing = balancer.ask("GET", "/v1/models/none")
    assert (missing.status, missing.code) == (404, "model_not_found")
    assert balancer.ask("GET", "/v1/models", key=None).status == 401


def test_tags_are_merged(balancer: Balancer, engine: MakeEngine) -> None:
    a = engine("a", kind="ollama", models=["m", "only-a"])
    b = engine("b", kind="ollama", models=["m", "only-b", "not-in-table"])
    c = engine("c", models=["gguf"])
    b.peer = {"models": ["m", "only-b"]}
    balancer.put(table(a, b, c))
    models = balancer.ask("GET", "/api/tags").json["models"]
    assert [(model["name"], model["from"]) for model in models] == [("m", "a"), ("only-a", "a"), ("only-b", "b")]
    assert sorted(model["name"] for model in balancer.ask("GET", "/api/ps").json["models"]) == ["m", "only-a", "only-b"]
    assert balancer.ask("GET", "/api/version").json == {"version": "0.33.0"}


def test_lists_are_asked_for_once_also_when_nobody_answers(own_balancer: MakeBalancer, engine: MakeEngine) -> None:
    balancer = own_balancer(workers=1)
    one = engine("one", kind="ollama")
    balancer.put(table(one))
    one.version_time = 1
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        # The first of them leaves: it doesn't matter to the others.
        connection = balancer.connection()
        connection.request("GET", "/api/version", headers={"Authorization": f"Bearer {KEY}"})
        wait_for(lambda: one.versions == 1)
        asked = [pool.submit(balancer.ask, "GET", "/api/version") for _ in range(6)]
        connection.close()
        assert {answer.result().status for answer in asked} == {200}
    assert one.versions == 1
    time.sleep(1.1)
    one.version_time = 3
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: balancer.ask("GET", "/api/version"), range(6)))
    assert 1.9 < time.monotonic() - began < 2.8
    assert {answer.status for answer in answers} == {503}
    assert balancer.ask("GET", "/api/version").status == 503
    assert one.versions == 2, "a failure is remembered, too"
    one.version_time = 0
    wait_for(lambda: balancer.ask("GET", "/api/version").status == 200, 2, "but not for long")


def test_health(balancer: Balancer, engine: MakeEngine) -> None:
    a, b = engine("a"), engine("b")
    balancer.put(table(a, b))
    answer = balancer.ask("GET", "/health", key=None)
    assert (answer.status, answer.json) == (200, {"status": "ok", "peers": {"up": 2, "drained": 0, "total": 2}})
    a.stop()
    balancer.admin("POST", "/peers/b/drain", {"owner": "t"})
    try:
        answer = wait_for(lambda: (got := balancer.ask("GET", "/health", key=None)).status == 503 and got, 3, "503")
        assert answer.json["status"] == "down"
    finally:
        balancer.admin("POST", "/peers/b/resume", {"owner": "t"})
    assert balancer.ask("GET", "/health", key=None).json["status"] == "degraded"


def test_model_of_another_api_is_404(balancer: Balancer, engine: MakeEngine) -> None:
    balancer.put(table(engine("o", kind="ollama", models=["x"]), engine("l")))
    answer = balancer.ask(path="/api/chat", body={"model": "m"}, timeout=3)
    assert answer.status == 404
    assert "speaks this API" in answer.json["error"]
