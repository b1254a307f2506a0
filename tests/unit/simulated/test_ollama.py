# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated Ollama against what Ollama 0.33 answers (statuses, shapes and texts were read off a real server)."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from simulated import ollama
from simulated.registry import Registry, digest_of


@pytest.fixture
def store(tmp_path: Path) -> ollama.Store:
    return ollama.Store(tmp_path / "models")


@pytest.fixture
def server(store: ollama.Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[ollama.Server]:
    for name, value in {"OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NUM_PARALLEL": "2", "OLLAMA_NOPRUNE": "1"}.items():
        monkeypatch.setenv(name, value)
    server = ollama.Server(("127.0.0.1", 0), store)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    registry.start()
    yield registry
    registry.stop()


def ask(server: ollama.Server, method: str, path: str, body: Any = None, host: str = "") -> tuple[int, str, Any]:
    """(status, content type, JSON or the lines of it)."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    data = None if body is None else body if isinstance(body, str) else json.dumps(body)
    connection.request(method, path, data, {"Host": host} if host else {})
    answer = connection.getresponse()
    text = answer.read().decode()
    kind = answer.headers.get("Content-Type", "")
    if kind == "application/x-ndjson":
        return answer.status, kind, [json.loads(line) for line in text.splitlines()]
    if "json" in kind:
        return answer.status, kind, json.loads(text)
    return answer.status, kind, text


def pulled(server: ollama.Server, registry: Registry, name: str = "library/tiny:1") -> str:
    registry.publish(name)
    model = f"{registry.netloc}/{name}"
    _, _, steps = ask(server, "POST", "/api/pull", {"model": model, "insecure": True})
    assert steps[-1] == {"status": "success"}
    return model


@pytest.mark.parametrize(
    ("text", "short", "valid"),
    [
        ("gemma3", "gemma3:latest", True),
        ("gemma3:270m", "gemma3:270m", True),
        ("me/gemma3:270m", "me/gemma3:270m", True),
        ("registry.ollama.ai/library/gemma3:270m", "gemma3:270m", True),
        ("10.0.0.1:5000/library/tiny:1", "10.0.0.1:5000/library/tiny:1", True),
        ("http://10.0.0.1:5000/library/tiny", "10.0.0.1:5000/library/tiny:latest", True),
        ("", "", False),
        ("a b", "", False),
        ("x/../y", "", False),
    ],
)
def test_names(text: str, short: str, valid: bool) -> None:
    name = ollama.Name.parse(text)
    assert name.is_valid() is valid
    assert not valid or name.short() == short


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(-1, None), (0, 0), (2.5, 2.5), ("-1s", None), ("5m", 300), ("1h30m", 5400), ("0", 0)],
)
def test_keep_alive(value: Any, seconds: float | None) -> None:
    assert ollama.parse_keep_alive(value) == (ollama.FOREVER if seconds is None else seconds * 1e9)


def test_keep_alive_as_a_bare_number_in_quotes_is_refused_as_go_does() -> None:
    with pytest.raises(ValueError, match='missing unit in duration "-1"'):
        ollama.parse_keep_alive("-1")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ("127.0.0.1", 11434)),
        ("10.0.0.1:8000", ("10.0.0.1", 8000)),
        ("[::1]:8000", ("::1", 8000)),
        ("http://10.0.0.1", ("10.0.0.1", 80)),
        ("0.0.0.0", ("0.0.0.0", 11434)),
    ],
)
def test_host(value: str, expected: tuple[str, int]) -> None:
    assert ollama.host_and_port(value) == expected


@pytest.mark.parametrize(
    ("call", "body", "expected"),
    [
        ("GET /", None, (200, "Ollama is running")),
        ("GET /api/version", None, (200, {"version": ollama.VERSION})),
        ("GET /api/tags", None, (200, {"models": []})),
        ("GET /api/ps", None, (200, {"models": []})),
        ("GET /v1/models", None, (200, {"object": "list", "data": None})),
        ("GET /nowhere", None, (404, "404 page not found")),
        ("POST /api/tags", None, (405, "405 method not allowed")),
        ("POST /api/generate", None, (400, {"error": "missing request body"})),
        ("POST /api/generate", {"model": "nope"}, (404, {"error": "model 'nope' not found"})),
        ("POST /api/generate", {"model": ""}, (404, {"error": "model '' not found"})),
        ("POST /api/generate", {"model": "a b"}, (400, {"error": "invalid model name"})),
        ("POST /api/chat", {"model": "nope"}, (404, {"error": "model 'nope' not found"})),
        ("POST /api/chat", {}, (400, {"error": "model is required"})),
        ("POST /api/embed", {"model": "nope"}, (404, {"error": 'model "nope" not found, try pulling it first'})),
        ("POST /api/show", {"model": "nope"}, (404, {"error": "model 'nope:latest' not found"})),
        ("DELETE /api/delete", {"model": "nope"}, (404, {"error": "model 'nope' not found"})),
        ("POST /api/pull", {"model": ""}, (400, {"error": "invalid model name"})),
    ],
)
def test_answers_without_a_model(server: ollama.Server, call: str, body: Any, expected: tuple[int, Any]) -> None:
    method, path = call.split(" ")
    assert ask(server, method, path, body)[::2] == expected


def test_v1_errors_have_openais_shape(server: ollama.Server) -> None:
    body = {"model": "nope", "messages": [{"role": "user", "content": "hi"}]}
    status, _, answer = ask(server, "POST", "/v1/chat/completions", body)
    assert status == 404
    assert answer["error"] == {
        "message": "model 'nope' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(("host", "status"), [("evil.example", 403), ("localhost", 200), ("10.1.2.3:80", 200)])
def test_foreign_host_names_are_refused_on_loopback(server: ollama.Server, host: str, status: int) -> None:
    assert ask(server, "GET", "/api/version", host=host)[0] == status


def test_pull_writes_the_store_and_tags_show_the_manifests_digest(
    server: ollama.Server, registry: Registry, store: ollama.Store
) -> None:
    published = registry.publish("library/tiny:1")
    model = f"{registry.netloc}/library/tiny:1"
    status, kind, steps = ask(server, "POST", "/api/pull", {"model": model, "insecure": True})
    assert (status, kind) == (200, "application/x-ndjson")
    assert [step["status"] for step in steps if "digest" not in step] == [
        "pulling manifest",
        "verifying sha256 digest",
        "writing manifest",
        "success",
    ]
    entry = ask(server, "GET", "/api/tags")[2]["models"][0]
    assert entry["name"] == entry["model"] == model
    assert "sha256:" + entry["digest"] == published.digest
    assert entry["details"]["family"] == "simulated"
    assert (store.manifests / registry.netloc / "library/tiny/1").exists()
    assert {path.name.replace("-", ":", 1) for path in store.blobs.iterdir()} == set(published.blobs)


def test_a_moved_tag_overwrites_silently(server: ollama.Server, registry: Registry) -> None:
    model = pulled(server, registry)
    moved = registry.publish("library/tiny:1", content=b"other weights")
    ask(server, "POST", "/api/pull", {"model": model, "insecure": True})
    assert "sha256:" + ask(server, "GET", "/api/tags")[2]["models"][0]["digest"] == moved.digest


def test_pull_errors_come_inside_a_stream_with_status_200(server: ollama.Server, registry: Registry) -> None:
    model = f"{registry.netloc}/library/absent:1"
    status, _, steps = ask(server, "POST", "/api/pull", {"model": model, "insecure": True})
    assert status == 200
    assert steps == [{"status": "pulling manifest"}, {"error": "pull model manifest: file does not exist"}]
    body = {"model": model, "insecure": True, "stream": False}
    assert ask(server, "POST", "/api/pull", body)[::2] == (
        500,
        {"error": "pull model manifest: file does not exist"},
    )


def test_a_cut_blob_is_resumed(server: ollama.Server, registry: Registry) -> None:
    published = registry.publish("library/tiny:1")
    # The second GET of a blob is the one that carries bytes; the first only asks where they are.
    registry.fault(f".*/blobs/{published.blobs[0]}", cut_after=1000, times=2)
    model = f"{registry.netloc}/library/tiny:1"
    _, _, steps = ask(server, "POST", "/api/pull", {"model": model, "insecure": True})
    assert steps[-1] == {"status": "success"}
    assert any(item[2].startswith("bytes=1000-") for item in registry.requests)


def test_wrong_bytes_are_found_and_thrown_away(server: ollama.Server, registry: Registry, store: ollama.Store) -> None:
    published = registry.publish("library/tiny:1")
    registry.fault(f".*/blobs/{published.blobs[0]}", wrong_bytes=True)
    model = f"{registry.netloc}/library/tiny:1"
    _, _, steps = ask(server, "POST", "/api/pull", {"model": model, "insecure": True})
    assert steps[-1]["error"].startswith("digest mismatch, file must be downloaded again: want sha256:")
    assert not store.blob(published.blobs[0]).exists()
    assert ask(server, "GET", "/api/tags")[2] == {"models": []}


def test_a_blob_without_location_fails(server: ollama.Server, registry: Registry) -> None:
    published = registry.publish("library/tiny:1")
    registry.fault(f".*/blobs/{published.blobs[0]}", without_headers=["Location"])
    model = f"{registry.netloc}/library/tiny:1"
    _, _, steps = ask(server, "POST", "/api/pull", {"model": model, "insecure": True})
    assert steps[-1] == {"error": "http: no Location header in response"}


def test_load_ps_unload(server: ollama.Server, registry: Registry) -> None:
    model = pulled(server, registry)
    assert ask(server, "POST", "/api/generate", {"model": model, "keep_alive": -1})[2]["done_reason"] == "load"
    running = ask(server, "GET", "/api/ps")[2]["models"]
    assert [item["name"] for item in running] == [model]
    assert running[0]["expires_at"] > "2300"
    assert ask(server, "POST", "/api/generate", {"model": model, "keep_alive": 0})[2]["done_reason"] == "unload"
    assert ask(server, "GET", "/api/ps")[2] == {"models": []}
    assert ask(server, "POST", "/api/generate", {"model": model, "keep_alive": "-1"})[0] == 400


@pytest.mark.parametrize(
    ("path", "request_", "content"),
    [
        ("/api/generate", {"prompt": "hi"}, lambda part: part["response"]),
        ("/api/chat", {"messages": [{"role": "user", "content": "hi"}]}, lambda part: part["message"]["content"]),
    ],
)
def test_streams_are_the_default_and_say_the_same(
    server: ollama.Server, registry: Registry, path: str, request_: dict[str, Any], content: Any
) -> None:
    model = pulled(server, registry)
    _, kind, parts = ask(server, "POST", path, {"model": model, **request_})
    whole = ask(server, "POST", path, {"model": model, "stream": False, **request_})[2]
    assert kind == "application/x-ndjson"
    assert [part["done"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(content(part) for part in parts) == content(whole)
    assert parts[-1]["done_reason"] == whole["done_reason"] == "stop"
    assert whole["eval_count"] == len(parts) - 1


def test_v1_stream_ends_with_done_and_gives_usage_when_asked(server: ollama.Server, registry: Registry) -> None:
    model = pulled(server, registry)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    _, kind, text = ask(server, "POST", "/v1/chat/completions", body)
    events = text.removesuffix("\n\n").split("\n\n")
    assert kind == "text/event-stream"
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(chunks) - 2


def put(store: ollama.Store, name: str, weights: bytes, template: str = "") -> str:
    """Write a version into the store by hand, blobs first and manifest last; returns its digest."""

    def blob(content: bytes, kind: str) -> dict[str, Any]:
        digest = digest_of(content)
        store.blob(digest).write_bytes(content)
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    layers = [blob(weights, ollama.WEIGHTS)]
    layers += [blob(template.encode(), ollama.READ_TO_LIST[0])] if template else []
    config = blob(b'{"model_format": "gguf"}', "application/vnd.docker.container.image.v1+json")
    manifest = json.dumps({"schemaVersion": 2, "config": config, "layers": layers}).encode()
    store.write(ollama.Name.parse(name), manifest)
    return hashlib.sha256(manifest).hexdigest()


def load(server: ollama.Server, model: str, keep_alive: int = -1) -> tuple[int, Any]:
    status, _, answer = ask(server, "POST", "/api/generate", {"model": model, "keep_alive": keep_alive})
    return status, answer.get("error") or answer["done_reason"]


def running(server: ollama.Server) -> list[tuple[str, str]]:
    return [(item["name"], item["digest"]) for item in ask(server, "GET", "/api/ps")[2]["models"]]


def shown(server: ollama.Server) -> dict[str, str]:
    return {item["name"]: item["digest"] for item in ask(server, "GET", "/api/tags")[2]["models"]}


def test_a_manifest_written_by_hand_is_a_model_at_once(server: ollama.Server, store: ollama.Store) -> None:
    old, new = put(store, "kept/m:old", b"old"), put(store, "kept/m:new", b"new")
    assert shown(server) == {"kept/m:old": old, "kept/m:new": new}
    for name, digest in (("kept/m:old", old), ("kept/m:new", new)):
        assert ask(server, "POST", "/api/copy", {"source": name, "destination": "m"})[0] == 200
        assert shown(server)["m:latest"] == digest
    assert ask(server, "DELETE", "/api/delete", {"model": "m"})[0] == 200
    assert shown(server) == {"kept/m:old": old, "kept/m:new": new}
    assert len(list(store.blobs.iterdir())) == 3


def test_another_version_is_loaded_beside_the_old_one(server: ollama.Server, store: ollama.Store) -> None:
    old, new = put(store, "kept/m:old", b"old"), put(store, "kept/m:new", b"new")
    ask(server, "POST", "/api/copy", {"source": "kept/m:old", "destination": "m"})
    load(server, "m")
    ask(server, "POST", "/api/copy", {"source": "kept/m:new", "destination": "m"})
    assert running(server) == [("m:latest", old)]
    ask(server, "POST", "/api/generate", {"model": "m", "prompt": "hi"})
    assert sorted(running(server)) == sorted([("m:latest", old), ("m:latest", new)])
    assert load(server, "kept/m:old", 0) == (200, "unload")
    assert running(server) == [("m:latest", new)]


def test_the_same_weights_stay_known_as_what_they_were_loaded_as(server: ollama.Server, store: ollama.Store) -> None:
    old = put(store, "m", b"weights", "one {{ .Prompt }}")
    load(server, "m")
    new = put(store, "m", b"weights", "two {{ .Prompt }}")
    put(store, "alias", b"weights", "two {{ .Prompt }}")
    assert load(server, "m") == load(server, "alias") == (200, "load")
    assert running(server) == [("m:latest", old)]
    load(server, "alias", 0)
    assert running(server) == []
    load(server, "m")
    assert running(server) == [("m:latest", new)]


def test_a_deleted_model_stays_loaded(server: ollama.Server, store: ollama.Store) -> None:
    digest = put(store, "m", b"weights")
    load(server, "m")
    ask(server, "DELETE", "/api/delete", {"model": "m"})
    assert running(server) == [("m:latest", digest)]
    assert load(server, "m", 0) == (404, "model 'm' not found")
    put(store, "kept/m", b"weights")
    load(server, "kept/m", 0)
    assert running(server) == []


def test_unloading_waits_for_requests(
    server: ollama.Server, store: ollama.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_OLLAMA_TOKEN_SECONDS", "0.05")
    put(store, "m", b"weights")
    load(server, "m")
    runner = server.scheduler.loaded()[0]
    client = threading.Thread(target=ask, args=(server, "POST", "/api/generate", {"model": "m", "prompt": "hi"}))
    client.start()
    while not runner.busy:
        pass
    assert load(server, "m", 0) == (200, "unload")
    item = ask(server, "GET", "/api/ps")[2]["models"][0]
    assert item["expires_at"] < "2300"
    client.join()
    assert running(server) == []


def test_at_the_limit_one_is_dropped(
    server: ollama.Server, store: ollama.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MAX_LOADED_MODELS", "1")
    put(store, "one", b"one")
    two = put(store, "two", b"two")
    load(server, "one")
    load(server, "two")
    assert running(server) == [("two:latest", two)]


@pytest.mark.parametrize(
    ("weights", "loads", "shows"),
    [
        (None, (400, '"m" does not support generate'), 404),
        (b"", (400, '"m" does not support generate'), 500),
        (b"half", (500, 'tensor "token_embd.weight" offset+size (7) exceeds file size (4)'), 500),
        (b"flipped", (200, "load"), 200),
    ],
)
def test_damaged_weights_are_listed_and_never_verified(
    server: ollama.Server, store: ollama.Store, weights: bytes | None, loads: tuple[int, str], shows: int
) -> None:
    put(store, "m", b"weights")
    blob = store.blob(digest_of(b"weights"))
    blob.unlink() if weights is None else blob.write_bytes(weights)
    assert list(shown(server)) == ["m:latest"]
    assert load(server, "m") == loads
    assert ask(server, "POST", "/api/show", {"model": "m"})[0] == shows


def test_weights_that_were_missing_once_stay_useless_under_that_name(
    server: ollama.Server, store: ollama.Store
) -> None:
    put(store, "m", b"weights")
    store.blob(digest_of(b"weights")).unlink()
    load(server, "m")
    put(store, "m", b"weights")
    put(store, "alias", b"weights")
    assert load(server, "m")[0] == 400
    assert load(server, "alias")[0] == 200


@pytest.mark.parametrize(("content", "status"), [(None, 404), (b"garbage", 500)])
def test_without_its_config_a_model_is_not_listed(
    server: ollama.Server, store: ollama.Store, content: bytes | None, status: int
) -> None:
    put(store, "m", b"weights")
    blob = store.blob(digest_of(b'{"model_format": "gguf"}'))
    blob.unlink() if content is None else blob.write_bytes(content)
    assert shown(server) == {}
    assert load(server, "m")[0] == status
    assert ask(server, "DELETE", "/api/delete", {"model": "m"})[0] == 200


def test_pruning_goes_by_age_and_stops_at_a_corrupt_manifest(store: ollama.Store) -> None:
    put(store, "kept/m", b"weights")
    for name in ("sha256-" + "a" * 64, "foreign.part", "sha256-" + "b" * 64):
        (store.blobs / name).write_text("unused")
    for path in store.blobs.iterdir():
        if not path.name.startswith("sha256-b"):
            os.utime(path, (1, 1))
    (store.manifests / "registry.ollama.ai" / "empty").mkdir()
    dotted = store.manifests / "registry.ollama.ai" / "kept" / "m" / ".new"
    dotted.write_text("{}")
    store.prune()
    assert len(list(store.blobs.iterdir())) == 5
    assert [model.name.short() for model in store.models()] == ["kept/m:latest"]
    dotted.unlink()
    store.prune()
    kept = {store.blob(digest_of(content)).name for content in (b"weights", b'{"model_format": "gguf"}')}
    assert {path.name for path in store.blobs.iterdir()} == kept | {"sha256-" + "b" * 64}
    assert not (store.manifests / "registry.ollama.ai" / "empty").exists()


def test_copy_and_delete_keep_shared_blobs(server: ollama.Server, registry: Registry, store: ollama.Store) -> None:
    model = pulled(server, registry)
    assert ask(server, "POST", "/api/copy", {"source": model, "destination": "alias:1"})[0] == 200
    assert ask(server, "DELETE", "/api/delete", {"model": model})[0] == 200
    assert [item["name"] for item in ask(server, "GET", "/api/tags")[2]["models"]] == ["alias:1"]
    assert len(list(store.blobs.iterdir())) == 2
    assert ask(server, "DELETE", "/api/delete", {"model": "alias:1"})[0] == 200
    assert not list(store.blobs.iterdir())


def test_at_most_num_parallel_requests_run_at_once(
    server: ollama.Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_OLLAMA_TOKEN_SECONDS", "0.01")
    model = pulled(server, registry)
    ask(server, "POST", "/api/generate", {"model": model})
    runner = server.scheduler.loaded()[0]
    seen = []
    clients = [
        threading.Thread(target=ask, args=(server, "POST", "/api/generate", {"model": model, "prompt": str(number)}))
        for number in range(5)
    ]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        seen.append(runner.busy)
    assert max(seen) == 2
