#!/usr/bin/env python3
# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A SIMULATED Ollama: it speaks Ollama's HTTP API and keeps Ollama's model store, but no model runs in it.

It is one file without dependencies, so that it can be packed as bin/ollama into a release archive (see releases.py) and
be installed, upgraded and supervised like the real program. Names, shapes, status codes and error texts follow the
source of Ollama 0.33 and were compared with a server built from it. What it leaves out answers 501.

    ollama serve        honours OLLAMA_HOST, OLLAMA_MODELS, OLLAMA_NUM_PARALLEL, OLLAMA_KEEP_ALIVE,
                        OLLAMA_CONTEXT_LENGTH, OLLAMA_MAX_LOADED_MODELS, OLLAMA_NOPRUNE, OLLAMA_NO_CLOUD
    ollama --version

Only of the simulation: SIMULATED_OLLAMA_TOKEN_SECONDS (time per token, default 0.002) and
SIMULATED_OLLAMA_LOAD_SECONDS (time to load a model, default 0.05).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import ipaddress
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

VERSION = "0.33.3"  # replaced when a release archive is built
FOREVER = (1 << 63) - 1  # Go's longest duration, in nanoseconds
MAX_TRIES = 6
PRUNE_GRACE_SECONDS = 3600
MAX_LOADED_MODELS = 3  # on a machine without a GPU
WEIGHTS = "application/vnd.ollama.image.model"
# Blobs that are read to list a model: without one of them it is not shown.
READ_TO_LIST = ("application/vnd.ollama.image.template", "application/vnd.ollama.image.prompt")

Json = dict


def environment(name: str, default: str = "") -> str:
    """A variable as Ollama reads it: without surrounding spaces and quotes."""
    return os.environ.get(name, "").strip().strip("\"'") or default


def host_and_port(value: str) -> tuple[str, int]:
    """OLLAMA_HOST → (address, port); anything missing is 127.0.0.1 and 11434."""
    scheme, separator, rest = value.partition("://")
    port = {"http": 80, "https": 443}.get(scheme, 11434) if separator else 11434
    rest = (rest if separator else value).partition("/")[0]
    match = re.fullmatch(r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^:]*))(?::(?P<port>\d+))?", rest)
    if match:
        return match["v6"] or match["host"] or "127.0.0.1", int(match["port"] or port)
    return rest or "127.0.0.1", port


def is_true(value: str) -> bool:
    return value != "" and value.lower() not in ("0", "f", "false")


# --- durations and times, as Go writes them -------------------------------------------------------------------------

_UNITS = {"h": 3_600_000_000_000, "m": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}


def parse_duration(text: str) -> int:
    """A Go duration ("5m", "-1s", "1h30m") in nanoseconds. Bare numbers other than 0 are an error, as in Go."""
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text.lstrip("+"))
    if rest == "0":
        return 0
    parts = re.findall(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|ns)", rest)
    if not rest or "".join(a + b for a, b in parts) != rest:
        reason = "missing unit in" if re.fullmatch(r"[\d.]+", rest) else "invalid"
        raise ValueError(f'time: {reason} duration "{text}"')
    return sign * int(sum(float(number) * _UNITS[unit] for number, unit in parts))


def parse_keep_alive(value: Any) -> int:
    """keep_alive of a request (a number of seconds or a Go duration) in nanoseconds; negative means for ever."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        nanoseconds = int(value * 1e9)
    elif isinstance(value, str):
        nanoseconds = parse_duration(value)
    else:
        raise ValueError(f"Unsupported type: '{type(value).__name__}'")
    return FOREVER if nanoseconds < 0 else nanoseconds


def default_keep_alive() -> int:
    value = environment("OLLAMA_KEEP_ALIVE", "5m")
    try:
        nanoseconds = parse_duration(value)
    except ValueError:
        nanoseconds = int(value) * 1_000_000_000 if re.fullmatch(r"-?\d+", value) else 300_000_000_000
    return FOREVER if nanoseconds < 0 else nanoseconds


def rfc3339(nanoseconds: int) -> str:
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    digits = f"{fraction:09d}".rstrip("0")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + (f".{digits}" if digits else "") + "Z"


# --- names and the store on disk ------------------------------------------------------------------------------------

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")


class Name(NamedTuple):
    """[scheme://][host/][namespace/]model[:tag], with Ollama's defaults filled in; the scheme means nothing."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name:
        tag = "latest"
        if text.rfind(":") > text.rfind("/"):
            text, _, tag = text.rpartition(":")
        rest, _, model = text.rpartition("/")
        host, _, namespace = rest.rpartition("/")
        host = host.rpartition("://")[2]
        return cls(host or "registry.ollama.ai", namespace or "library", model, tag)

    def is_valid(self) -> bool:
        return bool(
            _HOST.fullmatch(self.host)
            and _NAMESPACE.fullmatch(self.namespace)
            and _PART.fullmatch(self.model)
            and _PART.fullmatch(self.tag)
        )

    def short(self) -> str:
        """As /api/tags shows it: default host and namespace left out, the tag always there."""
        if self.host.lower() != "registry.ollama.ai":
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        if self.namespace.lower() != "library":
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    def path(self) -> Path:
        return Path(self.host, self.namespace, self.model, self.tag)


class Model(NamedTuple):
    name: Name
    digest: str  # hex, without "sha256:", as /api/tags shows it
    manifest: Json
    config: Json
    modified: int  # nanoseconds
    problem: str  # why its config cannot be read: "missing", or the text of the error

    @property
    def size(self) -> int:
        return sum(layer.get("size", 0) for layer in layers_of(self.manifest))

    @property
    def details(self) -> Json:
        return {
            "parent_model": "",
            "format": self.config.get("model_format", ""),
            "family": self.config.get("model_family", ""),
            "families": self.config.get("model_families"),
            "parameter_size": self.config.get("model_type", ""),
            "quantization_level": self.config.get("file_type", ""),
        }

    @property
    def capabilities(self) -> list[str]:
        return self.config.get("capabilities") or ["completion"]

    @property
    def weights(self) -> str:
        """What a loaded model is known by: the digest of its weights, whatever names and templates they have."""
        return next((layer["digest"] for layer in layers_of(self.manifest) if is_weights(layer)), self.digest)


def layers_of(manifest: Json) -> list[Json]:
    config = manifest.get("config") or {}
    return [*(manifest.get("layers") or []), *([config] if config.get("digest") else [])]


def is_weights(layer: Json) -> bool:
    return layer.get("mediaType") == WEIGHTS


class Store:
    """$OLLAMA_MODELS: manifests/<host>/<namespace>/<model>/<tag> and blobs/sha256-<hex>."""

    def __init__(self, root: Path) -> None:
        self.manifests = root / "manifests"
        self.blobs = root / "blobs"
        self.manifests.mkdir(parents=True, exist_ok=True)
        self.blobs.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise ValueError("invalid digest format")
        return self.blobs / digest.replace(":", "-")

    def existing(self, name: Name) -> Name:
        """The name in the spelling the store has it in: names are compared without case."""
        for path in self.manifests.glob("*/*/*/*"):
            parts = path.relative_to(self.manifests).parts
            if [part.lower() for part in parts] == [part.lower() for part in name.path().parts]:
                host, namespace, model, tag = parts
                return Name(host, namespace, model, tag)
        return name

    def get(self, name: Name) -> Model | None:
        try:
            path = self.manifests / name.path()
            content = path.read_bytes()
            manifest = json.loads(content)
        except (OSError, ValueError):
            return None
        config: Json = {}
        problem = ""
        try:
            digest = (manifest.get("config") or {}).get("digest")
            config = json.loads(self.blob(digest).read_bytes()) if digest else {}
        except OSError:
            problem = "missing"
        except ValueError as error:
            problem = f"invalid character: {error}"
        if self.lacks(manifest, *READ_TO_LIST):
            problem = "missing"
        return Model(name, hashlib.sha256(content).hexdigest(), manifest, config, path.stat().st_mtime_ns, problem)

    def manifest_files(self) -> list[Path]:
        return [path for path in self.manifests.glob("*/*/*/*") if path.is_file()]

    def all(self) -> list[Model]:
        """The model of every manifest that can be read."""
        names = [Name(*path.relative_to(self.manifests).parts) for path in self.manifest_files()]
        found = [self.get(name) for name in names if name.is_valid()]
        return [model for model in found if model]

    def models(self) -> list[Model]:
        """The models that are shown: those whose small blobs can be read. Nobody looks at the weights."""
        found = [model for model in self.all() if not model.problem]
        return sorted(found, key=lambda model: (-(model.modified // 1_000_000_000), model.name.short()))

    def lacks(self, manifest: Json, *kinds: str) -> bool:
        layers = [layer for layer in layers_of(manifest) if layer.get("mediaType") in kinds]
        return not all(os.access(self.blob(layer["digest"]), os.R_OK) for layer in layers)

    def weights_problem(self, model: Model) -> str:
        """What is wrong with the weights at first sight: "missing", or an error's text. Nobody hashes their bytes."""
        for layer in filter(is_weights, layers_of(model.manifest)):
            try:
                size = self.blob(layer["digest"]).stat().st_size
            except OSError:
                return "missing"
            if size == 0:
                return "EOF"
            if size < layer["size"]:
                return f'tensor "token_embd.weight" offset+size ({layer["size"]}) exceeds file size ({size})'
        return ""

    def write(self, name: Name, content: bytes) -> None:
        path = self.manifests / name.path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def delete(self, model: Model) -> None:
        path = self.manifests / model.name.path()
        path.unlink()
        self.delete_empty_folders()
        self.delete_unused([layer["digest"] for layer in layers_of(model.manifest)])

    def delete_empty_folders(self) -> None:
        """Every empty folder below manifests goes, not just those of the model."""
        for folder in sorted(self.manifests.rglob("*"), reverse=True):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def used(self) -> set[str]:
        return {layer["digest"] for model in self.all() for layer in layers_of(model.manifest)}

    def delete_unused(self, digests: list[str]) -> None:
        for digest in set(digests) - self.used():
            with contextlib.suppress(OSError, ValueError):
                self.blob(digest).unlink()

    def prune(self) -> None:
        """At start, without OLLAMA_NOPRUNE: unused blobs and foreign files go when they are older than an hour.

        One file among the manifests that is none, and nothing goes.
        """
        if len(self.all()) != len(self.manifest_files()):
            print("corrupt manifests detected, skipping prune operation", file=sys.stderr)
            return
        used = {digest.replace(":", "-") for digest in self.used()}
        for path in self.blobs.iterdir():
            if path.is_file() and path.name not in used and time.time() - path.stat().st_mtime > PRUNE_GRACE_SECONDS:
                path.unlink()
        self.delete_empty_folders()


# --- pulling --------------------------------------------------------------------------------------------------------


class PullError(Exception):
    pass


def _request(method: str, url: str, headers: Json | None = None) -> tuple[http.client.HTTPResponse, str]:
    """One request; redirects on the same host are followed, as Ollama does. Returns the answer and its address."""
    for _ in range(10):
        parts = urllib.parse.urlsplit(url)
        make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = make(parts.netloc, timeout=30)
        try:
            connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers or {})
            answer = connection.getresponse()
        except OSError as error:
            reason = f"dial tcp {parts.netloc}: {error}"
            raise PullError(f'{method.capitalize()} "{url}": {reason}') from error
        target = urllib.parse.urljoin(url, answer.headers.get("Location", ""))
        if answer.status not in (301, 302, 303, 307, 308):
            return answer, url
        if urllib.parse.urlsplit(target).hostname != parts.hostname:
            return answer, url
        url = target
    raise PullError("maximum redirects exceeded (10) for directURL")


def _checked(answer: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if answer.status == 404:
        raise PullError("file does not exist")
    if answer.status == 401:
        raise PullError("unauthorized: access denied")
    if answer.status >= 400:
        raise PullError(f"{answer.status}: {answer.read().decode('utf-8', 'replace')}")
    return answer


def _fetch_blob(store: Store, base: str, layer: Json) -> Iterator[Json]:
    """One blob, through <blob>-partial, which a later pull goes on with. Yields progress."""
    digest = layer["digest"]
    path = store.blob(digest)
    partial = path.with_name(path.name + "-partial")
    status = f"pulling {digest[7:19]}"

    answer, _ = _request("HEAD", f"{base}/blobs/{digest}")
    total = int(_checked(answer).headers.get("Content-Length") or 0)
    answer, url = _request("GET", f"{base}/blobs/{digest}")
    location = _checked(answer).headers.get("Location")
    answer.close()
    if not location:
        raise PullError("http: no Location header in response")
    url = urllib.parse.urljoin(url, location)

    done = partial.stat().st_size if partial.exists() else 0
    problem: Exception | None = None
    for attempt in range(MAX_TRIES):
        try:
            if done < total:
                answer, _ = _request("GET", url, {"Range": f"bytes={done}-{total - 1}"})
                with partial.open("ab") as file:
                    while done < total:
                        chunk = answer.read(min(65536, total - done))
                        if not chunk:
                            raise PullError("unexpected EOF")
                        file.write(chunk)
                        done += len(chunk)
                        yield {"status": status, "digest": digest, "total": total, "completed": done}
            partial.replace(path) if total else path.touch()
            return
        except (OSError, http.client.HTTPException, PullError) as error:
            problem = error
            done = partial.stat().st_size if partial.exists() else 0
            time.sleep(0.02 * 2**attempt)  # the real one waits 1, 2, 4 … 32 s
    raise PullError(f"max retries exceeded: {problem}")


def pull(store: Store, name: Name, insecure: bool) -> Iterator[Json]:
    """The progress of a pull; it is done only when {"status": "success"} came. Raises PullError."""
    old = store.get(name)
    yield {"status": "pulling manifest"}
    # A scheme in the name is lost on the way, in the real one too: only insecure decides.
    base = f"{'http' if insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}"
    try:
        answer, _ = _request("GET", f"{base}/manifests/{name.tag}")
        content = _checked(answer).read()
        manifest = json.loads(content)
        layers = layers_of(manifest)
    except (PullError, ValueError, http.client.HTTPException) as error:
        raise PullError(f"pull model manifest: {error}") from error

    fetched = []
    for layer in layers:
        path = store.blob(layer["digest"])
        if path.exists():
            size = path.stat().st_size
            status = f"pulling {layer['digest'][7:19]}"
            yield {"status": status, "digest": layer["digest"], "total": size, "completed": size}
            continue
        yield from _fetch_blob(store, base, layer)
        fetched.append(layer["digest"])

    yield {"status": "verifying sha256 digest"}
    for digest in fetched:
        actual = "sha256:" + hashlib.sha256(store.blob(digest).read_bytes()).hexdigest()
        if actual != digest:
            store.blob(digest).unlink()
            raise PullError(f"digest mismatch, file must be downloaded again: want {digest}, got {actual}")

    yield {"status": "writing manifest"}
    store.write(name, content)
    if old and not is_true(environment("OLLAMA_NOPRUNE")):
        gone = {layer["digest"] for layer in layers_of(old.manifest)} - {layer["digest"] for layer in layers}
        if gone:
            yield {"status": "removing unused layers"}
            store.delete_unused(list(gone))
    yield {"status": "success"}


# --- loaded models and made-up answers ------------------------------------------------------------------------------


class Runner:
    """Loaded weights: as many requests at once as OLLAMA_NUM_PARALLEL, the rest wait without limit.

    /api/ps shows the name and the digest that they were loaded by, whatever else is asked of them later.
    """

    def __init__(self, model: Model, context: int) -> None:
        self.model = model
        self.context = context
        self.slots = threading.Semaphore(int(environment("OLLAMA_NUM_PARALLEL", "1")))
        self.requests = 0  # those that wait as well
        self.busy = 0
        self.keep = 0
        self.expires = 0

    def urgency(self) -> tuple[bool, int, str]:
        """What goes first when another model needs the room sorts first."""
        return self.requests > 0, self.keep, self.model.weights

    def touch(self, keep: int) -> None:
        self.keep = keep
        self.expires = time.time_ns() + keep


class Scheduler:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.runners: dict[str, Runner] = {}

    def load(self, model: Model, keep_alive: int | None, context: int) -> Runner:
        while True:
            with self.lock:
                self._drop_expired()
                runner = self.runners.get(model.weights)
                if runner and runner.context == context:
                    runner.touch(runner.keep if keep_alive is None else keep_alive)
                    return runner
                if not runner and len(self.runners) < self.limit():
                    time.sleep(float(environment("SIMULATED_OLLAMA_LOAD_SECONDS", "0.05")))
                    runner = self.runners[model.weights] = Runner(model, context)
                    runner.touch(default_keep_alive() if keep_alive is None else keep_alive)
                    return runner
                # It has another context, or one has to make room: an idle one first, whichever that is.
                (runner or min(self.runners.values(), key=Runner.urgency)).touch(0)
            time.sleep(0.005)

    @staticmethod
    def limit() -> int:
        return int(environment("OLLAMA_MAX_LOADED_MODELS", "0")) or MAX_LOADED_MODELS

    def has(self, model: Model) -> bool:
        return any(runner.model.weights == model.weights for runner in self.loaded())

    def unload(self, model: Model) -> None:
        """Drop the weights out of memory, by whatever name; not before their requests are done."""
        with self.lock:
            if model.weights in self.runners:
                self.runners[model.weights].touch(0)

    def loaded(self) -> list[Runner]:
        with self.lock:
            self._drop_expired()
            return sorted(self.runners.values(), key=lambda runner: -runner.expires)

    def _drop_expired(self) -> None:
        for key, runner in list(self.runners.items()):
            if runner.expires <= time.time_ns() and not runner.requests:
                del self.runners[key]


def answer_tokens(model: str, prompt: str) -> list[str]:
    """The made-up answer: always the same for the same version of a model (NAME@DIGEST) and prompt."""
    mark = hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:8]
    return [*f"This is a simulated answer of {model} to prompt {mark}.".replace(" ", " \n").split("\n")]


def embedding(text: str, dimensions: int = 16) -> list[float]:
    raw = hashlib.sha512(text.encode("utf-8", "replace")).digest()
    values = [byte / 127.5 - 1 for byte in raw[: min(dimensions or 16, 16)]]
    length = sum(value * value for value in values) ** 0.5 or 1.0
    return [value / length for value in values]


class Completion:
    """One request under way: iterating gives (token, None), and at the end ("", metrics)."""

    def __init__(self, runner: Runner, model: Model, prompt: str, limit: int) -> None:
        self.runner = runner
        self.model = model
        self.prompt = prompt
        self.limit = limit
        self.started = time.time_ns()

    def __iter__(self) -> Iterator[tuple[str, Json | None]]:
        runner = self.runner
        tokens = answer_tokens(f"{self.model.name.short()}@{runner.model.digest[:12]}", self.prompt)
        reason = "stop"
        if 0 < self.limit < len(tokens):
            tokens, reason = tokens[: self.limit], "length"
        pause = float(environment("SIMULATED_OLLAMA_TOKEN_SECONDS", "0.002"))
        runner.requests += 1
        try:
            with runner.slots:
                runner.busy += 1
                began = time.time_ns()
                try:
                    for token in tokens:
                        time.sleep(pause)
                        yield token, None
                finally:
                    runner.busy -= 1
        finally:
            runner.requests -= 1
            runner.touch(runner.keep)
        now = time.time_ns()
        yield (
            "",
            {
                "done_reason": reason,
                "total_duration": now - self.started,
                "load_duration": began - self.started,
                "prompt_eval_count": max(1, len(self.prompt.split())),
                "prompt_eval_duration": 1_000_000,
                "eval_count": len(tokens),
                "eval_duration": now - began,
            },
        )


# --- the HTTP API ---------------------------------------------------------------------------------------------------


class ApiError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def parse_name(text: Any, missing: ApiError) -> Name:
    if not isinstance(text, str) or not text.strip():
        raise missing
    name = Name.parse(text.strip())
    if not name.is_valid():
        raise ApiError(400, "invalid model name")
    return name


def not_found(text: str) -> ApiError:
    return ApiError(404, f"model '{text}' not found")


@contextlib.contextmanager
def not_permitted() -> Iterator[None]:
    """Files of the store that belong to somebody else."""
    try:
        yield
    except PermissionError as error:
        raise ApiError(500, f"open {error.filename}: permission denied") from error


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "SimulatedOllama"
    server: Server
    streaming = False

    # -- plumbing

    def log_message(self, format: str, *args: Any) -> None:
        sys.stderr.write(f"[SIMULATED] {self.address_string()} {format % args}\n")

    def _send(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, content_type: str = "application/json; charset=utf-8") -> None:
        self._send(status, json.dumps(value, separators=(",", ":")).encode(), content_type)

    def _start_stream(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.streaming = True

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.streaming = False

    def _ndjson(self, values: Iterator[Json]) -> None:
        self._start_stream("application/x-ndjson")
        try:
            for value in values:
                self._chunk(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        except (PullError, ValueError) as error:
            self._chunk(json.dumps({"error": str(error)}, separators=(",", ":")).encode() + b"\n")
        self._end_stream()

    def _body(self) -> Json:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not content.strip():
            raise ApiError(400, "EOF" if self.path.startswith("/v1/") else "missing request body")
        try:
            value = json.loads(content)
        except ValueError as error:
            raise ApiError(400, f"invalid character in request body: {error}") from error
        if not isinstance(value, dict):
            kind = {list: "array", str: "string", bool: "bool"}.get(type(value), "number")
            wanted = self.path.rsplit("/", 1)[-1].capitalize()
            raise ApiError(400, f"json: cannot unmarshal {kind} into Go value of type api.{wanted}Request")
        request = {key.lower(): item for key, item in value.items()}  # Go matches keys without case
        self._keep_alive(request)  # refused before the model is looked for
        return request

    def _host_allowed(self) -> bool:
        """Bound to loopback, only local names and addresses are served; bound elsewhere nothing is checked."""
        if not ipaddress.ip_address(str(self.server.server_address[0])).is_loopback:
            return True
        host = self.headers.get("Host", "")
        host = re.sub(r":\d+$", "", host).strip("[]").lower()
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            return address.is_loopback or address.is_private or address.is_unspecified
        return host in ("", "localhost", socket.gethostname().lower()) or host.endswith(
            (".localhost", ".local", ".internal")
        )

    def _handle(self) -> None:
        path = urllib.parse.urlsplit(self.path).path
        try:
            if not self._host_allowed():
                self._send(403, b"", "")
                return
            method = "GET" if self.command == "HEAD" else self.command
            route = ROUTES.get((method, path))
            if route is None and method == "GET" and path.startswith("/v1/models/"):
                route = Handler.v1_model
            if route is None and any(known == path for _, known in ROUTES):
                self._send(405, b"405 method not allowed", "text/plain")
            elif route is None:
                self._send(404, b"404 page not found", "text/plain")
            else:
                route(self)
        except ApiError as error:
            self._error(path, error)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT = _handle  # noqa: N815

    def _error(self, path: str, error: ApiError) -> None:
        if path.startswith("/v1/"):
            kind = {400: "invalid_request_error", 404: "not_found_error"}.get(error.status, "api_error")
            shape: Json = {"error": {"message": error.message, "type": kind, "param": None, "code": None}}
            self._json(shape, error.status, "application/json")
        else:
            self._json({"error": error.message}, error.status)

    # -- what requests have in common

    def _model(self, text: Any, missing: ApiError, quoted: bool = False) -> Model:
        name = self.server.store.existing(parse_name(text, missing))
        model = self.server.store.get(name)
        gone = ApiError(404, f'model "{text}" not found, try pulling it first') if quoted else not_found(str(text))
        if model is None:
            raise gone
        if model.problem:
            raise self._unreadable(model.problem, gone)
        return model

    @staticmethod
    def _unreadable(problem: str, missing: ApiError) -> ApiError:
        return missing if problem == "missing" else ApiError(500, problem)

    def _keep_alive(self, request: Json) -> int | None:
        if request.get("keep_alive") is None:
            return None
        try:
            return parse_keep_alive(request["keep_alive"])
        except ValueError as error:
            raise ApiError(400, str(error)) from error

    def _runner(self, model: Model, request: Json, to: str = "") -> Runner:
        text = request["model"]
        if to and "completion" not in self.server.capabilities(model):
            raise ApiError(400, f'"{text}" does not support {to}')
        if not self.server.scheduler.has(model):
            problem = self.server.store.weights_problem(model)
            if problem:
                raise self._unreadable(problem, ApiError(404, f'model "{text}" not found, try pulling it first'))
        options = request.get("options") or {}
        context = int(options.get("num_ctx") or environment("OLLAMA_CONTEXT_LENGTH", "4096"))
        return self.server.scheduler.load(model, self._keep_alive(request), context)

    # -- general

    def root(self) -> None:
        self._send(200, b"Ollama is running", "text/plain; charset=utf-8")

    def version(self) -> None:
        self._json({"version": VERSION})

    def status(self) -> None:
        disabled = is_true(environment("OLLAMA_NO_CLOUD"))
        self._json({"cloud": {"disabled": disabled, "source": "env" if disabled else "none"}})

    def not_simulated(self) -> None:
        raise ApiError(501, "not simulated")

    # -- models

    def tags(self) -> None:
        self._json(
            {
                "models": [
                    {
                        "name": model.name.short(),
                        "model": model.name.short(),
                        "modified_at": rfc3339(model.modified),
                        "size": model.size,
                        "digest": model.digest,
                        "details": model.details,
                        "capabilities": model.capabilities,
                    }
                    for model in self.server.store.models()
                ]
            }
        )

    def ps(self) -> None:
        self._json(
            {
                "models": [
                    {
                        "name": runner.model.name.short(),
                        "model": runner.model.name.short(),
                        "size": runner.model.size,
                        "digest": runner.model.digest,
                        "details": runner.model.details,
                        "expires_at": rfc3339(min(runner.expires, time.time_ns() + FOREVER)),
                        "size_vram": 0,
                        "context_length": runner.context,
                    }
                    for runner in self.server.scheduler.loaded()
                ]
            }
        )

    def pull(self) -> None:
        request = self._body()
        text = request.get("model") or request.get("name")
        name = self.server.store.existing(parse_name(text, ApiError(400, "invalid model name")))
        progress = pull(self.server.store, name, bool(request.get("insecure")))
        if request.get("stream", True) is not False:
            self._ndjson(progress)
            return
        last: Json = {}
        try:
            for step in progress:
                last = step
        except (PullError, ValueError) as error:
            self._json({"error": str(error)}, 500, "application/json")
            return
        self._json(last, content_type="application/json")

    def show(self) -> None:
        request = self._body()
        text = request.get("model") or request.get("name")
        name = self.server.store.existing(parse_name(text, ApiError(400, "model is required")))
        model = self.server.store.get(name)
        if model is None:
            raise not_found(name.short())
        problem = model.problem or self.server.store.weights_problem(model)
        if problem:
            raise self._unreadable(problem, not_found(name.short()))
        self._json(self._show(model))

    def _show(self, model: Model) -> Json:
        family = model.config.get("model_family", "")
        return {
            "modelfile": f'# Modelfile generated by "ollama show"\n# FROM {model.name.short()}\n',
            "template": "{{ .Prompt }}",
            "details": model.details,
            "model_info": {"general.architecture": family, f"{family}.context_length": 4096},
            "capabilities": model.capabilities,
            "modified_at": rfc3339(model.modified),
        }

    def copy(self) -> None:
        request = self._body()
        names = []
        for key in ("source", "destination"):
            name = Name.parse(str(request.get(key, "")))
            if not name.is_valid():
                raise ApiError(400, f'{key} "{request.get(key, "")}" is invalid')
            names.append(self.server.store.existing(name))
        source = self.server.store.manifests / names[0].path()
        if not source.exists():
            raise ApiError(404, f'model "{request["source"]}" not found')
        if source != self.server.store.manifests / names[1].path():
            with not_permitted():
                self.server.store.write(names[1], source.read_bytes())
        self._send(200, b"", "")

    def delete(self) -> None:
        request = self._body()
        text = request.get("model") or request.get("name")
        if text and not Name.parse(str(text)).is_valid():
            raise ApiError(400, f'name "{text}" is invalid')
        name = self.server.store.existing(parse_name(text, ApiError(400, "model is required")))
        model = self.server.store.get(name)
        if model is None:
            raise not_found(str(text))
        with not_permitted():
            self.server.store.delete(model)
        self._send(200, b"", "")

    # -- inference

    def generate(self) -> None:
        request = self._body()
        text = request.get("model") or ""
        model = self._model(text, not_found(text))
        prompt = str(request.get("prompt") or "")
        base = {"model": text, "created_at": rfc3339(time.time_ns()), "response": "", "done": True}
        if not prompt and self._keep_alive(request) == 0:
            self.server.scheduler.unload(model)
            self._json({**base, "done_reason": "unload"})
            return
        runner = self._runner(model, request, to="generate")
        if not prompt:
            self._json({**base, "done_reason": "load"})
            return
        self._complete(request, runner, model, prompt, lambda token: {"response": token})

    def chat(self) -> None:
        request = self._body()
        text = request.get("model") or ""
        model = self._model(text, ApiError(400, "model is required"))
        messages = request.get("messages") or []
        base = {
            "model": text,
            "created_at": rfc3339(time.time_ns()),
            "message": {"role": "assistant", "content": ""},
            "done": True,
        }
        if not messages and self._keep_alive(request) == 0:
            self.server.scheduler.unload(model)
            self._json({**base, "done_reason": "unload"})
            return
        runner = self._runner(model, request, to="chat")
        if not messages:
            self._json({**base, "done_reason": "load"})
            return
        prompt = json.dumps(messages, sort_keys=True)
        shape = {"role": "assistant"}
        self._complete(request, runner, model, prompt, lambda token: {"message": {**shape, "content": token}})

    def _complete(self, request: Json, runner: Runner, model: Model, prompt: str, shape: Any) -> None:
        limit = int((request.get("options") or {}).get("num_predict") or -1)
        completion = Completion(runner, model, prompt, limit)

        def parts() -> Iterator[Json]:
            for token, metrics in completion:
                head = {"model": request["model"], "created_at": rfc3339(time.time_ns()), **shape(token)}
                yield {**head, "done": metrics is not None, **(metrics or {})}

        if request.get("stream", True) is not False:
            self._ndjson(parts())
            return
        text, last = "", {}
        for last in parts():
            text += last["message"]["content"] if "message" in last else last["response"]
        self._json({**last, **shape(text)})

    def embed(self) -> None:
        request = self._body()
        text = request.get("model") or ""
        inputs = request.get("input")
        if isinstance(inputs, str):
            inputs = [inputs] if inputs else []
        elif inputs is not None and not (isinstance(inputs, list) and all(isinstance(item, str) for item in inputs)):
            raise ApiError(400, "invalid input type")
        model = self._model(text, not_found(text), quoted=True)
        started = time.time_ns()
        self._runner(model, request)
        if not inputs:
            self._json({"model": text, "embeddings": []})
            return
        size = int(request.get("dimensions") or 0)
        self._json(
            {
                "model": text,
                "embeddings": [embedding(item, size) for item in inputs],
                "total_duration": time.time_ns() - started,
                "load_duration": 1_000_000,
                "prompt_eval_count": sum(max(1, len(item.split())) for item in inputs),
            }
        )

    def embeddings(self) -> None:
        request = self._body()
        text = request.get("model") or ""
        model = self._model(text, ApiError(400, "model is required"), quoted=True)
        self._runner(model, request)
        prompt = str(request.get("prompt") or "")
        self._json({"embedding": embedding(prompt) if prompt else []})

    # -- the same under /v1, in OpenAI's shape

    def v1_models(self) -> None:
        data = [_openai_model(model) for model in self.server.store.models()]
        self._json({"object": "list", "data": data or None}, content_type="application/json")

    def v1_model(self) -> None:
        text = urllib.parse.unquote(self.path[len("/v1/models/") :])
        if "/" in text:
            self._send(404, b"404 page not found", "text/plain")
            return
        model = self.server.store.get(self.server.store.existing(parse_name(text, ApiError(400, "model is required"))))
        if model is None:
            raise not_found(Name.parse(text).short())
        self._json({**_openai_model(model), "id": text}, content_type="application/json")

    def v1_chat_completions(self) -> None:
        request = self._body()
        messages = request.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ApiError(400, "[] is too short - 'messages'")
        model = self._model(request.get("model") or "", ApiError(400, "model is required"))
        self._openai(request, model, json.dumps(messages, sort_keys=True), chat=True)

    def v1_completions(self) -> None:
        request = self._body()
        text = request.get("model") or ""
        self._openai(request, self._model(text, not_found(text)), str(request.get("prompt") or ""), chat=False)

    def _openai(self, request: Json, model: Model, prompt: str, chat: bool) -> None:
        runner = self._runner(model, {"model": request["model"]}, to="chat" if chat else "generate")
        limit = int(request.get("max_tokens") or -1)
        completion = Completion(runner, model, prompt, limit)
        started = time.time_ns()
        head: Json = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{started % 999}",
            "object": "chat.completion" if chat else "text_completion",
            "created": started // 1_000_000_000,
            "model": request["model"],
            "system_fingerprint": "fp_ollama",
        }
        if request.get("stream"):
            include_usage = bool((request.get("stream_options") or {}).get("include_usage"))
            self._start_stream("text/event-stream")
            for event in _chunks(head, completion, chat, include_usage):
                self._chunk(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n")
            self._chunk(b"data: [DONE]\n\n")
            self._end_stream()
            return
        text, last = "", {}
        for token, metrics in completion:
            text += token
            last = metrics or {}
        content: Json = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, **content, "finish_reason": last["done_reason"]}
        self._json({**head, "choices": [choice], "usage": _usage(last)}, content_type="application/json")

    def v1_embeddings(self) -> None:
        request = self._body()
        text = request.get("model") or ""
        inputs = request.get("input")
        if inputs is None:
            raise ApiError(400, "invalid input")
        inputs = [inputs] if isinstance(inputs, str) else inputs
        self._runner(self._model(text, not_found(text), quoted=True), {"model": text})
        vectors: list[Any] = [embedding(item, int(request.get("dimensions") or 0)) for item in inputs]
        if str(request.get("encoding_format") or "").lower() == "base64":
            vectors = [base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for v in vectors]
        tokens = sum(max(1, len(item.split())) for item in inputs)
        data = [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        self._json({"object": "list", "data": data, "model": text, "usage": usage}, content_type="application/json")


def _openai_model(model: Model) -> Json:
    created = model.modified // 1_000_000_000
    return {"id": model.name.short(), "object": "model", "created": created, "owned_by": model.name.namespace}


def _usage(metrics: Json) -> Json:
    prompt, answer = metrics["prompt_eval_count"], metrics["eval_count"]
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _chunks(head: Json, completion: Completion, chat: bool, include_usage: bool) -> Iterator[Json]:
    """The events of a stream, without [DONE]."""
    head = {**head, "object": "chat.completion.chunk"} if chat else head
    first = True
    for token, metrics in completion:
        if chat and metrics is None:
            delta = {"role": "assistant", "content": token} if first else {"content": token}
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        elif chat and metrics:
            yield {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": metrics["done_reason"]}]}
        else:
            reason = metrics["done_reason"] if metrics else None
            zero = {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}} if include_usage else {}
            yield {**head, "choices": [{"text": token, "index": 0, "finish_reason": reason}], **zero}
        if metrics and include_usage:
            yield {**head, "choices": [], "usage": _usage(metrics)}
        first = False


ROUTES = {
    ("GET", "/"): Handler.root,
    ("GET", "/api/version"): Handler.version,
    ("GET", "/api/status"): Handler.status,
    ("GET", "/api/tags"): Handler.tags,
    ("GET", "/api/ps"): Handler.ps,
    ("POST", "/api/pull"): Handler.pull,
    ("POST", "/api/show"): Handler.show,
    ("POST", "/api/copy"): Handler.copy,
    ("DELETE", "/api/delete"): Handler.delete,
    ("POST", "/api/generate"): Handler.generate,
    ("POST", "/api/chat"): Handler.chat,
    ("POST", "/api/embed"): Handler.embed,
    ("POST", "/api/embeddings"): Handler.embeddings,
    ("POST", "/api/create"): Handler.not_simulated,
    ("POST", "/api/push"): Handler.not_simulated,
    ("GET", "/v1/models"): Handler.v1_models,
    ("POST", "/v1/chat/completions"): Handler.v1_chat_completions,
    ("POST", "/v1/completions"): Handler.v1_completions,
    ("POST", "/v1/embeddings"): Handler.v1_embeddings,
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: Store) -> None:
        self.store = store
        self.scheduler = Scheduler()
        self.known: dict[str, tuple[str, list[str]]] = {}
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)

    def capabilities(self, model: Model) -> list[str]:
        """What a model can do is read off its weights once for a name and digest, even if they were not there then."""
        name = model.name.short()
        if name not in self.known or self.known[name][0] != model.digest:
            broken = self.store.weights_problem(model) in ("missing", "EOF")
            self.known[name] = (model.digest, [] if broken else model.capabilities)
        return self.known[name][1]


def serve() -> int:
    home = Path(environment("HOME", "/"))
    key = home / ".ollama" / "id_ed25519"
    if not key.exists():  # the real one makes a key there, and stops when it cannot
        key.parent.mkdir(parents=True, exist_ok=True)
        key.write_text("not a key: this Ollama is simulated\n", encoding="utf-8")
    with Path("/proc/meminfo").open(encoding="ascii") as meminfo:  # the real one sizes its models by it
        memory = meminfo.readline().strip()
    store = Store(Path(environment("OLLAMA_MODELS", str(home / ".ollama" / "models"))))
    if not is_true(environment("OLLAMA_NOPRUNE")):
        store.prune()
    server = Server(host_and_port(environment("OLLAMA_HOST")), store)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # cuts live streams, as the real one does
    host, port = server.server_address[:2]
    print(f"SIMULATED Ollama: listening on {host!s}:{port} (version {VERSION}); {memory}", file=sys.stderr, flush=True)
    server.serve_forever()
    return 0


def show_version() -> int:
    host, port = host_and_port(environment("OLLAMA_HOST"))
    running = ""
    try:
        connection = http.client.HTTPConnection("127.0.0.1" if host == "0.0.0.0" else host, port, timeout=5)
        connection.request("GET", "/api/version")
        running = json.loads(connection.getresponse().read())["version"]
        print(f"ollama version is {running}")
    except (OSError, ValueError, http.client.HTTPException):
        print("Warning: could not connect to a running Ollama instance")
    if running != VERSION:
        print(f"Warning: client version is {VERSION}")
    return 0


def main(arguments: list[str]) -> int:
    if arguments == ["serve"]:
        return serve()
    if arguments in (["--version"], ["-v"]):
        return show_version()
    print("This is a SIMULATED Ollama for tests. Usage: ollama serve | ollama --version", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
