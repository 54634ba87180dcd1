"""A job that waits in the way that `what` requests, for the tests of jobs/options/stopping.py.

It prints "waiting" when it starts to wait, and "bye" when it has cleaned up.
"""

import hashlib
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from cluster import storage
from cluster.session import SessionConfig, session
from jobs.options.launch import launch
from jobs.options.stopping import STOP_SECONDS

What = Literal[
    "storage", "pool", "exit", "cleanup", "failing cleanup", "child",
    "native", "stubborn", "pipe", "join", "start", "task", "data",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class WaitJob:
    """Wait for something that may never come."""

    what: What
    key: str
    """bucket/key of a file on a server that never answers. As a URI, it would be looked at before the job begins."""
    session: SessionConfig = field(default_factory=lambda: SessionConfig(address="local", num_cpus=4))

    @property
    def uri(self) -> str:
        return f"s3://{self.key}"


def main(job: WaitJob) -> None:
    try:
        _WAITS[job.what](job)
    finally:
        if job.what in ("cleanup", "failing cleanup"):
            time.sleep(1)
        print("bye", flush=True)
        if job.what == "failing cleanup":
            raise KeyError("of cleaning up")


def waiting() -> None:
    print("waiting", flush=True)


def _storage(job: WaitJob) -> None:
    waiting()
    storage.read_bytes(job.uri)


def _pool(job: WaitJob) -> None:
    with ThreadPoolExecutor(2) as threads:
        waiting()
        list(threads.map(storage.read_bytes, [job.uri] * 4))


def _exit(_job: WaitJob) -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()  # Python joins it after the last line
    waiting()


def _sleep(_job: WaitJob) -> None:
    waiting()
    time.sleep(60)


def _child(_job: WaitJob) -> None:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    time.sleep(0.5)
    child.terminate()
    child.join()
    waiting()
    time.sleep(STOP_SECONDS + 1)


def _native(_job: WaitJob) -> None:
    waiting()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**30)  # minutes


def _stubborn(_job: WaitJob) -> None:
    waiting()
    while True:
        try:
            time.sleep(60)
        except SystemExit:
            continue


def _pipe(_job: WaitJob) -> None:
    waiting()
    while True:
        sys.stdout.write("a line\n")


def _join(_job: WaitJob) -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()
    waiting()
    time.sleep(60)


def _start(job: WaitJob) -> None:
    waiting()
    with session(job.session):
        time.sleep(60)


def _task(job: WaitJob) -> None:
    with session(job.session):
        import ray

        tasks = [ray.remote(storage.read_bytes).remote(job.uri) for _ in range(2)]
        ray.wait(tasks, timeout=3)  # until they have started
        waiting()
        ray.get(tasks)


def _data(job: WaitJob) -> None:
    with session(job.session):
        import ray.data

        waiting()
        ray.data.range(2).map(lambda _row: {"data": storage.read_bytes(job.uri)}).materialize()


_WAITS: dict[What, Callable[[WaitJob], None]] = {
    "storage": _storage,
    "pool": _pool,
    "exit": _exit,
    "cleanup": _sleep,
    "failing cleanup": _sleep,
    "child": _child,
    "native": _native,
    "stubborn": _stubborn,
    "pipe": _pipe,
    "join": _join,
    "start": _start,
    "task": _task,
    "data": _data,
}

if __name__ == "__main__":
    launch(WaitJob, main, sys.argv[1:])
