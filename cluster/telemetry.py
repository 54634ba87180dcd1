"""Report the progress of jobs: log lines for people, events in a file, counters for Prometheus."""

import datetime
import json
import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from cluster import storage

PROGRESS_INTERVAL_SECONDS = 5.0

logger = logging.getLogger("clip")


class Progress:
    """Count finished units. Log rate and remaining time every few seconds, and a summary at the end.

    `total` is the number of units that this process has to do, without units finished before a resume. None if unknown.
    """

    def __init__(
        self, label: str, total: int | None, unit: str, *, interval_seconds: float = PROGRESS_INTERVAL_SECONDS
    ) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._interval_seconds = interval_seconds

    def __enter__(self) -> Self:
        self._started = self._last_logged = time.monotonic()
        return self

    def update(self, num_done: int = 1) -> None:
        """Count `num_done` more units as finished."""
        self.done += num_done
        now = time.monotonic()
        if now - self._last_logged >= self._interval_seconds:
            self._last_logged = now
            logger.info("%s", self.line(now - self._started))

    def line(self, seconds: float) -> str:
        """The progress line after this many seconds."""
        rate = self.done / seconds if seconds > 0 else 0.0
        parts = [f"{self.label}: {self.done:,}{'' if self.total is None else f'/{self.total:,}'} {self.unit}"]
        if self.done:
            parts.append(f"{rate:,.1f} {self.unit}/s")
        if rate and self.total is not None and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return ", ".join(parts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._started
        verb = "in" if kind is None else "stopped after"
        logger.info("%s, %s %s", self.line(seconds), verb, duration(seconds))


def duration(seconds: float) -> str:
    """Format a duration in its two largest units: 8.1 s, 2 min 5 s, 3 h 20 min, 2 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, unit_seconds, smaller, smaller_seconds in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= unit_seconds:
            return f"{whole // unit_seconds} {unit} {whole % unit_seconds // smaller_seconds} {smaller}"
    return f"{whole} s"


class Events:
    """A file with one JSON object per line and event: time (UTC), event name, fields. Only one process may write it.

    Raises TypeError for a field that JSON cannot represent.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def append(self, event: str, **fields: Any) -> None:
        """Append an event. It is on disk when this function returns."""
        moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": moment, "event": event, **fields}, ensure_ascii=False).encode() + b"\n"
        # Rewrites the whole file, because S3 cannot append; events are rare, two per stage
        before = storage.read_bytes(self.uri) if storage.exists(self.uri) else b""
        storage.write_bytes(self.uri, before + line)

    def read(self) -> list[dict[str, Any]]:
        """All events so far, oldest first."""
        if not storage.exists(self.uri):
            return []
        return [json.loads(line) for line in storage.read_bytes(self.uri).splitlines()]


class Counter:
    """A counter that Prometheus reads from every node as `ray_<name>_total`. Outside Ray it counts nothing."""

    def __init__(self, name: str, description: str, tag_keys: tuple[str, ...] = ()) -> None:
        self.name = name
        self.description = description
        self.tag_keys = tag_keys
        self._counter: Any = None

    def add(self, value: float = 1, **tags: str) -> None:
        """Add to the counter with these tags."""
        ray = sys.modules.get("ray")  # Ray does not run in a process that never imported it
        if value == 0 or ray is None or not ray.is_initialized():
            return
        if self._counter is None:
            from ray.util import metrics

            self._counter = metrics.Counter(self.name, self.description, self.tag_keys)
        self._counter.inc(value, tags)
