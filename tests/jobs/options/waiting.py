"""Start the waiting job (wait.py) in a process of its own, and stop it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.jobs.options.wait import What
from tests.ray_head import ROOT

START_SECONDS = 1.0
"""Time between a job's announcement that it waits and the first signal."""
EXIT_SECONDS = 1.0
"""The processes of a job may end so much later than the job; the kernel ends some of them when their parent is gone."""


@dataclass(frozen=True)
class Stopped:
    """How a job ended."""

    status: int
    seconds: float
    """Time from the first signal to the end of the process."""
    out: str
    err: str
    left: list[str]
    """Names of the processes of its session that are there EXIT_SECONDS later."""


@contextlib.contextmanager
def waiting_job(what: What) -> Iterator[subprocess.Popen[str]]:
    """A job that waits, in a session of its own. All processes of the session are killed at the end."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:  # accepts connections, and never answers
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.options.wait", f"--what={what}", "--key=bucket/file"],
            cwd=ROOT,
            env=environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "waiting\n"
            time.sleep(START_SECONDS)
            yield process
        finally:
            for pid in members_of_session(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def stop(process: subprocess.Popen[str], *signals: signal.Signals, interval: float = 0.0, read: bool = True) -> Stopped:
    """Send signals, and wait for the end.

    Args:
        process: the job.
        signals: what to send.
        interval: time between two of them, in seconds.
        read: whether to read the standard streams before the process has ended.
    """
    started = time.monotonic()
    for order, number in enumerate(signals):
        time.sleep(interval if order else 0)
        process.send_signal(number)
    out, err = process.communicate(timeout=30) if read else ("", "")
    status = process.wait(timeout=30)
    seconds = time.monotonic() - started
    deadline = time.monotonic() + EXIT_SECONDS
    while (left := members_of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return Stopped(status, seconds, out, err, list(left.values()))


def members_of_session(leader: int) -> dict[int, str]:
    """The living processes of a session: their ids and names."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = status.read_text().partition("(")[2].rpartition(")")
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
        state, _, _, session = fields.split()[:4]
        if int(session) == leader and state != "Z":
            found[int(status.parent.name)] = name
    return found
