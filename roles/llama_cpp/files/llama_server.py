# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""llama-server without a compiler: the server of the xllamacpp wheel behind llama-server's own flags and environment.

Takes the flags of llama.cpp's `llama-server` that matter for serving a model, and the LLAMA_ARG_* variables that go
with them, so that a unit written for the one runs the other. A flag wins over its variable, as it does there.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Iterable, Mapping, NoReturn, Sequence

TRUE = ("1", "true", "on", "enabled", "yes")
FALSE = ("0", "false", "off", "disabled", "no")


def to_bool(text: str) -> bool:
    """Read a switch as llama.cpp does."""
    if text.lower() in TRUE:
        return True
    if text.lower() in FALSE:
        return False
    raise ValueError(f"{text!r} is neither on nor off")


def to_list(text: str) -> list[str]:
    """Split at commas and drop what is empty."""
    return [part.strip() for part in text.split(",") if part.strip()]


def to_name_set(text: str) -> set[str]:
    """Read a list of names without order."""
    return set(to_list(text))


def to_file_text(path: str) -> str:
    """Return what the file holds."""
    return Path(path).read_text(encoding="utf-8")


def to_file_lines(path: str) -> list[str]:
    """Return the lines of the file that are not empty."""
    return [line.strip() for line in to_file_text(path).splitlines() if line.strip()]


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Reads one of the members of an enumeration of xllamacpp by llama-server's word for it."""

    enum: str
    prefix: str
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, text: str) -> EnumValue:
        word = text.lower()
        return EnumValue(self.enum, self.prefix + self.words.get(word, word).replace("-", "_").upper(), text)


@dataclasses.dataclass(frozen=True)
class EnumValue:
    """A member of an enumeration that is looked up once the library is loaded."""

    enum: str
    member: str
    text: str

    def of(self, library: Any) -> Any:
        try:
            return getattr(getattr(library, self.enum), self.member)
        except AttributeError:
            raise ValueError(f"{self.text!r} is not known to this version of the engine") from None


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag of llama-server, its variable, and the parameter of the library that it sets."""

    flags: tuple[str, ...]
    env: str
    target: str
    read: Callable[[str], Any]
    negative: tuple[str, ...] = ()

    @property
    def is_switch(self) -> bool:
        return self.read is to_bool


KV_TYPE = OneOf("ggml_type", "GGML_TYPE_")
SWITCH_WORDS = dict.fromkeys(TRUE, "enabled") | dict.fromkeys(FALSE, "disabled")

OPTIONS = (
    # What is served, and where
    Option(("-m", "--model"), "LLAMA_ARG_MODEL", "model.path", str),
    Option(("-a", "--alias"), "LLAMA_ARG_ALIAS", "model_alias", to_name_set),
    Option(("--tags",), "LLAMA_ARG_TAGS", "model_tags", to_name_set),
    Option(("-mm", "--mmproj"), "LLAMA_ARG_MMPROJ", "mmproj.path", str),
    Option(("--host",), "LLAMA_ARG_HOST", "hostnames", to_list),
    Option(("--port",), "LLAMA_ARG_PORT", "port", int),
    Option(("--api-prefix",), "LLAMA_ARG_API_PREFIX", "api_prefix", str),
    Option(("--api-key",), "LLAMA_API_KEY", "api_keys", to_list),
    Option(("--api-key-file",), "LLAMA_ARG_API_KEY_FILE", "api_keys", to_file_lines),
    Option(("--ssl-key-file",), "LLAMA_ARG_SSL_KEY_FILE", "ssl_file_key", str),
    Option(("--ssl-cert-file",), "LLAMA_ARG_SSL_CERT_FILE", "ssl_file_cert", str),
    Option(("--cors-origins",), "LLAMA_ARG_CORS_ORIGINS", "cors_origins", str),
    # Endpoints
    Option(("--metrics",), "LLAMA_ARG_ENDPOINT_METRICS", "endpoint_metrics", to_bool),
    Option(("--slots",), "LLAMA_ARG_ENDPOINT_SLOTS", "endpoint_slots", to_bool, ("--no-slots",)),
    Option(("--props",), "LLAMA_ARG_ENDPOINT_PROPS", "endpoint_props", to_bool),
    Option(("--slot-save-path",), "LLAMA_ARG_SLOT_SAVE_PATH", "slot_save_path", str),
    Option(("--ui", "--webui"), "LLAMA_ARG_UI", "ui", to_bool, ("--no-ui", "--no-webui")),
    Option(("--embedding", "--embeddings"), "LLAMA_ARG_EMBEDDINGS", "embedding", to_bool),
    Option(("--pooling",), "LLAMA_ARG_POOLING", "pooling_type", OneOf("llama_pooling_type", "LLAMA_POOLING_TYPE_")),
    # Slots, context and cache
    Option(("-np", "--parallel"), "LLAMA_ARG_N_PARALLEL", "n_parallel", int),
    Option(("-c", "--ctx-size"), "LLAMA_ARG_CTX_SIZE", "n_ctx", int),
    Option(("-n", "--predict", "--n-predict"), "LLAMA_ARG_N_PREDICT", "n_predict", int),
    Option(("--keep",), "", "n_keep", int),
    Option(("-b", "--batch-size"), "LLAMA_ARG_BATCH", "n_batch", int),
    Option(("-ub", "--ubatch-size"), "LLAMA_ARG_UBATCH", "n_ubatch", int),
    Option(("-kvu", "--kv-unified"), "LLAMA_ARG_KV_UNIFIED", "kv_unified", to_bool, ("-no-kvu", "--no-kv-unified")),
    Option(
        ("-cb", "--cont-batching"),
        "LLAMA_ARG_CONT_BATCHING",
        "cont_batching",
        to_bool,
        ("-nocb", "--no-cont-batching"),
    ),
    Option(("--context-shift",), "LLAMA_ARG_CONTEXT_SHIFT", "ctx_shift", to_bool, ("--no-context-shift",)),
    Option(("--cache-prompt",), "LLAMA_ARG_CACHE_PROMPT", "cache_prompt", to_bool, ("--no-cache-prompt",)),
    Option(("--cache-reuse",), "LLAMA_ARG_CACHE_REUSE", "n_cache_reuse", int),
    Option(("-cram", "--cache-ram"), "LLAMA_ARG_CACHE_RAM", "cache_ram_mib", int),
    Option(("-ctk", "--cache-type-k"), "LLAMA_ARG_CACHE_TYPE_K", "cache_type_k", KV_TYPE),
    Option(("-ctv", "--cache-type-v"), "LLAMA_ARG_CACHE_TYPE_V", "cache_type_v", KV_TYPE),
    Option(("-ctxcp", "--ctx-checkpoints", "--swa-checkpoints"), "LLAMA_ARG_CTX_CHECKPOINTS", "n_ctx_checkpoints", int),
    Option(("--swa-full",), "LLAMA_ARG_SWA_FULL", "swa_full", to_bool),
    Option(("-sps", "--slot-prompt-similarity"), "", "slot_prompt_similarity", float),
    Option(
        ("-fa", "--flash-attn"),
        "LLAMA_ARG_FLASH_ATTN",
        "flash_attn_type",
        OneOf("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_", SWITCH_WORDS),
    ),
    # Hardware
    Option(("-t", "--threads"), "LLAMA_ARG_THREADS", "cpuparams.n_threads", int),
    Option(("-tb", "--threads-batch"), "", "cpuparams_batch.n_threads", int),
    Option(("--threads-http",), "LLAMA_ARG_THREADS_HTTP", "n_threads_http", int),
    Option(("--numa",), "LLAMA_ARG_NUMA", "numa", OneOf("ggml_numa_strategy", "GGML_NUMA_STRATEGY_")),
    Option(
        ("-lm", "--load-mode"),
        "LLAMA_ARG_LOAD_MODE",
        "load_mode",
        OneOf("llama_load_mode", "LLAMA_LOAD_MODE_", {"mmap+mlock": "mmap_mlock", "dio": "direct_io"}),
    ),
    Option(("-ngl", "--gpu-layers", "--n-gpu-layers"), "LLAMA_ARG_N_GPU_LAYERS", "n_gpu_layers", int),
    Option(
        ("-sm", "--split-mode"), "LLAMA_ARG_SPLIT_MODE", "split_mode", OneOf("llama_split_mode", "LLAMA_SPLIT_MODE_")
    ),
    Option(("-mg", "--main-gpu"), "LLAMA_ARG_MAIN_GPU", "main_gpu", int),
    Option(("--warmup",), "LLAMA_ARG_WARMUP", "warmup", to_bool, ("--no-warmup",)),
    # Prompts and reasoning
    Option(("--jinja",), "LLAMA_ARG_JINJA", "use_jinja", to_bool, ("--no-jinja",)),
    Option(("--chat-template",), "LLAMA_ARG_CHAT_TEMPLATE", "chat_template", str),
    Option(("--chat-template-file",), "LLAMA_ARG_CHAT_TEMPLATE_FILE", "chat_template", to_file_text),
    Option(
        ("--reasoning-format",),
        "LLAMA_ARG_THINK",
        "reasoning_format",
        OneOf("common_reasoning_format", "COMMON_REASONING_FORMAT_"),
    ),
    # Sampling that requests may override
    Option(("-s", "--seed"), "", "sampling.seed", int),
    Option(("--temp", "--temperature"), "LLAMA_ARG_TEMPERATURE", "sampling.temp", float),
    Option(("--top-k",), "LLAMA_ARG_TOP_K", "sampling.top_k", int),
    Option(("--top-p",), "LLAMA_ARG_TOP_P", "sampling.top_p", float),
    Option(("--min-p",), "LLAMA_ARG_MIN_P", "sampling.min_p", float),
    # Long contexts
    Option(
        ("--rope-scaling",),
        "LLAMA_ARG_ROPE_SCALING_TYPE",
        "rope_scaling_type",
        OneOf("llama_rope_scaling_type", "LLAMA_ROPE_SCALING_TYPE_"),
    ),
    Option(("--rope-freq-base",), "LLAMA_ARG_ROPE_FREQ_BASE", "rope_freq_base", float),
    Option(("--rope-freq-scale",), "LLAMA_ARG_ROPE_FREQ_SCALE", "rope_freq_scale", float),
    Option(("--yarn-orig-ctx",), "LLAMA_ARG_YARN_ORIG_CTX", "yarn_orig_ctx", int),
    # The process
    Option(("-to", "--timeout"), "LLAMA_ARG_TIMEOUT", "timeout_read timeout_write", int),
    Option(("--offline",), "LLAMA_ARG_OFFLINE", "offline", to_bool),
    Option(("-lv", "--verbosity", "--log-verbosity"), "LLAMA_ARG_LOG_VERBOSITY", "verbosity", int),
)

# Older names of variables.
FORMER_ENV = {"LLAMA_ARG_WEBUI": "LLAMA_ARG_UI"}
# llama-server's own defaults where the library has others.
DEFAULTS = {"LLAMA_ARG_HOST": "127.0.0.1", "LLAMA_ARG_PORT": "8080"}


def parser() -> argparse.ArgumentParser:
    """Return a parser of the flags, with every value still text."""
    result = argparse.ArgumentParser(
        prog="llama-server",
        description="Serve a GGUF model over HTTP with the engine of the xllamacpp wheel.",
        epilog="Every option can also be given in the environment, by the variable named beside it.",
        allow_abbrev=False,
    )
    result.add_argument("--version", action="store_true", help="say the engine's version and stop")
    for number, option in enumerate(OPTIONS):
        destination = f"option_{number}"
        if option.is_switch:
            result.add_argument(
                *option.flags, dest=destination, action="store_const", const="on", help=option.env or None
            )
            if option.negative:
                result.add_argument(
                    *option.negative, dest=destination, action="store_const", const="off", help=argparse.SUPPRESS
                )
        else:
            result.add_argument(*option.flags, dest=destination, metavar="VALUE", help=option.env or None)
    return result


def chosen(args: argparse.Namespace, environ: Mapping[str, str]) -> list[tuple[Option, Any]]:
    """Return the options that are given, by flag or else by variable, with their values read."""
    former = {new: environ[old] for old, new in FORMER_ENV.items() if old in environ}
    result = []
    for number, option in enumerate(OPTIONS):
        text, source = getattr(args, f"option_{number}"), option.flags[-1]
        if text is None and option.env:
            text, source = environ.get(option.env, former.get(option.env)), option.env
        if text is None:
            continue
        try:
            result.append((option, option.read(text)))
        except (OSError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from error
    return result


def unknown_variables(environ: Iterable[str]) -> list[str]:
    """Return the variables that llama-server may know and this launcher does not."""
    known = {option.env for option in OPTIONS} | set(FORMER_ENV)
    return sorted(name for name in environ if name.startswith("LLAMA_ARG_") and name not in known)


def apply(params: Any, options: Iterable[tuple[Option, Any]], library: Any) -> None:
    """Set the values on the library's parameters."""
    for option, given in options:
        try:
            value = given.of(library) if isinstance(given, EnumValue) else given
            for target in option.target.split():
                *path, name = target.split(".")
                owner = params
                for step in path:
                    owner = getattr(owner, step)
                if name == "hostnames" and not hasattr(owner, name):  # before October 2026 it was one
                    name, value = "hostname", value[0]
                getattr(owner, name)  # an extension type would refuse, but a plain one would take a wrong name
                setattr(owner, name, value)
        except AttributeError:
            raise ValueError(f"{option.flags[-1]} is not known to this version of the engine") from None
        except (OverflowError, TypeError, ValueError) as error:
            raise ValueError(f"{option.flags[-1]}: {error}") from error


def fail(message: object) -> NoReturn:
    """Say what is wrong with the settings and stop; the status says that trying again won't help."""
    print(f"llama-server: {message}", file=sys.stderr)
    raise SystemExit(2)


def serve(params: Any, library: Any) -> NoReturn:
    """Load the model, then serve until a signal ends the process."""
    try:
        _server = library.Server(params)  # lives as long as its name
    except Exception as error:  # the library raises bare ones
        print(f"llama-server: the engine did not start: {error}", file=sys.stderr)
        raise SystemExit(1) from error
    # The library's own handler waits for work in hand without an end. Nothing is left to be saved, so die at once;
    # the unit lets requests finish before it sends the signal.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    while True:
        signal.pause()


def main(argv: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run llama-server."""
    args = parser().parse_args(argv)
    xllamacpp = importlib.import_module("xllamacpp")  # not before: --help works without it

    params = xllamacpp.CommonParams()
    try:
        apply(params, chosen(args, {**DEFAULTS, **environ}), xllamacpp)
    except ValueError as error:
        fail(error)
    if args.version:  # only now: a version that doesn't take the settings is to be found out before it serves
        print(f"llama-server (xllamacpp {xllamacpp.__version__})")
        return
    if not params.model.path:
        fail("give a model with --model or LLAMA_ARG_MODEL")
    for name in unknown_variables(environ):
        print(f"llama-server: {name} is ignored: this launcher does not know it", file=sys.stderr)
    serve(params, xllamacpp)


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)
