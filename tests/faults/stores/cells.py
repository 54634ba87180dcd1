"""One command on one store, run as a user runs it: it works, says what it does instead, or refuses in one line."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from tests.faults.stores.commands import Command, Place
from tests.jobs.options.waiting import members_of_session
from tests.ray_head import ROOT

Outcome = Literal["works", "around", "refused", "FAILS"]

MAX_SILENT_SECONDS = 15.0
"""Without a line on either stream, a user does not know whether the command goes on."""
MAX_SECONDS = 120.0
MAX_SLOWDOWN = 5.0
"""Time in which any process of this machine waits for a CPU does not count, but up to so many times MAX_SECONDS."""
_PRESSURE = Path("/proc/pressure/cpu")
_LINE = re.compile(
    r"(?:.{0,9}\((?:\w+ )?pid=[^)]*\).{0,5} )?(?:\d\d:\d\d:\d\d )?(?P<level>INFO|WARNING|ERROR) (?P<text>.*)"
)
_WORKER = re.compile(r".{0,9}\(\w+ pid=")
"""Begins what Ray passes on from a worker."""
_TRACE = "Traceback (most recent call last)"
_WAITING = re.compile(r"no answer for (\d+) s: ")
_OF_RAY = re.compile(r"\[[\d\- :,]+ [EW] \d+ \d+\] .*max_restarts > 0")
"""A line of Ray about its own actors, which it writes on every store."""


@dataclass(frozen=True)
class Run:
    """A process that has ended."""

    status: int
    seconds: float
    counted_seconds: float
    """Without the time in which a process of this machine waited for a CPU."""
    silent_seconds: float
    """The longest counted time without a line, beyond what the line before it had announced."""
    out: str
    err: list[str]

    @property
    def errors(self) -> list[str]:
        """The lines for users that begin with "error: "."""
        return [line for line in self.err if line.startswith("error: ")]

    @property
    def warnings(self) -> list[str]:
        """The texts of warnings."""
        found = [_LINE.fullmatch(line) for line in self.err]
        return [line["text"] for line in found if line and line["level"] != "INFO"]

    @property
    def others(self) -> list[str]:
        """Lines that are neither log lines nor an error for users, and tracebacks wherever they come from."""
        known = [_LINE.fullmatch(line) or _WORKER.match(line) or _OF_RAY.match(line) for line in self.err]
        unknown = [line for line, is_known in zip(self.err, known, strict=True) if not is_known]
        return [line for line in unknown if line not in self.errors] + [line for line in self.err if _TRACE in line]


@dataclass(frozen=True)
class Cell:
    """How a command did on a store."""

    outcome: Outcome
    seconds: float
    line: str
    """The error, or the first warning that says what is done instead; "" if it simply works."""
    problem: str
    """What is wrong; "" unless the outcome is FAILS."""


class _Clock:
    """Measures time in which no process of this machine waits for a CPU."""

    def __init__(self) -> None:
        self._began, self._stalled = time.monotonic(), _stalled_seconds()

    def seconds(self) -> float:
        """Since the clock was started."""
        return self.wall_seconds() - (_stalled_seconds() - self._stalled)

    def wall_seconds(self) -> float:
        """The same with the time of waiting."""
        return time.monotonic() - self._began


def _stalled_seconds() -> float:
    """Time so far in which any process of this machine waited for a CPU; 0 where the kernel does not count it."""
    try:
        return int(_PRESSURE.read_text().split("total=")[1].split()[0]) / 1e6
    except OSError:
        return 0.0


def run(words: Sequence[str], environment: Mapping[str, str]) -> Run:
    """Run `python -m jobs.WORDS`, and measure how long it is silent. It is ended after MAX_SECONDS and a little."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"jobs.{words[0]}", *words[1:]],
        cwd=ROOT,
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    clock = last = _Clock()
    lines: queue.Queue[tuple[str, str] | None] = queue.Queue()
    assert process.stdout is not None
    assert process.stderr is not None
    for name, stream in (("out", process.stdout), ("err", process.stderr)):
        threading.Thread(target=_pass_on, args=(name, stream, lines), daemon=True).start()
    texts: dict[str, list[str]] = {"out": [], "err": []}
    num_open, silent, announced, ended = len(texts), 0.0, 0.0, 0.0
    while num_open and clock.seconds() < MAX_SECONDS + 1 and clock.wall_seconds() < MAX_SLOWDOWN * MAX_SECONDS:
        if process.poll() is not None:
            ended = ended or clock.wall_seconds()
            if clock.wall_seconds() > ended + 1:  # a process that it started outlives it, and keeps the pipes open
                break
        with contextlib.suppress(queue.Empty):
            found = lines.get(timeout=0.2)
            silent = max(silent, last.seconds() - announced)
            last, announced = _Clock(), 0.0
            if found is None:
                num_open -= 1
                continue
            texts[found[0]].append(found[1])
            if waiting := _WAITING.search(found[1]):
                announced = float(waiting[1])  # the next such line comes after twice as long
    silent = max(silent, last.seconds() - announced)
    if process.poll() is None:
        process.terminate()  # which a job follows within five seconds
    status = process.wait(timeout=30)
    counted, seconds = clock.seconds(), clock.wall_seconds()
    for pid in members_of_session(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return Run(status, seconds, counted, silent, "\n".join(texts["out"]), texts["err"])


def judge(command: Command, place: Place, done: Run, before: Mapping[str, bytes], expected: object) -> Cell:
    """Say how a command did.

    Args:
        command: what was run.
        place: where.
        done: the process.
        before: the files of the place before the command.
        expected: the result of the command on the server itself.
    """
    outcome: Outcome = "FAILS"
    line, problems = "", []
    if done.status == 0:
        found = command.result(place, done.out)
        if found != expected:
            problems.append(f"the result is {found}, and not {expected}")
        outcome, line = ("around", done.warnings[0]) if done.warnings else ("works", "")
    elif done.status == 2:
        outcome, line = "refused", done.errors[0] if done.errors else ""
        if len(done.errors) != 1 or done.err[-1:] != done.errors:
            problems.append(f"{len(done.errors)} lines begin with error:, or others follow")
        if begun := command.begun(place, before):
            problems.append(f"it was refused and has left {begun}")
    else:
        problems.append(f"status {done.status}")
    if done.others:
        problems.append(f"{len(done.others)} lines are no log lines, such as {done.others[0]!r}")
    if done.silent_seconds > MAX_SILENT_SECONDS:
        problems.append(f"silent for {done.silent_seconds:.0f} s")
    if done.counted_seconds > MAX_SECONDS:
        problems.append(f"{done.counted_seconds:.0f} s")
    return Cell("FAILS" if problems else outcome, done.seconds, line, "; ".join(problems))


def environment(home: str, variables: Mapping[str, str | None]) -> dict[str, str]:
    """The environment of a user with this home folder, who has set keys and these variables; None unsets one."""
    own = ("AWS_", "RAY_", "SSL_CERT", "REQUESTS_CA")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(own) and not name.lower().endswith("_proxy")
    }
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    found = {**kept, **keys, "HOME": home, "OMP_NUM_THREADS": "1", **variables}
    return {name: value for name, value in found.items() if value is not None}


def _pass_on(name: str, stream: IO[str], lines: queue.Queue[tuple[str, str] | None]) -> None:
    with contextlib.suppress(ValueError), stream:  # it is closed
        for line in stream:
            lines.put((name, line.rstrip("\n")))
    lines.put(None)
