"""A web of photographs on loopback, fast enough not to be what is measured: `python -m tests.perf.image_server`.

It answers every path with one of its photographs after 50 to 200 ms, whatever the host, also as a proxy, and says on
standard output where it listens. A path that ends in robots.txt gets a 404.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

LATENCY_SECONDS = (0.05, 0.2)


def photographs(data: Path, size: tuple[int, int], count: int) -> list[bytes]:
    """Real photographs (224 pixels wide and high) enlarged to a size, JPEG of quality 90."""
    images = pq.read_table(data / "photos.parquet", columns=["image"])["image"][:count].to_pylist()
    return [_enlarged(image, size) for image in images]


def _enlarged(image: bytes, size: tuple[int, int]) -> bytes:
    sink = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").resize(size, Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
    return sink.getvalue()


class _Connection(asyncio.Protocol):
    def __init__(self, bodies: Sequence[bytes]) -> None:
        self._bodies = bodies
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            number = zlib.crc32(path)
            shortest, longest = LATENCY_SECONDS
            seconds = shortest + (longest - shortest) * (number % 1000) / 1000
            asyncio.get_running_loop().call_later(seconds, self._answer, path, number)

    def _answer(self, path: bytes, number: int) -> None:
        if self._transport.is_closing():
            return
        if path.endswith(b"/robots.txt"):
            self._transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        body = self._bodies[number % len(self._bodies)]
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body))
        self._transport.write(body)


async def _serve(bodies: Sequence[bytes]) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(bodies), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
