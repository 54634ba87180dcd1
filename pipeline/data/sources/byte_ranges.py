"""Byte ranges of large files: what makes one file many parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

READ_BYTES = 2**20

Opener = Callable[[str], Any]
"""Opens the file at a URI for reading; the storage is the caller's."""


@dataclass(frozen=True)
class ByteRange:
    """The bytes of a file from `start` to before `stop`. What begins in them belongs to them."""

    uri: str
    start: int
    stop: int


def cut(files: Iterable[tuple[str, int]], max_bytes: int) -> list[ByteRange]:
    """Files, given with their sizes, in extents of some bytes; an empty file has one as well."""
    return [
        ByteRange(uri, start, min(start + max_bytes, size))
        for uri, size in files
        for start in range(0, max(size, 1), max_bytes)
    ]


def read_lines(file: BinaryIO, extent: ByteRange) -> Iterator[str]:
    """The lines that begin in an extent, without their ends; what is not UTF-8 in them is U+FFFD."""
    file.seek(max(0, extent.start - 1))
    if extent.start:
        file.readline()  # of the line that begins before; where that ends is where ours begin
    while file.tell() < extent.stop and (line := file.readline()):
        yield line.rstrip(b"\r\n").decode("utf-8", "replace")


def sha256(file: BinaryIO) -> str:
    """Of all that is left of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    while data := file.read(READ_BYTES):
        digest.update(data)
    return digest.hexdigest()
