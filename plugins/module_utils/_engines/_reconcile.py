# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring the models of one node to their wanted states: look at all, refuse what cannot work, then act one by one."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from ansible_collections.llm.cluster.plugins.module_utils._engines import (
    Engine,
    EngineError,
    Look,
    ModelSpec,
    Settings,
    UploadNeededError,
    make_engine,
)
from ansible_collections.llm.cluster.plugins.module_utils._engines.llama_cpp import LlamaCpp
from ansible_collections.llm.cluster.plugins.module_utils._fetch import FetchError, free_bytes, human
from ansible_collections.llm.cluster.plugins.module_utils._topology import normal_digest, unit_name

PROBLEMS = (EngineError, FetchError, OSError)


@dataclass
class Report:
    """What was found and done, in the words of the module's answer."""

    models: list[dict[str, Any]] = field(default_factory=list)
    missing: list[dict[str, Any]] = field(default_factory=list)
    restart_units: list[str] = field(default_factory=list)
    start_units: list[str] = field(default_factory=list)
    absent_units: list[str] = field(default_factory=list)
    outdated: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether any model changed."""
        return any(model["changed"] for model in self.models)

    @property
    def diff(self) -> dict[str, str]:
        """The models' digests before and after."""
        return {
            side: "".join(
                f"{model['name']}: {model['digest_' + side] or 'absent'}"
                f"{', damaged' if model['damaged'] and side == 'before' else ''}"
                f"{', holds ' + model['holds_' + side] if model['holds_' + side] else ''}"
                f"{', in memory' if model['loaded_' + side] else ''}\n"
                for model in self.models
            )
            for side in ("before", "after")
        }

    def answer(self) -> dict[str, Any]:
        """Return what the module answers."""
        hidden = ("damaged", "holds_before", "holds_after", "loaded_before", "loaded_after")
        models = [{key: value for key, value in model.items() if key not in hidden} for model in self.models]
        return {
            "changed": self.changed,
            "diff": self.diff,
            "models": models,
            "restart_units": self.restart_units,
            "start_units": self.start_units,
            "absent_units": self.absent_units,
            "outdated": self.outdated,
        }


class ReconcileError(Exception):
    """A model could not be brought to its state; the report says how far things got."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


def specs_from(params: dict[str, Any]) -> list[ModelSpec]:
    """Return the wanted models out of the module's options: an entry's own value, else the one for all."""
    specs = []
    for entry in params["models"]:
        chosen = {key: params.get(key) if entry.get(key) is None else entry[key] for key in _SHARED}
        source = entry.get("source") or {}
        spec = ModelSpec(
            name=entry["name"],
            engine=params["engine"],
            digest=normal_digest(entry.get("digest")) or "",
            url=source.get("url") or "",
            file=source.get("file") or "",
            registry=source.get("registry") or "",
            size=entry.get("size"),
            insecure=bool(entry.get("insecure")),
            peers=tuple(entry.get("peers") or ()),
            patience=entry.get("patience") or params["network_timeout"],
            unit=entry.get("unit") or unit_name(entry["name"]),
            keep_alive=params["keep_alive"],
            **chosen,
        )
        _check(spec)
        specs.append(spec)
    _check_unique(specs)
    return specs


_SHARED = ("state", "address", "port")


def _check(spec: ModelSpec) -> None:
    hexes = spec.digest[len("sha256:") :]
    if spec.digest and (len(hexes) != 64 or set(hexes) - set("0123456789abcdef")):
        raise EngineError(f"{spec.name}: {spec.digest} is not a SHA-256 digest: sha256: and 64 hexadecimal digits.")
    if spec.engine == "ollama" and (spec.url or spec.file):
        raise EngineError(
            f"{spec.name}: Ollama gets models from a registry; source.url and source.file are for llama_cpp. Give "
            "source.registry, or leave source out for the public registry."
        )
    if spec.engine == "llama_cpp" and spec.registry:
        raise EngineError(f"{spec.name}: llama.cpp gets models from source.url or source.file, not from a registry.")
    if not spec.unit or "/" in spec.unit or spec.unit.startswith("."):
        raise EngineError(f"{spec.name}: {spec.unit!r} cannot be a unit's name.")


def _check_unique(specs: list[ModelSpec]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for spec in specs:
        key = (spec.engine, spec.unit if spec.engine == "llama_cpp" else spec.name)
        if key in seen:
            raise EngineError(f"{seen[key]} and {spec.name} would be served as one ({key[1]}). Name them apart.")
        seen[key] = spec.name


def total_memory() -> int:
    """Return the node's memory in bytes, 0 if unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemTotal:"))
    except (OSError, StopIteration):
        return 0


def refuse_oversized(looks: list[tuple[ModelSpec, Look]], free: int, memory: int, where: str) -> None:
    """Raise when models that are still to come are larger than the free disk or the memory."""
    coming = {}
    for spec, look in looks:
        if look.held or look.size is None:
            continue
        if memory and look.size > memory:
            raise EngineError(
                f"{spec.name} is {human(look.size)} ({look.size} bytes), larger than the node's memory of "
                f"{human(memory)} ({memory} bytes). Place it on larger nodes (nodes in llm_models), choose a smaller "
                "quantisation, or, if the GPU holds it, set models_check_memory to false."
            )
        coming[look.wanted or spec.name] = (spec.name, max(look.size - look.have, 0))
    needed = sum(size for _name, size in coming.values())
    if needed > free:
        names = ", ".join(name for name, _size in coming.values())
        raise EngineError(
            f"{names} need{'s' if len(coming) == 1 else ''} {human(needed)} ({needed} bytes) more below {where}, where "
            f"{human(free)} ({free} bytes) are free. Make room there, or place fewer models on this node."
        )


class Reconciler:
    """One run over the models of a node."""

    def __init__(
        self,
        specs: list[ModelSpec],
        settings: Settings,
        check_memory: bool = True,
        make: Callable[[str, Settings, str, int], Engine] = make_engine,
    ) -> None:
        self.specs = specs
        self.settings = settings
        self.check_memory = check_memory
        self.report = Report()
        self._make = make
        self._engines: dict[tuple[Any, ...], Engine] = {}

    def engine(self, spec: ModelSpec) -> Engine:
        """Return the engine that serves a model."""
        key = (spec.engine, spec.address, spec.port) if spec.engine == "ollama" else (spec.engine,)
        if key not in self._engines:
            self._engines[key] = self._make(spec.engine, self.settings, spec.address, spec.port)
        return self._engines[key]

    def run(self, ask: bool = False, alone: bool = False) -> Report:
        """Do what is needed, or only say it when settings are read-only; raise ReconcileError with the report so far.

        While files have to come from the controller first, nothing is done but to say which; ask stops there anyway.
        alone: the controller can send nothing.
        """
        spec = None
        try:
            looks = []
            for spec in self.specs:
                look = self.engine(spec).look(spec)
                looks.append((spec, look) if self.settings.replace else self._left_alone(spec, look))
            spec = None
            self.specs = [spec for spec, _look in looks]
            where = self.settings.models_dir
            memory = total_memory() if self.check_memory else 0
            refuse_oversized(looks, free_bytes(where), memory, where)
            self.report.missing = [_missing(spec, look) for spec, look in looks if look.upload]
            if ask or (self.report.missing and not self.settings.read_only):
                return self.report
            for spec, look in looks:
                try:
                    self._one(spec, look)
                except UploadNeededError as error:
                    if alone:
                        raise EngineError(
                            f"{error} In the background the controller cannot send {spec.file} either. Run again "
                            "without async, or have it on one of the other nodes first."
                        ) from error
                    self.report.missing.append(_missing(spec, replace(look, have=self._have(spec))))
            spec = None
            if self.report.missing and not self.settings.read_only:
                return self.report
            self._units()
            for spec, entry in zip(self.specs, self.report.models):
                if spec.state == "loaded" and not self.settings.read_only:
                    self._load(spec, entry)
        except PROBLEMS as error:
            self._units_quietly()
            raise ReconcileError(_message(spec, error), self.report) from error
        return self.report

    def _left_alone(self, spec: ModelSpec, look: Look) -> tuple[ModelSpec, Look]:
        """Take a version that is served for the wanted one, and note that it isn't."""
        if spec.state not in ("present", "loaded") or not look.digest or look.wanted in ("", look.digest):
            return spec, look
        self.report.outdated.append(spec.name)
        note = f"{look.digest} is served and stays; {look.wanted} is wanted"
        return replace(spec, digest=look.digest), Look(look.digest, look.digest, held=True, active=True, note=note)

    def _one(self, spec: ModelSpec, look: Look) -> None:
        engine = self.engine(spec)
        entry: dict[str, Any] = {
            "name": spec.name,
            "engine": spec.engine,
            "state": spec.state,
            "unit": spec.unit if spec.engine == "llama_cpp" else "",
            "path": _path(engine, spec),
            "digest_before": look.digest,
            "digest_after": look.digest,
            "changed": False,
            "bytes": 0,
            "resumed": 0,
            "size": look.size,
            "note": look.note,
            "held": engine.kept(spec),
            "damaged": bool(look.digest) and look.digest == look.wanted and not look.held,
            "holds_before": look.wanted if spec.state == "fetched" and look.held and not look.active else "",
            "holds_after": "",
            "loaded_before": False,
            "loaded_after": False,
        }
        self.report.models.append(entry)
        if spec.state == "absent":
            if look.digest:
                entry.update(changed=True, digest_after="", held=[])
                if not self.settings.read_only:
                    engine.remove(spec)
            return
        if spec.state == "fetched":
            self._hold(spec, look, entry)
            return
        if look.held and look.active:
            return
        if self.settings.read_only:
            entry.update(changed=True, digest_after=look.wanted or "unknown until it is fetched")
            return
        fetched = engine.fetch(spec, look) if not look.held else None
        if fetched:
            entry.update(bytes=fetched.moved, resumed=fetched.resumed)
        entry["changed"] = True
        entry["digest_after"] = engine.activate(spec, look)
        entry["held"] = engine.kept(spec)

    def _hold(self, spec: ModelSpec, look: Look, entry: dict[str, Any]) -> None:
        """Have the wanted version on the node, without serving it."""
        engine = self.engine(spec)
        if not look.held:
            entry["changed"] = True
            if not self.settings.read_only:
                fetched = engine.fetch(spec, look)
                if look.wanted and look.wanted == look.digest:
                    # It is served, and was damaged: what is in memory may be as well.
                    engine.activate(spec, look)
                entry.update(bytes=fetched.moved, resumed=fetched.resumed, held=engine.kept(spec))
        if look.wanted != look.digest:
            entry["holds_after"] = look.wanted or "the version that is offered"

    def _have(self, spec: ModelSpec) -> int:
        engine = self.engine(spec)
        return engine.store.have(spec.digest) if isinstance(engine, LlamaCpp) else 0

    def _units(self) -> None:
        served = [spec for spec in self.specs if spec.state not in ("absent", "fetched")]
        needs = self.engine(served[0]).units(served) if served else {}
        switched = {entry["unit"] for entry in self.report.models if entry["changed"] and entry["state"] != "fetched"}
        lists = {"restart": "restart_units", "start": "start_units", "install": "absent_units"}
        for unit, need in needs.items():
            # In check mode the link was not switched, so that the instance seems right.
            predicted = need or ("restart" if unit in switched else "")
            if predicted:
                getattr(self.report, lists[predicted]).append(unit)

    def _units_quietly(self) -> None:
        """After a failure: what was switched before it still wants its restart."""
        if not self.report.restart_units and any(entry["changed"] for entry in self.report.models):
            try:
                self._units()
            except PROBLEMS as error:
                self.report.warnings.append(f"The instances' state is unknown: {error}")

    def _load(self, spec: ModelSpec, entry: dict[str, Any]) -> None:
        if spec.unit in self.report.restart_units and spec.engine == "llama_cpp":
            raise EngineError(
                f"llama-cpp@{spec.unit}.service still serves what its link named before. Restart it, then ask again."
            )
        if self.engine(spec).load(spec):
            entry.update(changed=True, loaded_after=True)


def _path(engine: Engine, spec: ModelSpec) -> str:
    return engine.store.link(spec.unit) if isinstance(engine, LlamaCpp) else ""


def _missing(spec: ModelSpec, look: Look) -> dict[str, Any]:
    return {"name": spec.name, "digest": look.wanted, "have": look.have, "size": look.size}


def _message(spec: ModelSpec | None, error: BaseException) -> str:
    text = str(error)
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        text = f"The disk is full ({error}). Make room; the next run goes on from what is there."
    return text if spec is None or spec.name in text else f"{spec.name}: {text}"
