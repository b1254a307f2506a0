# Copyright: (c) 2026, llm.cluster contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from ansible_collections.llm.cluster.plugins.module_utils import _lock as lock

A, B, C = ("sha256:" + letter * 64 for letter in "abc")


def entry(digest: str = A, size: int | None = 7, **source: str) -> dict[str, Any]:
    return {"digest": digest, "size": size, "source": source}


TEXT = f"""\
# Head, one.

---
# Head, two.
models:  # beside models
  # above gemma
  gemma3:270m:  # beside gemma

    # above the engine
    llama_cpp:  # beside the engine
      # above the digest
      digest: {A}  # checked by Anna
      size: 7
      source: {{file: a.gguf}} # beside the source
      # under the engine
      # under the engine, two
    ollama:
      digest: {B}
      size: 9
      source: {{registry: gemma3:270m}}
    # under gemma
  # above qwen
  qwen:
    ollama: {{digest: {C}, size: 3, source: {{registry: qwen}}}}  # in one line
# Tail.
"""
LOCK = {
    "gemma3:270m": {"llama_cpp": entry(A, 7, file="a.gguf"), "ollama": entry(B, 9, registry="gemma3:270m")},
    "qwen": {"ollama": entry(C, 3, registry="qwen")},
}


def test_reading() -> None:
    assert lock.read_lock(TEXT) == LOCK
    assert lock.read_lock("") == lock.read_lock("# nothing yet\n") == lock.read_lock("models:\n") == {}
    assert lock.locked(LOCK, "qwen", "ollama") == LOCK["qwen"]["ollama"]
    assert lock.locked(LOCK, "qwen", "llama_cpp") == lock.locked(LOCK, "none", "ollama") == {}


def test_a_new_file_is_sorted_and_says_what_it_is() -> None:
    text = lock.write_lock(
        "", {"b": {"ollama": entry(B, registry="b")}, "a": {"ollama": entry(), "llama_cpp": entry(C)}}
    )
    assert text == lock.HEADER + (
        f"models:\n  a:\n    llama_cpp:\n      digest: {C}\n      size: 7\n"
        f"    ollama:\n      digest: {A}\n      size: 7\n"
        f"  b:\n    ollama:\n      digest: {B}\n      size: 7\n      source: {{registry: b}}\n"
    )
    assert lock.read_lock(lock.write_lock("", {})) == {}


def test_what_is_right_stays_to_the_byte() -> None:
    assert lock.write_lock(TEXT, LOCK) == TEXT


def test_a_new_digest_is_one_line_of_diff() -> None:
    plain = lock.write_lock("", LOCK)
    wanted = copy.deepcopy(LOCK)
    wanted["qwen"]["ollama"]["digest"] = A
    assert lock.write_lock(plain, wanted) == plain.replace(C, A)


def test_comments_stay_and_move_with_their_entry() -> None:
    wanted = {**copy.deepcopy(LOCK), "alpha": {"ollama": entry()}, "llama": {"ollama": entry()}}
    wanted["gemma3:270m"]["llama_cpp"] = entry(C, 8, file="a.gguf")
    text = lock.write_lock(TEXT, wanted)
    lines = text.split("\n")
    assert lines[:8] == [*TEXT.split("\n")[:5], "  alpha:", "    ollama:", f"      digest: {A}"]
    assert f"      # above the digest\n      digest: {C}  # checked by Anna\n      size: 8\n" in text
    assert "      # under the engine\n      # under the engine, two\n    ollama:\n" in text
    assert "    # under gemma\n  llama:\n" in text
    assert "  # above qwen\n  qwen:\n    ollama:  # in one line\n" in text
    assert text.endswith("source: {registry: qwen}\n# Tail.\n")
    assert lock.read_lock(text) == wanted
    assert lock.write_lock(text, wanted) == text


def test_the_comments_of_what_goes_go() -> None:
    text = lock.write_lock(TEXT, {"qwen": LOCK["qwen"]})
    assert "gemma" not in text
    assert "engine" not in text
    assert "# above qwen\n  qwen:" in text
    assert text.endswith("# Tail.\n")


Path = tuple[str, ...]


def random_lock(chance: random.Random) -> dict[str, Any]:
    names = chance.sample(["a", "b:1", "org/c:2b", "d.e", "f-g", "yes", "1:30"], chance.randint(0, 6))
    engines = [chance.sample(["llama_cpp", "ollama"], chance.randint(1, 2)) for _name in names]
    sources = [{}, {"url": "u?a=b, c"}]
    return {
        name: {
            engine: entry(chance.choice([A, B]), chance.choice([None, 5]), **chance.choice(sources)) for engine in some
        }
        for name, some in zip(names, engines, strict=True)
    }


def with_comments(text: str, chance: random.Random) -> tuple[str, dict[str, Path]]:
    """Put comments above and beside keys, and empty lines; return the text and what each comment belongs to."""
    lines, comments = text.rstrip("\n").split("\n")[:3], {}
    path: Path = ()
    for number, line in enumerate(text.rstrip("\n").split("\n")[3:]):
        depth = (len(line) - len(line.lstrip())) // 2
        path = (*path[: depth - 1], line.split(": ")[0].strip().rstrip(":").strip('"'))
        above, beside = (f"# {where} {number}." if chance.random() < 0.4 else "" for where in ("above", "beside"))
        lines += [""] * (chance.random() < 0.1) + ["  " * depth + above] * bool(above)
        lines.append(f"{line} {beside}" if beside else line)
        comments.update({comment: path for comment in (above, beside) if comment})
    return "\n".join(lines) + "\n", comments


def edited(lock: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    after = {
        name: {engine: {**one, "digest": chance.choice([A, B, C])} for engine, one in engines.items()}
        for name, engines in lock.items()
        if chance.random() < 0.7
    }
    for engines in after.values():
        if len(engines) == 2 and chance.random() < 0.3:
            del engines["ollama"]
    return {**after, **({"new": {"ollama": entry()}} if chance.random() < 0.5 else {})}


def test_random_edits_lose_no_comment_of_what_stays() -> None:
    chance = random.Random(4)
    kept = 0
    for _round in range(300):
        before = random_lock(chance)
        text, comments = with_comments(lock.write_lock("", before), chance)
        assert lock.read_lock(text) == before
        assert lock.write_lock(text, before) == text
        after = edited(before, chance)
        written = lock.write_lock(text, after)
        assert lock.read_lock(written) == after
        assert lock.write_lock(written, after) == written
        for comment, path in comments.items():
            stays: Any = after
            for part in path:
                stays = (stays or {}).get(part)
            if stays:
                assert written.count(comment + "\n") == 1, (comment, path, text, written)
                kept += 1
    assert kept > 1000


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (TEXT.replace("models:", "<<<<<<< HEAD\nmodels:"), 5, "two versions of the file conflict"),
        (TEXT.replace("  qwen:", "=======\n  qwen:"), 23, "Resolve that in your version control"),
        (TEXT.replace("  qwen:", "  gemma3:270m:"), 23, "gemma3:270m is there twice"),
        (TEXT.replace("    ollama:\n", "    llama_cpp:\n"), 17, "llama_cpp is there twice"),
        (TEXT.replace(A, "sha256:123"), 12, "gemma3:270m, llama_cpp: the digest must be sha256: and 64"),
        (TEXT.replace(A, A.upper()), 12, "in lower case"),
        (TEXT.replace(f"digest: {A}", "digset: x"), 12, "digset is not known here; there is digest, size, source"),
        (TEXT.replace("size: 9", "size: many"), 19, "number of bytes"),
        (TEXT.replace("size: 9", "size: -1"), 19, "number of bytes"),
        (TEXT.replace("file: a.gguf", "flie: a.gguf"), 14, "one of url, file, registry"),
        (TEXT.replace("    ollama:\n", "    vllm:\n"), 17, "gemma3:270m: vllm is not known here; there is ollama"),
        (TEXT.replace("models:", "model:"), 5, "the file: model is not known here"),
        ("models: [a]\n", 1, "models must be a mapping"),
        ("- a\n", 1, "the file must be a mapping"),
        ("models:\n  a: b\n", 2, "a must be a mapping"),
        ("models:\n  a:\n   b: c\n  d", 4, "no YAML"),
        ("models:\n  a: {ollama: \0}\n", 1, "no YAML"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, line: int, words: str) -> None:
    for attempt in (lambda: lock.read_lock(text), lambda: lock.write_lock(text, {})):
        with pytest.raises(lock.LockError) as caught:
            attempt()
        assert (caught.value.line, words in str(caught.value)) == (line, True), str(caught.value)
