# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoint as its users see it: with the real openai client and the real llm command."""

from __future__ import annotations

import collections
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from e2e.demo_cluster import Cluster
from openai.types.chat import ChatCompletionChunk, ChatCompletionUserMessageParam

MODEL = "gemma3:270m"
QUESTION: list[ChatCompletionUserMessageParam] = [
    {"role": "user", "content": "Complete in a few words: the capital of France is"}
]
SLOTS = {"node1": 4, "node2": 2, "node3": 2}


@pytest.fixture(scope="module")
def client(cluster: Cluster) -> openai.OpenAI:
    # No retries of its own: a failure that the client would hide must show here.
    return openai.OpenAI(
        base_url=cluster.endpoint["base_url"], api_key=cluster.endpoint["api_key"], max_retries=0, timeout=60
    )


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0
    assert answer.choices[0].message.content


def test_a_streamed_answer_comes_piece_by_piece(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=24, stream=True)
    chunks = [chunk for chunk in stream if isinstance(chunk, ChatCompletionChunk)]
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(pieces) > 3


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]


def test_an_unknown_model_names_the_known_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nonesuch", messages=QUESTION)
    assert MODEL in str(caught.value)
    assert caught.value.code == "model_not_found"


def test_a_bad_key_is_refused(cluster: Cluster) -> None:
    stranger = openai.OpenAI(base_url=cluster.endpoint["base_url"], api_key="sk-not-a-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model=MODEL, messages=QUESTION)


def post(cluster: Cluster, path: str, body: bytes) -> tuple[int, bytes]:
    """Send raw bytes, which no client library would, and return the status and the answer."""
    request = urllib.request.Request(
        cluster.endpoint["base_url"].removesuffix("/v1") + path,
        data=body,
        headers={"Authorization": "Bearer " + cluster.endpoint["api_key"], "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_malformed_json_is_the_clients_mistake(cluster: Cluster) -> None:
    status, body = post(cluster, "/v1/chat/completions", b'{"model": "gemma3:270m", "messages": [')
    assert status == 400
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_without_a_model_the_default_one_answers(cluster: Cluster) -> None:
    body = json.dumps({"messages": QUESTION, "max_tokens": 4}).encode()
    status, answer = post(cluster, "/v1/chat/completions", body)
    assert status == 200, answer
    assert json.loads(answer)["model"] == MODEL


@pytest.mark.parametrize(
    "path",
    ["/api/pull", "/api/delete", "/api/create", "/slots/0?action=erase", "/props", "/metrics.json", "/v1/../slots"],
)
def test_routes_that_change_a_node_do_not_exist(cluster: Cluster, path: str) -> None:
    assert post(cluster, path, b"{}")[0] == 404


def test_parallel_requests_spread_by_slots(client: openai.OpenAI) -> None:
    def ask(_number: int) -> str:
        answer = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=32)
        return answer.headers["X-LLM-Peer"]

    with ThreadPoolExecutor(20) as pool:
        shares = collections.Counter(pool.map(ask, range(20)))
    print(f"20 parallel requests: {dict(shares)}")
    assert set(shares) == set(SLOTS)
    assert shares["node1"] > max(shares["node2"], shares["node3"])


def test_the_llm_command_goes_through_the_balancer(cluster: Cluster) -> None:
    before = len(access_log(cluster))
    plain = cluster.ssh("balancer", f"llm -m {MODEL} --no-stream -o max_tokens 16 'The capital of France is'")
    streamed = cluster.ssh("balancer", f"llm -m {MODEL} -o max_tokens 16 'The capital of France is'")
    assert plain.strip()
    assert streamed.strip()
    entries = [entry for entry in access_log(cluster)[before:] if entry["path"] == "/v1/chat/completions"]
    assert [entry["model"] for entry in entries] == [MODEL, MODEL]
    assert {entry["peer"] for entry in entries} <= set(SLOTS)


def test_the_access_log_names_the_key_and_holds_no_secret(cluster: Cluster) -> None:
    log = cluster.ssh("balancer", "sleep 1; cat /var/log/nginx/llm-access.log")
    assert cluster.endpoint["api_key"] not in log
    assert "capital of France" not in log
    served = [
        entry
        for entry in access_log(cluster)
        if entry["path"] == "/v1/chat/completions" and str(entry["status"]) == "200"
    ]
    assert served
    assert {entry["key"] for entry in served} == {"demo"}


def access_log(cluster: Cluster) -> list[dict[str, str]]:
    # nginx writes it in batches, at most half a second late.
    lines = cluster.ssh("balancer", "sleep 1; cat /var/log/nginx/llm-access.log").splitlines()
    return [json.loads(line) for line in lines]
