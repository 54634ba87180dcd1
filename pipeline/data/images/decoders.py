"""Processes that decode, so that what native code does to one image costs one row: both ends of a pipe.

`main` is the child: it reads images from standard input and writes what became of them to standard output. Its memory
is limited, it is given no secret and no connection, and it ends when its parent does. The parent keeps several of them
busy, ends one that works too long, starts another where one has died, and blames the image that was being decoded.
Answers are plain JSON and bytes, so that a child that an image has taken over cannot make its parent run anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import json
import os
import resource
import struct
import sys
from collections import deque
from pathlib import Path
from typing import BinaryIO

from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.resize import ImageProcessor, Picture
from pipeline.reasons import Reason

_IN_HAND = 8
"""Images that a child has at once: the next one is there when it has done with the first."""
_LENGTH = struct.Struct("<I")
_LENGTHS = struct.Struct("<II")
"""Bytes of an answer's JSON, and of its JPEG."""
_DIES_WITH_PARENT = "import ctypes, os; ctypes.CDLL(None).prctl(1, 9); os.getppid() == {parent} or os._exit(1)"
"""What a child does first, before a second of imports: prctl(PR_SET_PDEATHSIG, SIGKILL)."""
_CHILD = "from pipeline.data.images.decoders import main; main()"
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "TMPDIR")
_PIPE_BYTES = 1 << 20
_ENDING_SECONDS = 1.0
"""For a child that answers no more to end by itself."""
_STARTS = 3
"""Attempts at starting a child, which may be killed before it is ready."""


class Decoders:
    """Checks and resizes images in processes of its own; to be used from one event loop."""

    def __init__(self, config: ImageConfig, *, with_phash: bool = False) -> None:
        self._children = [_Child(config, with_phash) for _ in range(config.num_decoders)]
        self._free: asyncio.Queue[_Child] = asyncio.Queue()
        for child in self._children * _IN_HAND:
            self._free.put_nowait(child)

    async def start(self) -> None:
        """Start all children ahead of the first image, for which each would take a second.

        Raises:
            RuntimeError: a child does not start.
        """
        await asyncio.gather(*(child.start() for child in self._children))

    async def __call__(self, data: bytes) -> Picture:
        """What becomes of an image; waits where all children have enough to do, so that fetching cannot outrun them.

        A child may be killed for what others do, where memory is short: an image is blamed for the second death.

        Raises:
            RuntimeError: a child does not start.
        """
        suspected = False
        while True:
            child = await self._free.get()
            try:
                return await child.process(data)
            except _DiedOfAnotherError:
                continue
            except _DiedError as death:
                if suspected:
                    return Picture(reason=Reason.DECODER_DIED, error_message=f"{Reason.DECODER_DIED.value} ({death})")
                suspected = True
            finally:
                self._free.put_nowait(child)

    async def close(self) -> None:
        """End all children."""
        for child in self._children:
            await child.close()


class _DiedError(Exception):
    """The child died while it had this image."""


class _DiedOfAnotherError(Exception):
    """The child died before it came to this image."""


class _Child:
    """One process, started when it is needed, and again after it has died."""

    def __init__(self, config: ImageConfig, with_phash: bool) -> None:
        self._config = config
        self._options = json.dumps({"config": dataclasses.asdict(config), "with_phash": with_phash})
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._waiting: deque[asyncio.Future[Picture]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._too_long = False

    async def start(self) -> asyncio.subprocess.Process:
        async with self._starting:
            return self._process or await self._start()

    async def process(self, data: bytes) -> Picture:
        process = await self.start()
        answer: asyncio.Future[Picture] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            self._watch(process)
        assert process.stdin is not None
        process.stdin.write(_LENGTH.pack(len(data)) + data)
        with contextlib.suppress(ConnectionError):  # whoever reads its answers sees that it has died
            await process.stdin.drain()
        return await answer

    async def close(self) -> None:
        if self._process is not None and self._reading is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                self._process.kill()
            await self._reading

    async def _start(self) -> asyncio.subprocess.Process:
        for _ in range(_STARTS):
            process = await self._spawn()
            assert process.stdout is not None
            if await process.stdout.read(1):
                break
        else:
            raise RuntimeError(f"a decoder does not start (exit status {await process.wait()})")
        self._process, self._too_long = process, False
        self._reading = asyncio.create_task(self._read(process))
        return process

    async def _spawn(self) -> asyncio.subprocess.Process:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            f"{_DIES_WITH_PARENT.format(parent=os.getpid())}\n{_CHILD}",
            self._options,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_PIPE_BYTES,
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Hand out the answers of a process until it ends."""
        assert process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError, ValueError, TypeError, LookupError):  # or it is no answer
            while True:
                json_bytes, jpg_bytes = _LENGTHS.unpack(await process.stdout.readexactly(_LENGTHS.size))
                values = json.loads(await process.stdout.readexactly(json_bytes))
                values["jpg"] = await process.stdout.readexactly(jpg_bytes) if jpg_bytes else None
                values["reason"] = values["reason"] and Reason(values["reason"])
                self._waiting.popleft().set_result(Picture(**values))
                self._watch(process)
        # Before anything is waited for, since a new child may be started meanwhile
        self._process, waiting, self._waiting = None, self._waiting, deque()
        too_long = self._too_long
        if self._timer is not None:
            self._timer.cancel()
        try:  # to kill it at once would take its exit status from asyncio, where it is ending by itself
            status = await asyncio.wait_for(process.wait(), _ENDING_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            status = await process.wait()
        for number, answer in enumerate(waiting):
            if number:
                answer.set_exception(_DiedOfAnotherError())
            elif too_long:
                message = f"{Reason.DECODER_TIMEOUT.value} (exit status {status})"
                answer.set_result(Picture(reason=Reason.DECODER_TIMEOUT, error_message=message))
            else:
                answer.set_exception(_DiedError(f"exit status {status}"))

    def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Give the process its time for the image it has come to."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._waiting:
            seconds = self._config.decoder_timeout_seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end, process)

    def _end(self, process: asyncio.subprocess.Process) -> None:
        self._too_long = True
        process.kill()


def serve(config: ImageConfig, with_phash: bool, images: BinaryIO, answers: BinaryIO) -> None:
    """Answer each image that is read, until there are no more."""
    processor = ImageProcessor(config, with_phash=with_phash)
    _limit_memory(config.decoder_memory_gib)
    answers.write(b"!")
    answers.flush()
    while length := images.read(_LENGTH.size):
        picture = processor(images.read(_LENGTH.unpack(length)[0]))
        values = {f.name: getattr(picture, f.name) for f in dataclasses.fields(picture) if f.name != "jpg"}
        text, jpg = json.dumps(values).encode(), picture.jpg or b""
        answers.write(b"".join((_LENGTHS.pack(len(text), len(jpg)), text, jpg)))
        answers.flush()


def _limit_memory(gib: float) -> None:
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    most = now + int(gib * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """The child, with its options as JSON in its only argument."""
    options = json.loads(sys.argv[1])
    for pipe in (0, 1):  # which hold less than an image by themselves
        with contextlib.suppress(OSError):  # a user may have so many bytes in pipes, and some loops take sockets
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    # Whatever else writes to standard output, a library's print say, must not become part of an answer
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        serve(ImageConfig(**options["config"]), options["with_phash"], sys.stdin.buffer, answers)
