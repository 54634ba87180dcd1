"""Serve photographs on loopback from a separate process, fast enough not to be the bottleneck of a measurement.

Every path on every host returns one of the photographs after 50 to 200 ms; the server also works as a proxy. robots.txt
returns 404. /sent returns the times at which photographs were sent since the previous request for /sent.
"""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import time
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

SHORTEST_SECONDS, LONGEST_SECONDS = 0.05, 0.2
"""Range of delays before a photograph is sent. The path determines the photograph and its delay."""


@contextmanager
def image_server(data: Path, size: tuple[int, int], num_photographs: int) -> Iterator[int]:
    """Serve photographs of this size; yields the port."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_run, args=(theirs, data, size, num_photographs), name="image server")
    server.start()
    try:
        yield ours.recv()
    finally:
        server.terminate()
        server.join()


def sent(port: int) -> list[float]:
    """The times in seconds at which photographs were sent since the last call, in ascending order."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/sent") as response:
        times: list[float] = json.load(response)
    return times


def photographs(data: Path, size: tuple[int, int], count: int) -> list[bytes]:
    """Real photographs of 224x224 pixels, enlarged to `size` and encoded as JPEG of quality 90."""
    images = pq.read_table(data / "photos.parquet", columns=["image"])["image"][:count].to_pylist()
    return [_enlarged(image, size) for image in images]


def _enlarged(image: bytes, size: tuple[int, int]) -> bytes:
    sink = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
    return sink.getvalue()


class _Web(asyncio.Protocol):
    """One connection; all connections share `times`."""

    def __init__(self, bodies: Sequence[bytes], times: list[float]) -> None:
        self._bodies, self._times = bodies, times
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            number = zlib.crc32(path.rpartition(b"/")[2])  # requests to a proxy contain the whole URL
            if path.endswith(b"/robots.txt"):
                self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            elif path == b"/sent":
                self._answer(json.dumps(self._times).encode())
                self._times.clear()
            else:
                seconds = SHORTEST_SECONDS + (LONGEST_SECONDS - SHORTEST_SECONDS) * (number % 1000) / 1000
                asyncio.get_running_loop().call_later(seconds, self._photograph, number)

    def _photograph(self, number: int) -> None:
        self._times.append(time.monotonic())
        self._answer(self._bodies[number % len(self._bodies)])

    def _answer(self, body: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
            self._transport.write(body)


def _run(parent: Connection, data: Path, size: tuple[int, int], num_photographs: int) -> None:
    bodies, times = photographs(data, size, num_photographs), list[float]()

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Web(bodies, times), "127.0.0.1", 0, backlog=1024)
        parent.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())
