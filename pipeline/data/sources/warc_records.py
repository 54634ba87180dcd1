"""Read the records of a WARC file (ISO 28500) and detect incomplete records.

Most archives are a sequence of gzip members with one record each. Such a member is inflated in one call (libdeflate,
about three times as fast as zlib's streams). From the first exception on (plain files, zstd, one member for all
records, a huge record, damage) FastWARC reads the rest record by record. FastWARC ignores some damage silently; this
module detects it.
"""

from __future__ import annotations

import gzip
import io
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
"""Exceptions that reading a damaged archive raises."""
T = TypeVar("T")
_MEMBER = GZIP_MAGIC + b"\x08"
_TRAILER = struct.Struct("<II")  # RFC 1952: CRC-32 and size of what was compressed
_WINDOW_BYTES = 512 * 1024
_MAX_TRIES, _MAX_TRIED_BYTES = 2, 2**28
"""A page can be full of false starts, and each may be inflated from the member's begin on. Once this many times the
archive, and this many bytes more, have been inflated, FastWARC reads the rest."""
_LINE_BYTES = 1 << 16
_MAX_LENGTH_DIGITS = 18
_NAMES = ("WARC-Type", "WARC-Target-URI", "WARC-Date", "Content-Type", "Content-Length")
_USUAL = {name: b"\r\n%s: " % name.encode() for name in _NAMES}
_HEADERS = {name: re.compile(rb"(?im)^%s[ \t]*:[ \t]*([^\r\n]*)" % name.encode()) for name in _NAMES}


class ReadError(RuntimeError):
    """The storage failed to deliver a file's bytes. The content is unknown, so the work must be repeated."""


class Source:
    """A seekable stream that raises ReadError if its storage fails, to distinguish this from damaged content.

    Sizes in damaged content may be absurd. So it can be asked for any number of bytes at any offset, and its storage is
    only asked for those that exist.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        position = self.tell()
        self._num_bytes = self._seek(0, io.SEEK_END)
        self._seek(position)

    def read(self, size: int = -1) -> bytes:
        """Read like any stream; raise ReadError if the storage fails."""
        return _reading(self._stream.read, min(size, self._num_bytes))

    def readline(self, size: int = -1) -> bytes:
        """Read a line like any stream; raise ReadError if the storage fails."""
        return _reading(self._stream.readline, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek like any stream, but not beyond the beginning and the end; raise ReadError if the storage fails."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._num_bytes}[whence]
        return self._seek(min(max(0, start + offset), self._num_bytes))

    def tell(self) -> int:
        """Return the position like any stream; raise ReadError if the storage fails."""
        return _reading(self._stream.tell)

    def _seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return _reading(self._stream.seek, offset, whence)


def _reading(action: Callable[..., T], *arguments: int) -> T:
    try:
        return action(*arguments)
    except OSError as error:
        raise ReadError(str(error)) from error


class Record(NamedTuple):
    """One record of an archive, possibly truncated."""

    offset: int
    """Offset of the first byte in the (compressed) file."""
    head: bytes
    content: bytes | memoryview
    """The content, up to `max_bytes`."""
    is_whole: bool
    """Whether the file contains as many bytes of content as the header announces."""

    def header(self, name: str) -> str:
        """The value of one of the headers in `_NAMES`, or an empty string."""
        return _header(self.head, name).decode("utf-8", "replace").strip()


def read_records(stream: Any, max_bytes: int) -> Iterator[Record]:
    """Iterate over all records of a seekable stream, from its start.

    Args:
        stream: the archive.
        max_bytes: maximum bytes of a record's content; the bytes after them are only counted.

    Raises:
        OSError, EOFError, zlib.error: the archive is damaged (`DAMAGE` lists these types). The records before the
            damage are yielded first. A truncated last record may be yielded with `is_whole` False instead.
        ReadError: the storage failed to deliver the archive's bytes.
    """
    stream = Source(stream)
    start = 0
    for record, end in _members(stream, max_bytes):
        if record.head or not record.is_whole:  # not a blank member
            yield record
        start = end
    stream.seek(start)
    if not stream.read(1):
        return
    stream.seek(start)
    offsets: list[int] = []
    is_whole = True
    for warc_record in ArchiveIterator(stream, parse_http=False):
        offsets.append(int(warc_record.stream_pos))
        # The iterator ends silently if a file ends inside a record, so the lengths are compared here
        content = warc_record.reader.read(max_bytes)
        length = len(content)
        while chunk := warc_record.reader.read(1 << 20):
            length += len(chunk)
        is_whole = length >= warc_record.content_length
        head = "".join(f"\r\n{name}: {value}" for name, value in warc_record.headers.items()) + "\r\n"
        yield Record(offsets[-1], head.encode("utf-8", "replace"), content, is_whole)
    if is_whole:
        _check_end(stream, start, offsets)


def _members(stream: Any, max_bytes: int) -> Iterator[tuple[Record, int]]:
    """Records stored as one gzip member each, with their end offsets, up to the first record stored differently."""
    stream.seek(0)
    position, window, num_tried = 0, stream.read(_WINDOW_BYTES), 0
    is_last = not window.startswith(_MEMBER)
    while not is_last:
        more = stream.read(_WINDOW_BYTES)
        is_last = not more
        start, view = 0, memoryview(window)
        # A member ends where the next one begins; a false start only costs one more iteration
        for end in [*_starts(window), *([len(window)] if is_last else [])]:
            num_tried += end - start
            record = _record(position + start, view[start:end], max_bytes) if end > start else None
            if record is not None:
                yield record, position + end
                start = end
            elif end - start > max_bytes or num_tried > _MAX_TRIES * (position + end) + _MAX_TRIED_BYTES:
                return
        position, window = position + start, window[start:] + more
        if len(window) > max_bytes + 2 * _WINDOW_BYTES:
            return


def _starts(window: bytes) -> list[int]:
    """Offsets at which a gzip member may begin."""
    octets = np.frombuffer(window, np.uint8)
    matches = np.flatnonzero(octets[:-2] == _MEMBER[0])
    for index in (1, 2):
        matches = matches[octets[matches + index] == _MEMBER[index]]
    starts: list[int] = matches.tolist()
    return starts


def _record(offset: int, member: memoryview, max_bytes: int) -> Record | None:
    """The record in a gzip member, or None if the member is not exactly one record of at most `max_bytes`.

    A member that is evidently no record counts as one without content, so that the records after it are read. A blank
    member has no header and is whole.
    """
    if len(member) < _TRAILER.size:
        return None
    checksum, num_bytes = _TRAILER.unpack(member[-_TRAILER.size :])
    if num_bytes > max_bytes:
        return None
    try:
        data = deflate.gzip_decompress(member, num_bytes)
    except deflate.DeflateError:
        return None
    # libdeflate also accepts a member that ends early, and the bytes after its end would be lost
    if len(data) != num_bytes or deflate.crc32(data) != checksum:
        return None
    end = data.find(b"\r\n\r\n")
    length = num_bytes - end - 8  # without the empty lines after header and content
    if data.startswith(b"WARC/") and end >= 0 and data.endswith(b"\r\n\r\n"):
        head = bytes(memoryview(data)[: end + 2])
        is_announced = b"\r\nContent-Length: %d\r\n" % length in head  # the usual spelling
        announced = b"" if is_announced else _header(head, "Content-Length")
        if is_announced or announced == b"%d" % length:
            return Record(offset, head, memoryview(data)[end + 4 : num_bytes - 4], True)
        if announced.strip(b"+").isdigit() and len(announced) <= _MAX_LENGTH_DIGITS:
            return None
    if not data.strip():
        return Record(offset, b"", b"", True) if _is_one_member(member, num_bytes) else None
    if data.find(b"\nWARC/", 5) >= 0:
        return None
    # FastWARC would read nothing after a member that is no record
    return Record(offset, bytes(data[:end]) if data.startswith(b"WARC/") else b"", b"", False)


def _is_one_member(member: memoryview, num_bytes: int) -> bool:
    """Whether these bytes are one gzip member of `num_bytes`; the end of another may look like the trailer of none."""
    inflater = zlib.decompressobj(31)
    num_inflated = len(inflater.decompress(member, num_bytes + 1))
    return num_inflated == num_bytes and inflater.eof and not inflater.unused_data


def _header(head: bytes, name: str) -> bytes:
    usual = _USUAL[name]
    start = head.find(usual)
    if start >= 0:  # much faster than the regular expression
        return head[start + len(usual) : head.find(b"\r\n", start + 2)]
    match = _HEADERS[name].search(head)
    return match[1] if match else b""


def _check_end(stream: Any, begin: int, offsets: Sequence[int]) -> None:
    """Make sure that the last record is whole and that none follows it.

    FastWARC stops silently if a file ends inside a record's headers or inside a gzip member, as a partial download
    does, and if a member cannot be opened. The last record is therefore read again. FastWARC does report damaged zstd.

    Args:
        stream: the archive.
        begin: offset at which FastWARC began to read.
        offsets: offset of each record that FastWARC found, in ascending order.

    Raises:
        OSError, EOFError, zlib.error: the archive has more records than these, or ends inside a record.
    """
    start = offsets[-1] if offsets else begin
    stream.seek(begin)
    magic = stream.read(4)
    if magic == ZSTD_MAGIC:
        return
    stream.seek(start)
    if magic.startswith(GZIP_MAGIC) and stream.read(2) != GZIP_MAGIC:
        start = begin  # one gzip member contains all records, so the offsets are useless
    stream.seek(start)
    if magic.startswith(GZIP_MAGIC):
        with gzip.GzipFile(fileobj=stream) as members:
            num_records = _count_records(members)
    else:
        num_records = _count_records(stream)
    if num_records != sum(offset >= start for offset in offsets):
        raise EOFError(f"some records from byte {start} on cannot be read")


def _count_records(stream: Any) -> int:
    """Count the records from the current position to the end of a stream; each record must be complete."""
    count = 0
    while line := stream.readline(_LINE_BYTES):
        if not line.strip():
            continue
        if not line.startswith(b"WARC/"):
            raise OSError(f"expected a record, found {line[:20]!r}")
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
    if not value.strip().isdigit():
        raise OSError(f"Content-Length is {value[:20]!r}")
    return int(value.strip()[:20])  # no file has as many bytes as 20 digits can say
