"""Records of a WARC file (ISO 28500), whole or with a word about what is missing.

Archives are gzip member after gzip member, one record in each. Such a member is inflated in one call (libdeflate, some
three times as fast as zlib's streams). Whatever is otherwise - plain files, zstd, one member for all records, a huge
record, damage - FastWARC reads from there on, record by record, and what it passes over in silence is found here.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar

import deflate
import numpy as np
from fastwarc.warc import ArchiveIterator

GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DAMAGE = (OSError, EOFError, zlib.error)
"""What reading an archive raises where it is damaged."""
T = TypeVar("T")
_MEMBER = GZIP_MAGIC + b"\x08"
_TRAILER = struct.Struct("<II")  # RFC 1952: CRC-32 and size of what was compressed
_WINDOW_BYTES = 512 * 1024
_LINE_BYTES = 1 << 16
_NAMES = ("WARC-Type", "WARC-Target-URI", "WARC-Date", "Content-Type", "Content-Length")
_USUAL = {name: b"\r\n%s: " % name.encode() for name in _NAMES}
_HEADERS = {name: re.compile(rb"(?im)^%s[ \t]*:[ \t]*([^\r\n]*)" % name.encode()) for name in _NAMES}


class ReadError(RuntimeError):
    """The bytes of a file do not come; what they would say is unknown, and the work has to be done again."""


class Source:
    """A stream whose own faults are told from damage of what it holds: they are ReadErrors."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """As of any stream."""
        return _do(self._stream.read, size)

    def readline(self, size: int = -1) -> bytes:
        """As of any stream."""
        return _do(self._stream.readline, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of any stream."""
        return _do(self._stream.seek, offset, whence)

    def tell(self) -> int:
        """As of any stream."""
        return _do(self._stream.tell)


def _do(action: Callable[..., T], *arguments: int) -> T:
    try:
        return action(*arguments)
    except OSError as error:
        raise ReadError(str(error)) from error


class Record(NamedTuple):
    """One record of an archive."""

    offset: int
    """The first byte in the (compressed) file."""
    head: bytes
    content: bytes | memoryview
    """Up to `max_bytes` of it."""
    is_whole: bool
    """Whether the file holds as many bytes of content as the head says."""

    def header(self, name: str) -> str:
        """The value of one of the headers that are read here, or an empty text."""
        return _header(self.head, name).decode("utf-8", "replace").strip()


def read_records(stream: Any, max_bytes: int) -> Iterator[Record]:
    """Every record from the start of a stream that can be sought.

    Args:
        stream: the archive.
        max_bytes: of a record's content; what is behind them is counted only.

    Raises:
        OSError, EOFError, zlib.error: damage, after the records before it; `DAMAGE` names all of them. A last record
            that ends early is a record that is not whole.
        ReadError: the archive's bytes do not come.
    """
    stream = Source(stream)
    start = 0
    for record, end in _members(stream, max_bytes):
        yield record
        start = end
    stream.seek(start)
    if not stream.read(1):
        return
    stream.seek(start)
    offsets: list[int] = []
    is_whole = True
    for found in ArchiveIterator(stream, parse_http=False):
        offsets.append(int(found.stream_pos))
        # The iterator ends without a word where a file ends inside a record, so the lengths are compared here
        content = found.reader.read(max_bytes)
        length = len(content)
        while chunk := found.reader.read(1 << 20):
            length += len(chunk)
        is_whole = length >= found.content_length
        head = "".join(f"\r\n{name}: {value}" for name, value in found.headers.items()) + "\r\n"
        yield Record(offsets[-1], head.encode("utf-8", "replace"), content, is_whole)
    if is_whole:
        _check_end(stream, start, offsets)


def _members(stream: Any, max_bytes: int) -> Iterator[tuple[Record, int]]:
    """Records that are a gzip member each, with the byte where the next begins, up to the first thing that is not."""
    stream.seek(0)
    position, window = 0, stream.read(_WINDOW_BYTES)
    is_last = not window.startswith(_MEMBER)
    while not is_last:
        more = stream.read(_WINDOW_BYTES)
        is_last = not more
        start, view = 0, memoryview(window)
        # A member ends where the next one begins; what only looks like a beginning costs one more turn
        for end in [*_starts(window), *([len(window)] if is_last else [])]:
            record = _record(position + start, view[start:end], max_bytes) if end > start else None
            if record is not None:
                yield record, position + end
                start = end
            elif end - start > max_bytes:
                return
        position, window = position + start, window[start:] + more
        if len(window) > max_bytes + 2 * _WINDOW_BYTES:
            return


def _starts(window: bytes) -> list[int]:
    """Where a gzip member seems to begin."""
    octets = np.frombuffer(window, np.uint8)
    found = np.flatnonzero(octets[:-2] == _MEMBER[0])
    for place in (1, 2):
        found = found[octets[found + place] == _MEMBER[place]]
    starts: list[int] = found.tolist()
    return starts


def _record(offset: int, member: memoryview, max_bytes: int) -> Record | None:
    """The one record that a gzip member is, or None where it is anything else."""
    if len(member) < _TRAILER.size:
        return None
    checksum, num_bytes = _TRAILER.unpack(member[-_TRAILER.size :])
    if num_bytes > max_bytes:
        return None
    try:
        data = deflate.gzip_decompress(member, num_bytes)
    except deflate.DeflateError:
        return None
    # A member that ends earlier is inflated as well, and what is behind it would be lost
    if len(data) != num_bytes or deflate.crc32(data) != checksum:
        return None
    end = data.find(b"\r\n\r\n")
    length = num_bytes - end - 8  # less the empty lines behind head and content
    if not data.startswith(b"WARC/") or end < 0 or not data.endswith(b"\r\n\r\n"):
        return None
    head = bytes(memoryview(data)[: end + 2])
    if b"\r\nContent-Length: %d\r\n" % length not in head and _header(head, "Content-Length") != b"%d" % length:
        return None
    return Record(offset, head, memoryview(data)[end + 4 : num_bytes - 4], True)


def _header(head: bytes, name: str) -> bytes:
    usual = _USUAL[name]
    at = head.find(usual)
    if at >= 0:  # many times as fast as the pattern
        return head[at + len(usual) : head.find(b"\r\n", at + 2)]
    found = _HEADERS[name].search(head)
    return found[1] if found else b""


def _check_end(stream: Any, begin: int, offsets: Sequence[int]) -> None:
    """Make sure that the last record is whole and that none follows it.

    FastWARC stops without a word where a file ends inside a record's headers or inside a gzip member, as half a
    download does, and where a member cannot be opened; so the last record is read once more. Of zstd it tells.

    Args:
        stream: the archive.
        begin: the byte from which on FastWARC has read.
        offsets: first byte of each record that was found, in ascending order.

    Raises:
        OSError, EOFError, zlib.error: the archive has more than these records, or ends inside one.
    """
    start = offsets[-1] if offsets else begin
    stream.seek(begin)
    magic = stream.read(4)
    if magic == ZSTD_MAGIC:
        return
    stream.seek(start)
    if magic.startswith(GZIP_MAGIC) and stream.read(2) != GZIP_MAGIC:
        start = begin  # all records are in one gzip member, and the offsets tell nothing
    stream.seek(start)
    if magic.startswith(GZIP_MAGIC):
        with gzip.GzipFile(fileobj=stream) as members:
            found = _count_records(members)
    else:
        found = _count_records(stream)
    if found != sum(offset >= start for offset in offsets):
        raise EOFError(f"not every record from byte {start} on was found")


def _count_records(stream: Any) -> int:
    """The records from here to the end of a stream, each of which must be whole."""
    count = 0
    while line := stream.readline(_LINE_BYTES):
        if not line.strip():
            continue
        if not line.startswith(b"WARC/"):
            raise OSError(f"{line[:20]!r} stands in the place of a record")
        length = 0
        while (header := stream.readline(_LINE_BYTES)).strip(b"\r\n"):
            name, _, value = header.partition(b":")
            if name.strip().lower() == b"content-length":
                length = _length(value)
        if not header:
            raise EOFError("the archive ends inside a record's headers")
        while length:
            chunk = stream.read(min(length, 1 << 20))
            if not chunk:
                raise EOFError("the archive ends inside a record")
            length -= len(chunk)
        count += 1
    return count


def _length(value: bytes) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise OSError(f"Content-Length is {value[:20]!r}") from error
