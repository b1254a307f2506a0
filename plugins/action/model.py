# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's half of the module llm.cluster.model: sends models that are files on the controller.

The module says which files the node lacks and how much of each is there already. Only what is missing is sent, in
chunks that the module checks and appends, so that a transfer that breaks goes on from its last whole chunk.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import json
import os
import tempfile
import time
from typing import Any, Iterator

from ansible import constants
from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible.utils.vars import merge_hash
from ansible_collections.llm.cluster.plugins.module_utils._fetch import BLOCK, human, sha256_file

display = Display()

CHUNK_AT_LEAST = 64 * 1024 * 1024
CHUNK_AT_MOST = 512 * 1024 * 1024
TRIES = 3


def chunk_size(total: int) -> int:
    """Return the size of the pieces of a file: about a hundred of them, none so large that losing one hurts."""
    return min(max(total // 100, CHUNK_AT_LEAST), CHUNK_AT_MOST)


def known_digest(path: str, cache_dir: str) -> str:
    """Return a file's digest, which is computed once, also when many hosts' processes ask at the same time."""
    stat = os.stat(path)
    identity = {"path": path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "inode": stat.st_ino}
    note = os.path.join(cache_dir, hashlib.sha256(path.encode()).hexdigest()[:32] + ".json")
    with _locked(note) as writable:
        with contextlib.suppress(OSError, ValueError):
            with open(note, encoding="utf-8") as stream:
                noted = json.load(stream)
            if noted["identity"] == identity:
                return str(noted["digest"])
        digest = sha256_file(path)
        if writable:
            with contextlib.suppress(OSError):
                with open(note + ".new", "w", encoding="utf-8") as stream:
                    json.dump({"identity": identity, "digest": digest}, stream)
                os.rename(note + ".new", note)
        return digest


@contextlib.contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Hold the lock of a cached digest; without a writable cache go on without one."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        stream = open(path + ".lock", "a", encoding="utf-8")  # noqa: SIM115 (closed below; may fail on its own)
    except OSError:
        yield False
        return
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield True


def copy_range(source: str, offset: int, length: int, target: str) -> str:
    """Write a piece of a file into another file and return the piece's digest."""
    hasher = hashlib.sha256()
    with open(source, "rb") as whole, open(target, "wb") as piece:
        whole.seek(offset)
        while length:
            block = whole.read(min(BLOCK, length))
            if not block:
                raise AnsibleActionFail(f"{source} became shorter while it was sent. Run again when it is whole.")
            hasher.update(block)
            piece.write(block)
            length -= len(block)
    return "sha256:" + hasher.hexdigest()


def account(answer: dict[str, Any], sent: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Write into the module's answer what only the controller knows: how much was sent, how much was there already."""
    for model in answer.get("models") or []:
        item = sent.get(model["digest_after"])
        if item and model["changed"]:
            model.update(bytes=item["size"] - item["have"], resumed=item["have"])
    return answer


class ActionModule(ActionBase):
    """Run the module, and send what it misses."""

    _supports_check_mode = True
    _supports_async = True
    _requires_connection = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the task."""
        result = super().run(tmp, task_vars)
        wrap_async = bool(self._task.async_val) and not self._connection.has_native_async
        args = copy.deepcopy(dict(self._task.args))
        if args.get("transfer") is not None:
            raise AnsibleActionFail("transfer is for the action plugin, not for playbooks: leave it out.")
        files = self._describe_files(args)
        if files:
            # What is known of a background job comes too late to send it files.
            first = {**args, "transfer": {"step": "ask"}} if wrap_async else args
            answer = self._module(first, task_vars)
            missing = {item["digest"]: item for item in answer.get("missing") or []}
            for digest, item in missing.items():
                self._send(args, item, files[digest], task_vars)
            if answer.get("failed") or not (missing or wrap_async):
                return merge_hash(result, answer)
            if wrap_async:
                args = {**args, "transfer": {"step": "alone"}}
            return merge_hash(result, account(self._module(args, task_vars, wrap_async), missing))
        return merge_hash(result, self._module(args, task_vars, wrap_async))

    def _module(self, args: dict[str, Any], task_vars: Any, wrap_async: bool = False) -> dict[str, Any]:
        return self._execute_module(
            module_name=self._task.action, module_args=args, task_vars=task_vars, wrap_async=wrap_async
        )

    def _describe_files(self, args: dict[str, Any]) -> dict[str, str]:
        """Add digest and size to the models that are files here; return the files by digest."""
        files = {}
        models = args.get("models")
        for model in models if isinstance(models, list) else []:
            source = model.get("source") if isinstance(model, dict) else None
            if not isinstance(model, dict) or not isinstance(source, dict):
                continue
            wanted = source.get("file")
            if not wanted or (model.get("state") or args.get("state")) == "absent":
                continue
            path = self._find(model, str(wanted))
            computed = known_digest(path, os.path.expanduser("~/.cache/llm-cluster/digests"))
            given = str(model.get("digest") or computed).lower()
            given = given if given.startswith("sha256:") else "sha256:" + given
            if given != computed:
                raise AnsibleActionFail(
                    f"{model.get('name')}: {path} is not the wanted file: expected {given}, got {computed}. Nothing "
                    "was sent. Correct the digest or the file."
                )
            source["file"] = path
            model.update(digest=computed, size=os.path.getsize(path))
            files[computed] = path
        return files

    def _find(self, model: dict[str, Any], wanted: str) -> str:
        """Return the real path of a model's file."""
        name = model.get("name")
        try:
            path = os.path.realpath(self._find_needle("files", os.path.expanduser(wanted)))
            with open(path, "rb") as stream:
                magic = stream.read(4)
        except (AnsibleError, OSError) as error:
            raise AnsibleActionFail(
                f"{name}: the file {wanted} cannot be read on the controller ({error}). Correct source.file of this "
                "model in llm_models."
            ) from error
        if magic != b"GGUF":
            raise AnsibleActionFail(
                f"{name}: {path} is not a GGUF file (it begins with {magic!r}). If it is a Git LFS pointer or a page "
                "that was saved instead of the file, fetch the file again."
            )
        return path

    def _send(self, args: dict[str, Any], item: dict[str, Any], path: str, task_vars: Any) -> None:
        host = self._task_host(task_vars)
        size, have = os.path.getsize(path), int(item["have"])
        display.v(f"Sending {item['name']} ({human(size)}, {human(have)} are there already)", host=host)
        shell = self._connection._shell
        if not shell.tmpdir:
            self._make_tmp_path()
        remote = shell.join_path(shell.tmpdir, "chunk")
        # In place of the models: they are not needed to append.
        base = {**args, "models": []}
        handle, local = tempfile.mkstemp(dir=constants.DEFAULT_LOCAL_TMP)
        os.close(handle)
        try:
            while have < size:
                length = min(chunk_size(size), size - have)
                digest = copy_range(path, have, length, local)
                self._put(local, remote)
                transfer = {
                    "step": "append",
                    "digest": item["digest"],
                    "size": size,
                    "offset": have,
                    "chunk": remote,
                    "sha256": digest,
                }
                answer = self._module({**base, "transfer": transfer}, task_vars)
                if answer.get("failed"):
                    raise AnsibleActionFail(
                        f"{item['name']}: {answer.get('msg')} ({have} of {size} bytes are on the node.)", result=answer
                    )
                have = int(answer["have"])
                display.vv(f"Sent {human(have)} of {human(size)} of {item['name']}", host=host)
        finally:
            os.unlink(local)

    def _put(self, local: str, remote: str) -> None:
        """Copy a file to the node, again if the connection breaks."""
        for attempt in range(1, TRIES + 1):
            try:
                self._connection.put_file(local, remote)
                break
            except (AnsibleConnectionFailure, AnsibleError) as error:
                if attempt == TRIES:
                    raise
                display.vv(f"Sending a chunk failed, trying again: {error}")
                time.sleep(attempt)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))

    def _task_host(self, task_vars: dict[str, Any] | None) -> str | None:
        return (task_vars or {}).get("inventory_hostname")
