"""Decode images in child processes, so that a crash in native code costs one row.

This module contains both ends of the pipe. `main` is the child process: it reads images from standard input and writes
results to standard output. Its memory is limited, its environment holds no secrets, it inherits no connections, and it
ends when its parent ends. The parent keeps several children busy, kills a child that takes too long, replaces a child
that has died, and blames the image that was being decoded. Results are plain JSON and bytes, so a child that a hostile
image has taken over cannot make its parent execute code.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import struct
import sys
from collections import deque
from typing import Any, BinaryIO

from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.piped_process import PipedProcess
from pipeline.data.images.resize import ImageProcessor, Picture
from pipeline.isolation import environment, limit_memory, python_command, widen_pipe
from pipeline.printable import message_of
from pipeline.reasons import Reason

_QUEUED_PER_CHILD = 8
"""Images queued per child, so that the next image is ready when the child has finished the current one."""
_LENGTH = struct.Struct("<I")
_LENGTHS = struct.Struct("<II")
"""Sizes in bytes of a result's JSON and of its JPEG."""
_CHILD = "from pipeline.data.images.decoders import main; main()"
_BUFFERED_BYTES = 1 << 20
"""Of results that the parent has not read yet."""
_NUMBERS = frozenset({"width", "height", "original_width", "original_height", "phash"})
"""Fields of a result that are numbers; all others in its JSON are strings."""
_EXIT_SECONDS = 1.0
"""Time for a child to exit by itself after its output has ended."""
_START_ATTEMPTS = 3
"""Attempts to start a child, because a child may be killed before it is ready."""


class Decoders:
    """Check and resize images in child processes. Use each instance from one event loop only."""

    def __init__(self, config: ImageConfig, *, with_phash: bool = False) -> None:
        self._children = [_Child(config, with_phash) for _ in range(config.num_decoders)]
        self._free: asyncio.Queue[_Child] = asyncio.Queue()
        for child in self._children * _QUEUED_PER_CHILD:
            self._free.put_nowait(child)

    async def start(self) -> None:
        """Start all children before the first image arrives; starting one takes about a second.

        Raises:
            DecoderStartError: a child did not start.
        """
        await asyncio.gather(*(child.start() for child in self._children))

    async def __call__(self, data: bytes) -> Picture:
        """Check and resize an image. Waits while all children are busy, so that fetching cannot outrun decoding.

        When memory is short, a child may be killed because of other processes, so an image is tried once more after
        its child has died, and is refused when a second child dies.

        Raises:
            DecoderStartError: a child did not start.
        """
        suspected = False
        while True:
            child = await self._free.get()
            try:
                return await child.process(data)
            except _DiedEarlierError:
                continue
            except _DiedDecodingError as death:
                if suspected:
                    return Picture(reason=Reason.DECODER_DIED, error_message=f"{Reason.DECODER_DIED.value} ({death})")
                suspected = True
            finally:
                self._free.put_nowait(child)

    async def close(self) -> None:
        """End all children."""
        for child in self._children:
            await child.close()


class DecoderStartError(RuntimeError):
    """A child did not start, so the machine is at fault and not an image."""


class _DiedDecodingError(Exception):
    """The child died while decoding this image."""


class _DiedEarlierError(Exception):
    """The child died before it started on this image."""


class _Child:
    """One child process. It is started on first use and restarted after it has died."""

    def __init__(self, config: ImageConfig, with_phash: bool) -> None:
        self._config = config
        self._options = json.dumps({"config": dataclasses.asdict(config), "with_phash": with_phash})
        self._process: PipedProcess | None = None
        self._spawned: PipedProcess | None = None
        self._starting = asyncio.Lock()
        self._waiting: deque[asyncio.Future[Picture]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timed_out = False

    async def start(self) -> PipedProcess:
        async with self._starting:
            return self._process or await self._start()

    async def process(self, data: bytes) -> Picture:
        process = await self.start()
        answer: asyncio.Future[Picture] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        if len(self._waiting) == 1:
            self._watch(process)
        process.stdin.write(_LENGTH.pack(len(data)) + data)
        try:
            with contextlib.suppress(ConnectionError):  # _read notices that the child has died
                await process.stdin.drain()
            return await answer
        except asyncio.CancelledError:
            answer.cancel()  # the child decodes the image all the same, but nobody takes its result
            raise

    async def close(self) -> None:
        async with self._starting:  # a child that is starting is ended too
            if self._process is not None and self._reading is not None:
                self._process.kill()
                await self._reading

    async def _start(self) -> PipedProcess:
        for _ in range(_START_ATTEMPTS):
            # asyncio holds tasks and the readers of pipes weakly: without this, a start might be collected as garbage
            process = self._spawned = await self._spawn()
            try:
                if await process.stdout.read(1):
                    break
                status = await process.wait()
            except BaseException:
                process.end()
                raise
        else:
            raise DecoderStartError(f"a decoder process did not start (exit status {status})")
        self._process, self._timed_out = process, False
        self._reading = asyncio.create_task(self._read(process))
        return process

    async def _spawn(self) -> PipedProcess:
        command = python_command(_CHILD, self._options)
        try:
            return await PipedProcess.start(command, environment=environment(), max_buffered_bytes=_BUFFERED_BYTES)
        except OSError as error:
            raise DecoderStartError(f"a decoder process did not start ({error})") from error

    async def _read(self, process: PipedProcess) -> None:
        """Deliver the results of a process until it ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ValueError, TypeError, LookupError):  # malformed results
            while True:
                json_bytes, jpg_bytes = _LENGTHS.unpack(await process.stdout.readexactly(_LENGTHS.size))
                values = json.loads(await process.stdout.readexactly(json_bytes))
                jpg = await process.stdout.readexactly(jpg_bytes) if jpg_bytes else None
                picture = _decoded(values, jpg)
                answer = self._waiting.popleft()
                if not answer.cancelled():
                    answer.set_result(picture)
                self._watch(process)
        # Reset before the first await, because a new child may be started during an await
        self._process, waiting, self._waiting = None, self._waiting, deque()
        timed_out = self._timed_out
        if self._timer is not None:
            self._timer.cancel()
        try:  # let the process end by itself first: killing it now would hide its exit status
            status = await asyncio.wait_for(process.wait(), _EXIT_SECONDS)
        except TimeoutError:
            process.kill()
            status = await process.wait()
        for number, answer in enumerate(waiting):
            if answer.cancelled():
                continue
            if number:
                answer.set_exception(_DiedEarlierError())
            elif timed_out:
                message = f"{Reason.DECODER_TIMEOUT.value} (exit status {status})"
                answer.set_result(Picture(reason=Reason.DECODER_TIMEOUT, error_message=message))
            else:
                answer.set_exception(_DiedDecodingError(f"exit status {status}"))

    def _watch(self, process: PipedProcess) -> None:
        """Restart the timer for the image that the process now decodes, and stop it if none is queued."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._waiting:
            seconds = self._config.decoder_timeout_seconds
            self._timer = asyncio.get_running_loop().call_later(seconds, self._end, process)

    def _end(self, process: PipedProcess) -> None:
        self._timed_out = True
        process.kill()


def _decoded(values: Any, jpg: bytes | None) -> Picture:
    """The result that a child sent. Raises ValueError, TypeError or LookupError if it is malformed."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r} is no object")
    for name, value in values.items():
        if isinstance(value, str):
            value.encode()  # JSON may contain lone surrogates, which Arrow cannot store
        elif value is not None and not (type(value) is int and 0 <= value < 1 << (64 if name == "phash" else 31)):
            raise ValueError(f"{name} = {value!r}")
        if value is not None and isinstance(value, int) != (name in _NUMBERS):
            raise TypeError(f"{name} = {value!r}")
    reason = values.pop("reason")
    return Picture(jpg=jpg, reason=reason and Reason(reason), **values)


def serve(config: ImageConfig, with_phash: bool, images: BinaryIO, answers: BinaryIO) -> None:
    """Process images from `images` until the stream ends, and write each result to `answers`."""
    processor = ImageProcessor(config, with_phash=with_phash)
    limit_memory(config.decoder_memory_gib)
    answers.write(b"!")
    answers.flush()
    while length := images.read(_LENGTH.size):
        answers.write(_answer(processor, images.read(_LENGTH.unpack(length)[0])))
        answers.flush()


def _answer(processor: ImageProcessor, data: bytes) -> bytes:
    """The encoded result for one image, whatever the processor raises.

    Raises:
        MemoryError: the process ends, because its memory is not what it was; another one tries the image again.
    """
    try:
        return _encoded(processor(data))
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the bytes of one image cause costs its own row only
        sha256 = hashlib.sha256(data).hexdigest()
        return _encoded(Picture(reason=Reason.CORRUPT_IMAGE, error_message=message_of(error), sha256=sha256))


def _encoded(picture: Picture) -> bytes:
    values = {f.name: getattr(picture, f.name) for f in dataclasses.fields(picture) if f.name != "jpg"}
    text, jpg = json.dumps(values).encode(), picture.jpg or b""
    return b"".join((_LENGTHS.pack(len(text), len(jpg)), text, jpg))


def main() -> None:
    """Run the child process. Its only command line argument holds its options as JSON."""
    options = json.loads(sys.argv[1])
    for pipe in (0, 1):  # by default a pipe buffers less than one image
        widen_pipe(pipe)
    # Other output to standard output, such as a library's print, must not mix with the results
    with os.fdopen(os.dup(1), "wb", buffering=0) as answers:
        os.dup2(2, 1)
        serve(ImageConfig(**options["config"]), options["with_phash"], sys.stdin.buffer, answers)
