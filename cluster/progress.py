"""Report the progress of a run's stages from its events and its part listings, without contacting the job."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from dataclasses import dataclass

from cluster import storage
from cluster.parts import Stage
from cluster.runs import Run
from cluster.telemetry import Events

EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """The progress of one stage of a run."""

    name: str
    num_parts: int
    num_complete: int
    """Number of complete parts."""
    seconds: float
    """Time spent on the stage so far, over all resumptions."""
    kept: int | None = None
    """Rows kept by a finished stage; None while it runs."""
    dropped: int | None = None
    """Rows dropped by a finished stage."""
    parts_per_second: float | None = None
    """Rate of a running stage since it was started or resumed; None before its first part is complete."""
    idle_seconds: float | None = None
    """Time since a running stage completed its last part; None before its first part is complete."""

    @property
    def running(self) -> bool:
        """Whether the stage has started but not finished. Its job may have died meanwhile; see `idle_seconds`."""
        return self.kept is None

    @property
    def seconds_left(self) -> float | None:
        """Remaining time of a running stage at its current rate. None without a rate."""
        return (self.num_parts - self.num_complete) / self.parts_per_second if self.parts_per_second else None


def stage_progress(run: Run, *, now: float | None = None) -> list[StageProgress]:
    """The progress of every stage that has started, in the order of their start.

    Costs one read, and one listing per running stage.

    Args:
        run: the run.
        now: the current time in seconds since 1970. By default the system clock.
    """
    now = time.time() if now is None else now
    found: dict[str, StageProgress] = {}
    seconds: Counter[str] = Counter()  # of the jobs that ended the stage or a part of it
    for event in Events(storage.join(run.uri, EVENTS_FILE)).read():
        if event["event"] not in ("stage_started", "stage"):
            continue
        name = event["stage"]
        if event["event"] == "stage":
            seconds[name] += event["seconds"]
            num_parts = found[name].num_parts if name in found else event["parts"]
            found[name] = StageProgress(
                name=name,
                num_parts=num_parts,
                num_complete=num_parts,
                seconds=seconds[name],
                kept=event["kept"],
                dropped=event.get("dropped"),
            )
        else:
            started = datetime.datetime.fromisoformat(event["time"]).timestamp()
            stage = Stage(event["uri"], event["parts"], event["generation"])
            found[name] = _running(name, stage, event["pending"], started, seconds[name], now)
    return list(found.values())


def _running(name: str, stage: Stage, pending: int, started: float, seconds: float, now: float) -> StageProgress:
    times = stage.completion_times()
    num_new = len(times) - (stage.num_parts - pending)
    spent = max(now - started, 1e-3)
    return StageProgress(
        name=name,
        num_parts=stage.num_parts,
        num_complete=len(times),
        seconds=seconds + spent,
        parts_per_second=num_new / spent if num_new > 0 else None,
        idle_seconds=max(0.0, now - max(times)) if num_new > 0 else None,
    )
