# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What modules know about engines: one protocol, one file per engine.

A model goes through three steps that can be taken on their own: *look* (what is there, what would it take; changes
nothing), *fetch* (its bytes are on the node, verified, not served yet) and *activate* (they are what the engine serves
under the model's name). Loading is apart: it is about memory, not about the disk.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Protocol

from ansible_collections.llm.cluster.plugins.module_utils._engines._prune import Pruned
from ansible_collections.llm.cluster.plugins.module_utils._fetch import HttpOptions


class EngineError(Exception):
    """An engine or its store could not do what was asked; the message says what to do next."""


class UploadNeededError(EngineError):
    """No other node could give the file, so that it has to come from the controller."""


@dataclass(frozen=True)
class ModelSpec:
    """One wanted model."""

    name: str
    state: str = "present"
    engine: str = "llama_cpp"
    address: str = "127.0.0.1"
    port: int = 8000
    digest: str = ""
    url: str = ""
    file: str = ""
    registry: str = ""
    size: int | None = None
    insecure: bool = False
    peers: tuple[str, ...] = ()
    patience: float = 60.0
    unit: str = ""
    keep_alive: str = "-1"


@dataclass(frozen=True)
class Settings:
    """What holds for all models of a node."""

    models_dir: str = ""
    partial_dir: str = ""
    timeout: float = 300.0
    lock_timeout: float = 600.0
    read_only: bool = False
    replace: bool = True
    token_file: str = ""
    max_rate: int = 0
    http: HttpOptions = field(default_factory=HttpOptions)


MODELS_DIR = {"llama_cpp": "/var/lib/llama-cpp/models", "ollama": "/var/lib/ollama/models"}


def folders(params: dict[str, Any]) -> dict[str, Any]:
    """Return an engine's folders out of a module's options: as given, else the usual ones."""
    models_dir = (params["models_dir"] or MODELS_DIR[params["engine"]]).rstrip("/")
    partial_dir = params["partial_dir"] or models_dir.rpartition("/")[0] + "/partial"
    return {"models_dir": models_dir, "partial_dir": partial_dir}


@dataclass(frozen=True)
class Look:
    """What one model's state is, and what reaching the wanted one takes.

    digest: what is served under the name now. held: the wanted bytes are on the node, verified. active: they are what
    is served. upload: they have to come from the controller, from byte ``have`` on. size: of the whole model, if known.
    """

    digest: str = ""
    wanted: str = ""
    held: bool = False
    active: bool = False
    size: int | None = None
    have: int = 0
    upload: bool = False
    note: str = ""


@dataclass(frozen=True)
class Fetch:
    """What fetching did: bytes that were moved, bytes that were there from an earlier try."""

    moved: int = 0
    resumed: int = 0


@dataclass(frozen=True)
class Found:
    """One model as it is on a node.

    digest: what is served under the name now. wanted: what should be. have: bytes of a wanted version on its way. size:
    of the served version. held: the wanted version is on the node, whole. extra: nobody wants this model here. loaded:
    the digest that is in memory under the name. set_up: whether the engine could serve it if it had the file.
    """

    name: str
    digest: str = ""
    wanted: str = ""
    status: str = "missing"
    have: int = 0
    size: int | None = None
    held: bool = False
    extra: bool = False
    unit: str = ""
    loaded: str = ""
    context: int | None = None
    expires: str = ""
    set_up: bool = True
    note: str = ""


@dataclass(frozen=True)
class Inspection:
    """All models of a node, and digest and size of every version that is there whole, served or kept."""

    models: list[Found]
    held: dict[str, int]


def status_of(digest: str, wanted: str, whole: bool) -> str:
    """Return what is to be said about a model that is served in a version where another may be wanted."""
    if not digest:
        return "missing"
    if wanted not in ("", digest):
        return "wrong"
    return "ok" if whole else "corrupt"


class Engine(Protocol):
    """What each engine's file answers."""

    def inspect(self, specs: list[ModelSpec], verify: bool) -> Inspection:
        """Return what is on the node, also while the engine is down; verify: hash what changed since it was hashed."""

    def models(self) -> dict[str, str]:
        """Return the digest that is served under each name."""

    def look(self, spec: ModelSpec) -> Look:
        """Compare a wanted model with what is there. Changes nothing, but that a damaged file is removed."""

    def fetch(self, spec: ModelSpec, look: Look) -> Fetch:
        """Bring the model's bytes to the node and verify them, without serving them yet where the engine can."""

    def activate(self, spec: ModelSpec, look: Look) -> str:
        """Serve the fetched bytes under the model's name, keep those served before; return the digest served then."""

    def kept(self, spec: ModelSpec) -> list[str]:
        """Return the model's versions that are on the node, whole, but not served: the wanted one, then former ones."""

    def prune(self, specs: list[ModelSpec], keep: frozenset[str], keep_previous: int) -> Pruned:
        """Delete what none of the wanted models needs, so many versions back; only say what while read-only."""

    def remove(self, spec: ModelSpec) -> None:
        """Stop offering the model and delete what only it used."""

    def units(self, specs: list[ModelSpec]) -> dict[str, str]:
        """Return what the models' systemd instances need: ``""``, ``install``, ``start`` or ``restart``."""

    def load(self, spec: ModelSpec) -> bool:
        """Have the model in memory, and prove it; return whether that needed anything."""

    def unload(self, spec: ModelSpec) -> None:
        """Drop the model out of memory."""

    def loaded(self) -> dict[str, str]:
        """Return name and digest of the models that are in memory."""


class AnswerError(Exception):
    """An engine answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


def open_engine(base: str, method: str, path: str, body: Any = None, timeout: float = 10.0) -> Any:
    """Send a request to an engine on this node, never through a proxy, and return the open response.

    Raises AnswerError for an error status and OSError when nothing answers.
    """
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if data is not None else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(urllib.request.Request(base + path, data, headers, method=method), timeout=timeout)
    except urllib.error.HTTPError as error:
        text = error.read(2000).decode("utf-8", "replace").strip()
        raise AnswerError(error.code, error_text(text) or error.reason) from error


def call_engine(base: str, method: str, path: str, body: Any = None, timeout: float = 10.0) -> Any:
    """Send a request to an engine on this node and return its JSON answer, None for an empty one."""
    with open_engine(base, method, path, body, timeout) as response:
        text = response.read()
    return json.loads(text) if text.strip() else None


def error_text(text: str) -> str:
    """Return the message in an error body of either engine's shape."""
    try:
        error = json.loads(text).get("error")
    except (ValueError, AttributeError):
        return text[:300]
    return str(error.get("message", error)) if isinstance(error, dict) else str(error or text[:300])


def base_url(spec: ModelSpec) -> str:
    """Return the URL of a model's engine."""
    host = f"[{spec.address}]" if ":" in spec.address else spec.address
    return f"http://{host}:{spec.port}"


def make_engine(kind: str, settings: Settings, address: str, port: int) -> Engine:
    """Return the engine of a kind. llama.cpp has one address per model and takes it from there."""
    if kind == "ollama":
        from ansible_collections.llm.cluster.plugins.module_utils._engines.ollama import Ollama  # noqa: PLC0415

        return Ollama(settings, address, port)
    from ansible_collections.llm.cluster.plugins.module_utils._engines.llama_cpp import LlamaCpp  # noqa: PLC0415

    return LlamaCpp(settings)
