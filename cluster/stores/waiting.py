"""Show slow storage: after ten seconds without an answer, a line says what is waited for."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

logger = logging.getLogger("clip")

FIRST_SECONDS = 10.0
"""Time without an answer until the first line. The next lines follow after twice as long each."""
_POLL_SECONDS = 1.0


@dataclass
class _Wait:
    what: str
    began: float
    due: float
    """Seconds after which the next line is due."""


_lock = threading.Lock()
_numbers = itertools.count()
_waits: dict[int, _Wait] = {}
_watcher: threading.Thread | None = None


@contextmanager
def waiting_for(what: str) -> Iterator[None]:
    """Log a line whenever the `with` block has lasted FIRST_SECONDS, and twice, four times, ... as long.

    Args:
        what: describes the block, such as "reading s3://bucket/key".
    """
    number = next(_numbers)
    _waits[number] = _Wait(what, time.monotonic(), FIRST_SECONDS)
    _start_watcher()
    try:
        yield
    finally:
        del _waits[number]


def _start_watcher() -> None:
    """Start the thread that writes the lines. A forked process has none of its parent's threads, and starts its own."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        with _lock:
            if _watcher is None or not _watcher.is_alive():
                _watcher = threading.Thread(target=_watch, name="slow storage", daemon=True)
                _watcher.start()


def _watch() -> None:
    while True:
        time.sleep(_POLL_SECONDS)
        now = time.monotonic()
        for wait in list(_waits.values()):
            seconds = now - wait.began
            if seconds >= wait.due:
                wait.due = 2 * wait.due
                logger.warning("no answer for %.0f s: %s", seconds, wait.what)
