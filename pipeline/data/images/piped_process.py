"""Start a child process whose pipes are asyncio streams, such that a start can be cancelled at any moment.

`asyncio.create_subprocess_exec` of Python 3.11 waits for ever if it is cancelled before its pipes are connected, and
`asyncio.run` cancels whatever still runs when it ends (python/cpython issues 103847, 125502 and 133536). Here the
process is started by `subprocess.Popen`, which blocks the event loop for as long as asyncio's function does.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence

_POLL_SECONDS = 0.01


class PipedProcess:
    """A child process. Use it from one event loop only.

    Args:
        popen: the process, started with unbuffered pipes for standard input and output.
        stdin: writes to the process's standard input.
        stdout: reads from the process's standard output.
        transport: transport of the process's standard output.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        transport: asyncio.BaseTransport,
    ) -> None:
        self.pid = popen.pid
        self.stdin = stdin
        self.stdout = stdout
        self._popen = popen
        self._transport = transport

    @classmethod
    async def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], max_buffered_bytes: int
    ) -> PipedProcess:
        """Start a process and connect its pipes. A start that is cancelled leaves no process.

        Args:
            command: the program and its arguments.
            environment: all environment variables of the process.
            max_buffered_bytes: reading from the process pauses while twice as many bytes are buffered.

        Raises:
            OSError: the program cannot be started.
        """
        loop = asyncio.get_running_loop()
        popen = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert popen.stdin is not None
        assert popen.stdout is not None
        stdout = asyncio.StreamReader(limit=max_buffered_bytes)
        reading: asyncio.BaseTransport | None = None
        try:
            reading, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdout), popen.stdout)
            # The protocol for reading also controls the flow of a writer; nothing arrives in its own reader
            writing, protocol = await loop.connect_write_pipe(
                lambda: asyncio.StreamReaderProtocol(asyncio.StreamReader()), popen.stdin
            )
        except BaseException:
            popen.kill()
            popen.wait()
            (reading or popen.stdout).close()
            popen.stdin.close()
            raise
        return cls(popen, asyncio.StreamWriter(writing, protocol, None, loop), stdout, reading)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has already ended."""
        self._popen.kill()

    def end(self) -> None:
        """Kill the process, wait until it has ended, and close its pipes. Nothing is awaited."""
        self._popen.kill()
        self._popen.wait()
        self._close()

    async def wait(self) -> int:
        """Wait until the process has ended, close its pipes, and return its exit status."""
        while (status := self._popen.poll()) is None:
            await asyncio.sleep(_POLL_SECONDS)
        self._close()
        return status

    def _close(self) -> None:
        if not self.stdin.transport.is_closing():  # asyncio would close the pipe twice
            self.stdin.transport.abort()
        self._transport.close()
