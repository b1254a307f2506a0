# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask an OpenAI-compatible address a real question and judge the answer. Standard library only."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Iterable, Iterator
from urllib.parse import urlsplit


class NoAnswerError(Exception):
    """There was no complete, sensible answer; the text says why."""


@dataclass(frozen=True)
class Question:
    """One kind of question, asked ``count`` times.

    ``url`` is the address without ``/v1``; ``via`` an address to connect to instead of the URL's host, whose name is
    still what TLS expects. Without ``stream`` the answer comes in one piece.
    """

    name: str
    url: str
    model: str
    prompt: str
    stream: bool
    count: int
    max_tokens: int
    via: str | None = None


@dataclass(frozen=True)
class Answer:
    """A complete answer: its text, the peer that the balancer named (None without a balancer), and times in seconds."""

    text: str
    peer: str | None
    first_byte: float
    seconds: float


@dataclass(frozen=True)
class Access:
    """How to reach an address: API key, time-out in seconds for each wait on the network, and whom TLS trusts."""

    api_key: str | None = None
    timeout: float = 60.0
    ca_file: str | None = None
    validate_certs: bool = True


class ConnectionVia(http.client.HTTPSConnection):
    """An HTTPS connection that goes to another address than its host's name says."""

    def __init__(self, host: str, port: int, via: str, timeout: float, context: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=timeout, context=context)
        self._via = via
        self._tls = context

    def connect(self) -> None:
        self.sock = self._tls.wrap_socket(
            socket.create_connection((self._via, self.port), self.timeout), server_hostname=self.host
        )


def connection(url: str, access: Access, via: str | None = None) -> http.client.HTTPConnection:
    """Return an unopened connection to the URL's host, or to the address ``via`` in its name."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NoAnswerError(f"{url} is no address; it must look like http://HOST:PORT")
    if parts.scheme == "http":
        return http.client.HTTPConnection(via or parts.hostname, parts.port or 80, timeout=access.timeout)
    context = ssl.create_default_context(cafile=access.ca_file)
    if not access.validate_certs:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return ConnectionVia(parts.hostname, parts.port or 443, via or parts.hostname, access.timeout, context)


def ask(question: Question, access: Access) -> Answer:
    """Ask once.

    :raises NoAnswerError: with the reason, whatever it is
    """
    body = {
        "model": question.model,
        "messages": [{"role": "user", "content": question.prompt}],
        "max_tokens": question.max_tokens,
        "stream": question.stream,
    }
    headers = {"Content-Type": "application/json", "User-Agent": "llm.cluster-ask"}
    if access.api_key:
        headers["Authorization"] = "Bearer " + access.api_key
    began = time.monotonic()
    conn = connection(question.url, access, question.via)
    try:
        path = urlsplit(question.url).path.rstrip("/") + "/v1/chat/completions"
        conn.request("POST", path, json.dumps(body), headers)
        response = conn.getresponse()
        first_byte = time.monotonic() - began
        if response.status != 200:
            raise NoAnswerError(f"HTTP {response.status}: {error_text(response.read(65536))}")
        text = streamed_text(response) if question.stream else whole_text(response.read())
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(network_reason(error, access.timeout)) from error
    finally:
        conn.close()
    return Answer(text, response.headers.get("X-LLM-Peer"), first_byte, time.monotonic() - began)


def network_reason(error: Exception, timeout: float) -> str:
    """Say in words what the network did."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return f"no answer within {timeout:g} s"
    return f"{type(error).__name__}: {error}".rstrip(": ")


def error_text(body: bytes) -> str:
    """Return the message of an error answer, in OpenAI's or Ollama's shape, else the start of the body."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace").strip() or "no text"


def whole_text(body: bytes) -> str:
    """Return the text of an answer in one piece."""
    try:
        answer = json.loads(body)
        text = answer["choices"][0]["message"].get("content") or ""
        tokens = (answer.get("usage") or {}).get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise NoAnswerError("the answer is not a chat completion: " + body[:200].decode("utf-8", "replace")) from error
    if not text and not tokens:
        raise NoAnswerError("the answer is empty")
    return str(text)


def events(lines: Iterable[bytes]) -> Iterator[str]:
    """Yield the data of each server-sent event."""
    for line in lines:
        if line.startswith(b"data:"):
            yield line[5:].strip().decode("utf-8", "replace")


def streamed_text(lines: Iterable[bytes]) -> str:
    """Return the text of a streamed answer; it must end with ``[DONE]``."""
    text, pieces = "", 0
    for data in events(lines):
        if data == "[DONE]":
            if not pieces:
                raise NoAnswerError("the stream held no piece of an answer")
            return text
        try:
            event = json.loads(data)
            if event.get("error"):
                raise NoAnswerError("the stream ended with an error: " + error_text(data.encode()))
            for choice in event.get("choices") or []:
                pieces += 1
                text += (choice.get("delta") or {}).get("content") or ""
        except (ValueError, AttributeError) as error:
            raise NoAnswerError("the stream holds something else than events: " + data[:200]) from error
    raise NoAnswerError("the stream broke off before its end")


def ask_all(question: Question, access: Access, concurrency: int) -> dict[str, Any]:
    """Ask ``question.count`` times, ``concurrency`` at a time, and sum up.

    :returns: ``asked``, ``answered``, ``peers`` (peer → answers), ``text`` of the first answer, ``first_byte`` and
        ``seconds`` (means in seconds, None without an answer), ``errors`` (reason → how often)
    """

    def attempt(_number: int) -> Answer | str:
        try:
            return ask(question, access)
        except NoAnswerError as error:
            return str(error)

    with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
        outcomes = list(pool.map(attempt, range(question.count)))
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    reasons = [outcome for outcome in outcomes if isinstance(outcome, str)]
    peers = [answer.peer for answer in answers if answer.peer]
    return {
        "name": question.name,
        "url": question.url,
        "model": question.model,
        "stream": question.stream,
        "asked": question.count,
        "answered": len(answers),
        "peers": {peer: peers.count(peer) for peer in sorted(set(peers))},
        "text": answers[0].text if answers else "",
        "first_byte": mean([answer.first_byte for answer in answers]),
        "seconds": mean([answer.seconds for answer in answers]),
        "errors": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }


def mean(values: list[float]) -> float | None:
    """Return the arithmetic mean rounded to milliseconds, or None of nothing."""
    return round(sum(values) / len(values), 3) if values else None
