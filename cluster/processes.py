"""Find and end the processes that this process started, those that they started, and so on (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path


def descendants() -> list[int]:
    """The ids of the processes below this one. Parents come before their children.

    A process whose parent has ended is not found, because it belongs to the system's first process then.
    """
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(stat.parent.name))
    pids = [os.getpid()]
    for pid in pids:
        pids += children[pid]
    return pids[1:]


def kill(pids: Iterable[int]) -> None:
    """End processes at once."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
