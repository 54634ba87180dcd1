"""Run work in processes that are killed before their n-th file access, or at their n-th PUT to S3."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.s3_faults import Fault, FaultyS3

_FILE_EVENTS = {"open", "os.link", "os.listdir", "os.mkdir", "os.remove", "os.rename", "os.scandir"}
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pandas", "tests.faults.test_snapshots"])  # pyarrow imports pandas


def killed_at_file(step: int, folder: str, work: Callable[..., Any], *arguments: Any) -> bool:
    """Run the work in a process that is killed before its `step`-th file access in a folder; whether it was killed."""
    return _killed(_PROCESSES.Process(target=_until_file_access, args=(step, folder, work, *arguments)))


def killed_at_put(step: int, arrives: bool, work: Callable[..., Any], *arguments: Any) -> bool:
    """Run the work in a process that is killed at its `step`-th PUT; whether it was killed.

    Args:
        step: number of the PUT, from 1.
        arrives: whether the server still receives this PUT.
        work: a picklable function.
        arguments: its arguments.
    """
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "PUT", _fault_at(step, arrives, lambda: process)) as proxy:
        process = _PROCESSES.Process(target=_through_proxy, args=(proxy.endpoint, work, *arguments))
        return _killed(process)


def num_puts(work: Callable[..., Any], *arguments: Any) -> int:
    """Run the work in a process that is not killed, and count its PUTs."""
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "PUT", []) as proxy:
        assert not _killed(_PROCESSES.Process(target=_through_proxy, args=(proxy.endpoint, work, *arguments)))
        return proxy.num_requests


def _killed(process: Any) -> bool:
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return bool(process.exitcode)


def _until_file_access(step: int, folder: str, work: Callable[..., Any], *arguments: Any) -> None:
    remaining, lock = step, threading.Lock()

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal remaining
        if event in _FILE_EVENTS and values and folder in str(values[0]):
            with lock:
                remaining -= 1
                if remaining == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(*arguments)


def _through_proxy(endpoint: str, work: Callable[..., Any], *arguments: Any) -> None:
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    work(*arguments)


def _fault_at(step: int, arrives: bool, process: Callable[[], Any]) -> Iterator[Fault]:
    for _ in range(step - 1):
        yield Fault.NONE
    os.kill(process().pid, signal.SIGKILL)
    yield Fault.LOST_ANSWER if arrives else Fault.RESET
