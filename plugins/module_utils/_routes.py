# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes: which of them make sense for these peers, and which peers each allows and prefers.

Pure functions. The balancer has the same rules in routes.lua; tests/fixtures/routes.json is what both are tested with.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

ROUTE_FIELDS = ("name", "when", "require", "prefer", "peers", "model", "fallback")
PATTERNS = ("model", "path", "key")
NUMBERS = ("prompt_chars_over", "prompt_chars_under", "messages_over", "messages_under")
WHEN_FIELDS = (*PATTERNS, *NUMBERS, "stream")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}")
NUMBER = re.compile(r"-?\d+\.?\d*")
ORDERS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
COMPARISON = re.compile(r"\s*([<>!=]+)\s*(.*?)\s*", re.DOTALL)
MOST_ROUTES = 500
# The paths of inference, as surface.lua has them, and the engine that alone speaks them.
PATHS = {
    "/v1/chat/completions": None,
    "/v1/completions": None,
    "/v1/embeddings": None,
    "/v1/rerank": None,
    "/v1/responses": None,
    "/v1/messages": None,
    "/v1/messages/count_tokens": None,
    "/api/chat": "ollama",
    "/api/generate": "ollama",
    "/api/embed": "ollama",
    "/api/embeddings": "ollama",
    "/api/show": "ollama",
}

if TYPE_CHECKING:  # Python 3.8 can't evaluate them
    Peer = Mapping[str, Any]
    Route = Mapping[str, Any]


def glob_matches(glob: str, text: str) -> bool:
    """Whether a glob describes a text: ``*`` stands for anything, nothing else is special."""
    return re.fullmatch(".*".join(re.escape(part) for part in glob.split("*")), text, re.DOTALL) is not None


def is_number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def as_number(value: Any) -> float | None:
    """Return a number that may have come as text, else None."""
    if is_number(value) or (isinstance(value, str) and NUMBER.fullmatch(value)):
        return float(value)
    return None


def as_text(value: Any) -> str:
    """Return a label's value or a plain condition as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def equal(value: Any, wanted: Any) -> bool:
    """Whether two values are the same: as numbers where both are, else as texts."""
    one, other = as_number(value), as_number(wanted)
    if one is not None and other is not None:
        return one == other
    return as_text(value) == as_text(wanted)


def comparison(condition: Any) -> tuple[str, Any]:
    """Return a condition as sign and operand; a plain value means equality."""
    found = COMPARISON.fullmatch(condition) if isinstance(condition, str) else None
    return (found.group(1), found.group(2)) if found else ("=", condition)


def is_condition(condition: Any) -> bool:
    """Whether this can be asked of a label: a comparison, a plain value, or a list of such."""
    if isinstance(condition, (list, tuple)):
        return bool(condition) and not any(isinstance(one, (list, tuple)) or not is_condition(one) for one in condition)
    if not isinstance(condition, (str, int, float)):
        return False
    sign, operand = comparison(condition)
    return operand != "" and (sign in ("=", "!=") or (sign in ORDERS and as_number(operand) is not None))


def holds(condition: Any, labels: Mapping[str, Any], name: str) -> bool:
    """Whether a peer's label meets a condition. One that is missing meets nothing but ``!=``.

    Of a label that is a list one element must meet it; of a list of conditions one must be met.
    """
    if isinstance(condition, (list, tuple)):
        return any(holds(one, labels, name) for one in condition)
    sign, operand = comparison(condition)
    values = values_of(labels, name)
    if sign not in ORDERS:
        return any(equal(one, operand) for one in values) == (sign == "=")
    bound = as_number(operand)
    numbers = [number for number in map(as_number, values) if number is not None]
    return bound is not None and any(ORDERS[sign](number, bound) for number in numbers)


def meets(conditions: Mapping[str, Any] | None, peer: Peer) -> bool:
    """Whether a peer's labels meet all conditions.

    A label that could not be read (``unknown_labels``) gets the benefit of the doubt: nothing is refused for it.
    """
    unknown = peer.get("unknown_labels") or ()
    labels = peer.get("labels") or {}
    return all(name in unknown or holds(wanted, labels, name) for name, wanted in (conditions or {}).items())


def forms(model: str) -> tuple[str, str]:
    """Return a model's name with and without ``:latest``, which are one."""
    short = model[: -len(":latest")] if model.endswith(":latest") else model
    return short, short + ":latest"


def serves(peer: Peer, patterns: Iterable[str] | None) -> bool:
    """Whether a peer serves a model that one of the patterns describes; None describes all."""
    if patterns is None:
        return True
    names = [form for model in peer["models"] for form in forms(model)]
    return any(glob_matches(pattern, name) for pattern in patterns for name in names)


def patterns_of(value: Any) -> list[str] | None:
    """Return one pattern or a list of patterns as a list; None if there is none."""
    return [value] if isinstance(value, str) else list(value) if value else None


def engines_for(route: Route) -> set[str | None]:
    """Return the engines that speak the paths a route is for, None standing for any; empty if there is no such path."""
    wanted = patterns_of((route.get("when") or {}).get("path")) or ["*"]
    return {engine for path, engine in PATHS.items() if any(glob_matches(pattern, path) for pattern in wanted)}


def allowed(route: Route, peers: Iterable[Peer], model: str | None = None) -> list[Peer]:
    """Return the peers that a route allows for a model, by default for any of those that the route is for."""
    models = patterns_of(model or route.get("model") or (route.get("when") or {}).get("model"))
    named = route.get("peers")
    engines = engines_for(route)
    return [
        peer
        for peer in peers
        if (not named or peer["name"] in named or peer["node"] in named)
        and meets(route.get("require"), peer)
        and serves(peer, models)
        and (None in engines or peer["engine"] in engines)
    ]


def preferred(route: Route, peers: Iterable[Peer], model: str | None = None) -> list[Peer]:
    """Return those of the allowed peers that the route prefers; without ``prefer`` there are none."""
    return [peer for peer in allowed(route, peers, model) if route.get("prefer") and meets(route["prefer"], peer)]


def problems(routes: Any, peers: Sequence[Peer]) -> list[str]:
    """Return what is wrong with routes over these peers, a line each that begins with ``routes[NAME]``.

    :param peers: as in a routing table; ``unknown_labels`` may name labels that could not be read
    """
    if not isinstance(routes, (list, tuple)):
        return ["routes: must be a list"]
    if len(routes) > MOST_ROUTES:
        return [f"routes: there are {len(routes)}, more than {MOST_ROUTES}"]
    found: list[str] = []
    names: list[str] = []
    for position, route in enumerate(routes, 1):
        name = route.get("name") if isinstance(route, Mapping) else None
        where = f"routes[{name if isinstance(name, str) and name else position}]"
        wrong = form_problems(route) or fit_problems(route, peers)
        if isinstance(name, str) and names.count(name) == 1:
            wrong.append(f".name: '{name}' is used by two routes")
        names.append(str(name))
        found += [where + problem for problem in wrong]
    return found


def form_problems(route: Any) -> list[str]:
    """Return what is wrong with a route whatever the peers are."""
    if not isinstance(route, Mapping):
        return [": must be an object with a name"]
    found = [
        f": unknown field '{field}'; there are {', '.join(ROUTE_FIELDS)}" for field in strange(route, ROUTE_FIELDS)
    ]
    name = route.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        found.append(f".name: must be a name of letters, digits and . _ - / : @ +, not {name!r}")
    when = route.get("when")
    if isinstance(when, Mapping):
        found += when_problems(when)
    elif when is not None:
        found.append(".when: must be an object")
    for effect in ("require", "prefer"):
        found += [f".{effect}{problem}" for problem in condition_problems(route.get(effect))]
    if route.get("peers") is not None and not is_texts(route["peers"]):
        found.append(".peers: must be a list of at least one name of a peer or node")
    found += [
        f".{field}: must be the name of a model"
        for field in ("model", "fallback")
        if route.get(field) is not None and not is_text(route[field])
    ]
    return found


def strange(given: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return the fields that are not known, sorted."""
    return sorted(str(field) for field in given if field not in tuple(known))


def is_text(value: Any) -> bool:
    """Whether a value is a text that isn't empty."""
    return isinstance(value, str) and value != ""


def is_texts(value: Any) -> bool:
    """Whether a value is a list of at least one text."""
    return isinstance(value, (list, tuple)) and bool(value) and all(is_text(one) for one in value)


def when_problems(when: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the conditions on a request."""
    found = [
        f".when: unknown field '{field}'; there are {', '.join(WHEN_FIELDS)}" for field in strange(when, WHEN_FIELDS)
    ]
    given = {field: value for field, value in when.items() if value is not None}
    found += [
        f".when.{field}: must be a text in which * stands for anything, or a list of such"
        for field in PATTERNS
        if field in given and not is_text(given[field]) and not is_texts(given[field])
    ]
    found += [
        f".when.{field}: must be a number from 0 up"
        for field in NUMBERS
        if field in given and not (is_number(given[field]) and given[field] >= 0)
    ]
    if "stream" in given and not isinstance(given["stream"], bool):
        found.append(".when.stream: must be true or false")
    for what in ("prompt_chars", "messages"):
        over: Any = given.get(what + "_over")
        under: Any = given.get(what + "_under")
        # They are counted in whole numbers, and neither bound is part of what it bounds.
        if is_number(over) and is_number(under) and math.floor(over) + 1 >= under:
            found.append(f".when: no number is over {over} and under {under} ({what})")
    return found


def condition_problems(conditions: Any) -> list[str]:
    """Return what is wrong with the conditions on labels."""
    if conditions is None:
        return []
    if not isinstance(conditions, Mapping):
        return [": must be an object of labels and conditions"]
    return [
        f".{label}: must be a value, a comparison such as '>24', or a list of such, not {condition!r}"
        for label, condition in conditions.items()
        if not is_condition(condition)
    ]


def fit_problems(route: Route, peers: Sequence[Peer]) -> list[str]:
    """Return what is wrong with a well-formed route for just these peers."""
    names = {name for peer in peers for name in (peer["name"], peer["node"])}
    found = [f".peers: there is no peer or node '{name}'" for name in route.get("peers") or [] if name not in names]
    served = sorted({model for peer in peers for model in peer["models"]})
    found += [
        f".{field}: no peer serves '{route[field]}' (served: {', '.join(served)})"
        for field in ("model", "fallback")
        if route.get(field) and not any(form in served for form in forms(route[field]))
    ]
    if not engines_for(route):
        found.append(".when.path: the balancer answers requests for inference on no such path")
    if not found and not allowed(route, peers):
        found.append(": can match no peer: " + why_none(route, peers))
    return found


def why_none(route: Route, peers: Sequence[Peer]) -> str:
    """Return why a route allows no peer: the part of it that does so alone, or else all parts together."""
    models = patterns_of(route.get("model") or (route.get("when") or {}).get("model"))
    model = f"a model named {' or '.join(models)}" if models else ""
    if not any(serves(peer, models) for peer in peers):
        return f"none serves {model}"
    required = route.get("require") or {}
    for label, wanted in required.items():
        if not any(meets({label: wanted}, peer) for peer in peers):
            there = {as_text(value) for peer in peers for value in values_of(peer.get("labels") or {}, label)}
            said = f"there is {', '.join(sorted(there))}" if there else "no peer has that label"
            return f"none has {label} {as_words(wanted)} ({said})"
    parts = [f"{label} {as_words(wanted)}" for label, wanted in required.items()]
    engines = sorted(engine for engine in engines_for(route) if engine) if None not in engines_for(route) else []
    parts += [f"engine {' or '.join(engines)} for this path"] if engines else []
    parts += [f"a name in peers ({', '.join(route['peers'])})"] if route.get("peers") else []
    return f"none has at once {', '.join([*parts, model] if model else parts)}"


def values_of(labels: Mapping[str, Any], name: str) -> list[Any]:
    """Return the values of a label, none if it is missing."""
    value = labels.get(name)
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def as_words(condition: Any) -> str:
    """Return a condition for a sentence."""
    return " or ".join(map(as_words, condition)) if isinstance(condition, (list, tuple)) else as_text(condition)
