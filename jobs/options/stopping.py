"""End a job that is told to stop, by SIGTERM (`kill`, `ray job stop`) or by SIGINT (Ctrl-C).

The first signal raises SystemExit or KeyboardInterrupt in the main thread, so that context managers exit and training
saves. Much cannot be interrupted like this: native code, or a thread pool whose threads wait for a silent server, which
Python joins even while it exits. So a second thread watches the signals. It ends the process STOP_SECONDS after the
first signal, or at once when another one arrives.

This thread does not depend on the main one: Python's C handler writes each signal to a socket (signal.set_wakeup_fd)
when it arrives, while handlers in Python wait until the main thread executes Python code.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

STOP_SECONDS = 4.0
"""How long a job may take to end after a signal. Training saves for at most 2.5 s (pipeline/train/workers/trainer.py),
and a local Ray takes 1.4 s to end."""

REPEAT_SECONDS = 0.5
"""Signals within this time after the first are the same request: `timeout` signals a process and also its group."""

FLUSH_SECONDS = 0.3
"""How long the standard streams may take to write what they hold. A full pipe that nobody reads takes for ever."""

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group of who sent something to a Unix socket (struct ucred)."""


class Signals:
    """SIGTERM and SIGINT of this process while it runs a job, which is the `with` block.

    Python still joins threads after the last line of the program, so a process keeps its signals bounded to the end.
    `close` is for a process that goes on after the job, such as a test.
    """

    def __init__(self) -> None:
        self.status: int | None = None
        """Exit status of the job (128 + signal) once it has been interrupted."""
        self._job_runs, self._is_closed = True, False
        numbers = (signal.SIGTERM, signal.SIGINT)
        handlers = {number: signal.getsignal(number) for number in numbers}
        # Shells let background jobs ignore Ctrl-C
        self._handlers = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        self._received, self._sent = socket.socketpair()
        self._sent.setblocking(False)
        self._received.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # tells who sent

    def __enter__(self) -> Self:
        self._wakeup_fd = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
        for number in self._handlers:
            signal.signal(number, self._interrupt)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._job_runs = False
        if self.status is not None:
            kill_descendants()  # a local Ray that was interrupted while it started leaves some of its processes

    def close(self) -> None:
        """Restore the signal handlers of this process, and end the watching thread."""
        self._is_closed = True
        signal.set_wakeup_fd(self._wakeup_fd)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._sent.close()

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        if self.status is None and self._job_runs:
            self.status = 128 + number
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(self.status)

    def _watch(self) -> None:
        with self._received:
            number = self._receive()
            if number is None:
                return
            if self._job_runs:  # otherwise there is nothing left to save
                self._wait_for_another(STOP_SECONDS)
        if not self._is_closed:
            end(128 + number)

    def _wait_for_another(self, seconds: float) -> None:
        """Wait for a signal that is another request, but at most so long."""
        first = now = time.monotonic()
        while (left := first + seconds - now) > 0 and not self._is_closed:
            self._received.settimeout(left)
            with contextlib.suppress(TimeoutError):
                self._receive()
            now = time.monotonic()
            if now - first > REPEAT_SECONDS:
                return

    def _receive(self) -> int | None:
        """Wait for SIGTERM or SIGINT. None once the socket is closed.

        Raises:
            TimeoutError: none arrived within the time-out of the socket.
        """
        while True:
            number, sender, *_ = self._received.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
            if not number:
                return None
            pid, *_ = _CREDENTIALS.unpack(sender[0][2])
            # Every signal with a handler in Python is sent. A forked child shares the socket, but not its signals
            if pid == os.getpid() and number[0] in self._handlers:
                return number[0]


def end(status: int) -> NoReturn:
    """End this process and its descendants at once, but for FLUSH_SECONDS.

    The descendants include a local Ray, some of whose processes would outlive this one by half a minute.
    """
    flush = threading.Thread(target=_flush, daemon=True)
    with contextlib.suppress(RuntimeError):  # Python 3.12 starts no threads while it exits
        flush.start()
        flush.join(FLUSH_SECONDS)
    kill_descendants()
    os._exit(status)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        sys.stdout.flush()
        sys.stderr.flush()


def kill_descendants() -> None:
    """End the processes that this one started, those that they started, and so on.

    Processes whose parent has ended are not found, because they belong to the system's first process then.
    """
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            parent = stat.read_text().rpartition(")")[2].split()[1]
            children[int(parent)].append(int(stat.parent.name))
    pids = [os.getpid()]
    for pid in pids:
        pids += children[pid]
    for pid in pids[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
