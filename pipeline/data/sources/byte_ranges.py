"""Split large files into byte ranges, so that one file becomes many parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

READ_BYTES = 2**20

Opener = Callable[[str], Any]
"""Opens the file at a URI for reading; the caller chooses the storage."""


@dataclass(frozen=True)
class ByteRange:
    """The bytes of a file from `start` up to but excluding `stop`. A record belongs to the range in which it begins."""

    uri: str
    start: int
    stop: int


def cut(files: Iterable[tuple[str, int]], max_bytes: int) -> list[ByteRange]:
    """Split files, given as (URI, size), into ranges of at most `max_bytes`; an empty file gives one empty range."""
    return [
        ByteRange(uri, start, min(start + max_bytes, size))
        for uri, size in files
        for start in range(0, max(size, 1), max_bytes)
    ]


def read_lines(file: BinaryIO, byte_range: ByteRange) -> Iterator[str]:
    """Read the lines that begin in a range, without line ends; invalid UTF-8 is replaced by U+FFFD."""
    file.seek(max(0, byte_range.start - 1))
    if byte_range.start:
        file.readline()  # the end of a line that begins before the range
    while file.tell() < byte_range.stop and (line := file.readline()):
        yield line.rstrip(b"\r\n").decode("utf-8", "replace")


def sha256(file: BinaryIO) -> str:
    """The SHA-256 of a file from its current position to its end, in hexadecimal digits."""
    digest = hashlib.sha256()
    while data := file.read(READ_BYTES):
        digest.update(data)
    return digest.hexdigest()
