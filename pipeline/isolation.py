"""Call a function in a child process, with limits on time and memory, for input that may defeat any parser.

A signal cannot interrupt native code, and a thread cannot be killed. So a parser that might hang, crash or take all
memory runs in a child process, which is killed at its deadline and started again for the next call. The child's
environment holds no secrets, and it ends when its parent ends. Only bytes reach it, in shared memory or through a pipe,
and only bytes come back, never pickles.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import mmap
import os
import resource
import select
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import BinaryIO

_LENGTH = struct.Struct("<I")
_PIPE_BYTES = 1 << 20
_SHARED_BYTES = 1 << 24
"""Size of the memory for messages to a child, which costs less than a pipe. Only the pages in use are allocated."""
_IN_MEMORY = 1 << 31
"""Added to the length of a message that is in the shared memory."""
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")
_DIES_WITH_PARENT = "import ctypes, os; ctypes.CDLL(None).prctl(1, 9); os.getppid() == {parent} or os._exit(1)"
"""First statement of a child: prctl(PR_SET_PDEATHSIG, SIGKILL). It runs before the imports, which may take a second."""
_STARTER = ThreadPoolExecutor(1, "isolation")
"""The thread that starts all children, because PR_SET_PDEATHSIG kills a child when the thread that started it ends."""
_START_SECONDS = 120.0
_START_ATTEMPTS = 3
"""Attempts to start a child, because a child may be killed before it is ready."""


class TooSlowError(Exception):
    """The call took longer than its limit; the child was killed."""


class DiedError(Exception):
    """The child died during the call."""


def python_command(statement: str, *arguments: str) -> list[str]:
    """The command line of a child that runs a Python statement, and ends when this process ends."""
    return [sys.executable, "-c", f"{_DIES_WITH_PARENT.format(parent=os.getpid())}\n{statement}", *arguments]


def environment() -> dict[str, str]:
    """The environment of a child: how to find programs and modules, and no secrets."""
    inherited = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return inherited | {"PYTHONPATH": os.pathsep.join(sys.path)}


def limit_memory(gib: float) -> None:
    """Limit what this process may allocate on top of its present memory, and write no core dumps."""
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    most = now + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def widen_pipe(descriptor: int) -> None:
    """Let a pipe buffer 1 MiB, if the user's quota allows it and the descriptor is a pipe."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


class Isolated:
    """A function from bytes to bytes that runs in a child process. Several threads may call it, one at a time.

    Args:
        module: name of the function's module, which the child imports.
        function: name of the function. Its exceptions end the child, so it should handle its own.
        memory_gib: memory that the child may allocate on top of its memory at start.
    """

    def __init__(self, module: str, function: str, memory_gib: float) -> None:
        self._arguments = module, function, str(memory_gib)
        self._process: subprocess.Popen[bytes] | None = None
        self._shared: mmap.mmap | None = None
        self._lock = threading.Lock()

    def __call__(self, data: bytes, timeout_seconds: float) -> bytes:
        """The function's result.

        Raises:
            TooSlowError: it did not return in time.
            DiedError: its process ended.
            RuntimeError: the child does not start.
        """
        with self._lock:
            try:
                process = self._running() or self._start()
                deadline = time.monotonic() + timeout_seconds
                self._send(process, data, deadline)
                return _receive(process, deadline)
            except TimeoutError:
                self._end()
                raise TooSlowError(f"no answer after {timeout_seconds:g} s") from None
            except (BrokenPipeError, EOFError):
                raise DiedError(f"exit status {self._end()}") from None
            except BaseException:  # an interrupt: the answer of this call must not reach the next one
                self._end()
                raise

    def close(self) -> None:
        """End the child. The next call starts another."""
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes] | None:
        """The child, unless it has ended since the last call, for which this call is not to blame."""
        if self._process is not None and self._process.poll() is not None:
            self._end()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        for _ in range(_START_ATTEMPTS):
            descriptor = os.memfd_create("isolation")
            os.ftruncate(descriptor, _SHARED_BYTES)
            self._shared = mmap.mmap(descriptor, _SHARED_BYTES)
            process = self._process = _STARTER.submit(_popen, self._arguments, descriptor).result()
            os.close(descriptor)
            assert process.stdin is not None
            widen_pipe(process.stdin.fileno())
            with contextlib.suppress(EOFError, TimeoutError):
                _receive(process, time.monotonic() + _START_SECONDS)
                atexit.unregister(self.close)
                atexit.register(self.close)
                return process
            status = self._end()
        raise RuntimeError(f"a process for {self._arguments[0]} did not start (exit status {status})")

    def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        return process.wait()

    def _send(self, process: subprocess.Popen[bytes], data: bytes, deadline: float) -> None:
        if self._shared is not None and len(data) <= _SHARED_BYTES:
            self._shared[: len(data)] = data
            _write(process, deadline, _LENGTH.pack(_IN_MEMORY | len(data)))
        else:
            _write(process, deadline, _LENGTH.pack(len(data)), data)


def _popen(arguments: Sequence[str], descriptor: int) -> subprocess.Popen[bytes]:
    command = python_command("from pipeline.isolation import main; main()", *arguments, str(descriptor))
    return subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), pass_fds=[descriptor]
    )


def _write(process: subprocess.Popen[bytes], deadline: float, *messages: bytes) -> None:
    """Write to a child's standard input. A child that does not read, because it is stopped, does not block the writer.

    Raises:
        TimeoutError: the deadline has passed.
        BrokenPipeError: the process ended.
    """
    assert process.stdin is not None
    descriptor = process.stdin.fileno()
    os.set_blocking(descriptor, False)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    for message in messages:
        rest = memoryview(message)
        while rest:
            _wait(poll, deadline)
            rest = rest[os.write(descriptor, rest) :]


def _wait(poll: select.poll, deadline: float) -> None:
    if not poll.poll(max(0.0, 1000 * (deadline - time.monotonic()))):
        raise TimeoutError


def _receive(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Read one message.

    Raises:
        TimeoutError: the deadline has passed.
        EOFError: the process ended.
    """
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    message = bytearray()
    length = _LENGTH.size
    while len(message) < length:
        _wait(poll, deadline)
        piece = os.read(descriptor, max(1 << 16, length - len(message)))
        if not piece:
            raise EOFError
        message += piece
        if length == _LENGTH.size <= len(message):
            length += _LENGTH.unpack_from(message)[0]
    return bytes(memoryview(message)[_LENGTH.size :])


def main() -> None:
    """Run the child process: its arguments are module, function, memory limit, and descriptor of the shared memory."""
    module, name, memory_gib, descriptor = sys.argv[1:]
    function = getattr(import_module(module), name)
    shared = mmap.mmap(int(descriptor), _SHARED_BYTES)
    widen_pipe(1)
    # Other output to standard output, such as a library's print, must not mix with the results
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        limit_memory(float(memory_gib))
        _send(answers, b"")
        while head := sys.stdin.buffer.read(_LENGTH.size):
            (length,) = _LENGTH.unpack(head)
            data = shared[: length - _IN_MEMORY] if length & _IN_MEMORY else sys.stdin.buffer.read(length)
            _send(answers, function(data))


def _send(answers: BinaryIO, data: bytes) -> None:
    answers.write(_LENGTH.pack(len(data)))
    answers.write(data)
    answers.flush()
