# Copyright: (c) 2026, llm.cluster contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around the lock file. The logic is in module_utils/_lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.llm.cluster.plugins.module_utils import _lock


@lru_cache(maxsize=8)
def _read(path: str, _version: tuple[int, int, int]) -> dict[str, Any]:
    """Return the lock of a file in one version of it: every host's variables ask for it again and again."""
    try:
        return _lock.read_lock(Path(path).read_text(encoding="utf-8"))
    except _lock.LockError as error:
        raise AnsibleFilterError(f"{path}, {error}") from error
    except UnicodeDecodeError as error:
        raise AnsibleFilterError(f"{path} is no text ({error}). Restore it from your version control.") from error


def read_lock(path: str) -> dict[str, Any]:
    """Return what is locked; nothing if there is no file."""
    path = os.path.expanduser(str(path))
    try:
        stat = os.stat(path)
        return _read(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise AnsibleFilterError(f"The lock file {path} cannot be read: {error}. Correct llm_lock_file.") from error


class FilterModule:
    """Entry point for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"read_lock": read_lock}
