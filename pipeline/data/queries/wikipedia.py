"""Extract the articles of a Wikipedia dump as plain text.

A dump (pages-articles: XML in bz2, one stream or many) is read in ranges of compressed bytes, so that one large file
makes many parts. A range has the bz2 streams that begin in it, and the pages that begin in those streams, wherever the
pages end. Each page is parsed separately (mwxml), and its markup is converted to text (wikitext.py). Unreadable pages
and streams become rows with a reason.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from html import unescape
from itertools import islice
from typing import BinaryIO

import mwxml
import pyarrow as pa
from mwxml.errors import MalformedXML

from pipeline.data.queries.wiki_site import Site, read_siteinfo
from pipeline.data.queries.wikitext import clean
from pipeline.data.sources.byte_ranges import ByteRange
from pipeline.reasons import Reason
from pipeline.schemas import ARTICLES

READ_BYTES = 2**20
MAX_PAGE_BYTES = 8 * 2**20
"""Maximum bytes of a page's XML. MediaWiki accepts at most 2 MiB of markup, so a longer page is broken."""

MAX_PAGE_TAGS = 100_000
"""Maximum tags of a page's XML. A page has about 20, since its markup is escaped; a parser keeps each in memory."""

_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_MAGIC_BYTES = 10
_OPEN, _CLOSE = b"<page>", b"</page>"
_TITLE = re.compile(r"<title>([^<]{0,2000}+)</title>")
_MAX_HEAD_PIECES = 64
"""Maximum number of pieces of decompressed data in which <siteinfo> is looked for; each has about a megabyte."""
_FEED_BYTES = 2**16
"""Compressed bytes that are decompressed at once; the rest of them is copied at the end of each stream."""


def read_site(file: BinaryIO) -> Site:
    """The facts of the wiki in <siteinfo>, at the beginning of a dump; the defaults of `Site` if it is not there."""
    head = bytearray()
    for piece in islice(_streams(file, ByteRange("", 0, 1)), _MAX_HEAD_PIECES):
        if isinstance(piece, Reason):
            break
        head += piece[0]
        if len(head) >= READ_BYTES or _OPEN in head or b"</siteinfo>" in head:
            break
    return read_siteinfo(bytes(head.partition(_OPEN)[0]).decode("utf-8", "replace"))


def read_articles(file: BinaryIO, byte_range: ByteRange, site: Site | None = None) -> pa.Table:
    """Read ARTICLES from the streams that begin in a byte range of a dump.

    Redirects, pages of other namespaces, broken pages, and broken or truncated streams are rows with a reason.

    Args:
        file: the dump.
        byte_range: the range.
        site: the wiki, from `read_site`. Unset: it is read from the beginning of the dump.
    """
    site = read_site(file) if site is None else site
    pages = _pages(file, byte_range)
    rows = [_article(page, site) if isinstance(page, bytes) else (None, None, page) for page in pages]
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], []], schema=ARTICLES)


def check_dump(file: BinaryIO, uri: str) -> None:
    """Check that a file is a bz2 file.

    Raises:
        ValueError: it is not.
    """
    if not _STREAM.match(file.read(_MAGIC_BYTES)):
        raise ValueError(f"wikipedia={uri}: not a bz2 file; give a dump named ...-pages-articles.xml.bz2")


def _article(xml: bytes, site: Site) -> tuple[str | None, str | None, Reason | None]:
    """Title, text and reason of a page."""
    text = xml.decode("utf-8", "replace")
    try:
        if text.count("<") > MAX_PAGE_TAGS:
            raise MalformedXML(f"more than {MAX_PAGE_TAGS} tags")
        page = next(mwxml.Dump.from_page_xml(text).pages)
        if page.namespace != 0:
            return page.title, None, Reason.NOT_AN_ARTICLE
        if page.redirect is not None:
            return page.title, None, Reason.REDIRECT
        return page.title, clean(next(iter(page)).text or "", site), None
    except Exception:  # noqa: BLE001 - whatever a page does to a parser, only this page cannot be read
        title = _TITLE.search(text)
        return unescape(title[1]).replace("_", " ") if title else None, None, Reason.BROKEN_PAGE


def _pages(file: BinaryIO, byte_range: ByteRange) -> Iterator[bytes | Reason]:
    """The XML of each page of the streams that begin in the range, or the reason why it cannot be read."""
    data = _Decompressed(_streams(file, byte_range))
    while data.seek(_OPEN) and data.is_own:
        page = data.take(_CLOSE, MAX_PAGE_BYTES)
        yield from data.faults()
        if page is None:
            yield Reason.BROKEN_PAGE
        else:
            first = page.rfind(_OPEN)
            if first:  # the end of one page and the beginning of the next are lost
                yield Reason.BROKEN_PAGE
            yield page[first:]
    yield from data.faults()


class _Decompressed:
    """Decompressed data, searched in forward direction only."""

    def __init__(self, pieces: Iterator[tuple[bytes, bool] | Reason]) -> None:
        self._pieces = pieces
        self._data = bytearray()
        self._position = 0
        self._searched = 0
        """Before this position, the token of `take` does not begin."""
        self._own_end = 0
        self._faults: list[Reason] = []

    @property
    def is_own(self) -> bool:
        """Whether the next byte belongs to a stream that begins in the range."""
        return self._position < self._own_end

    def seek(self, token: bytes) -> bool:
        """Move to the next occurrence of a token; False if the data ends before one."""
        while (index := self._data.find(token, self._position)) < 0:
            self._position = max(self._position, len(self._data) - len(token) + 1)
            if not self._read():
                return False
        self._position = index
        return True

    def take(self, token: bytes, max_bytes: int) -> bytes | None:
        """Take the data up to the end of the next token; if it is too far away, skip one byte and return None.

        All calls must have the same token: what one call has searched, the next does not search again.
        """
        while True:
            end = self._position + max_bytes + len(token)
            index = self._data.find(token, max(self._position, self._searched), end)
            if index >= 0:
                break
            self._searched = max(self._searched, min(len(self._data), end) - len(token) + 1)
            if len(self._data) >= end or not self._read():
                self._position += 1
                return None
        first, self._position = self._position, index + len(token)
        return bytes(self._data[first : self._position])

    def faults(self) -> Iterator[Reason]:
        """The faults of the streams since the last call."""
        yield from self._faults
        self._faults.clear()

    def _read(self) -> bool:
        for piece in self._pieces:
            if isinstance(piece, Reason):
                self._faults.append(piece)
                continue
            data, is_own = piece
            self._own_end = max(0, self._own_end - self._position)
            self._searched = max(0, self._searched - self._position)
            del self._data[: self._position]
            self._data += data
            self._position = 0
            if is_own:
                self._own_end = len(self._data)
            return True
        return False


def _streams(file: BinaryIO, byte_range: ByteRange) -> Iterator[tuple[bytes, bool] | Reason]:
    """The data of every bz2 stream from the range's start on, and whether the stream begins in the range."""
    file.seek(byte_range.start)
    raw, start, offset = b"", 0, byte_range.start  # bytes of the file, where to look for a stream, and their offset
    while True:
        magic = _STREAM.search(raw, start)
        if not magic:
            more = file.read(READ_BYTES)
            if not more:
                return
            tail = raw[max(start, len(raw) - _MAGIC_BYTES + 1) :]
            raw, start, offset = tail + more, 0, offset + len(raw) - len(tail)
            continue
        position = magic.start()
        is_own = offset + position < byte_range.stop
        start = position + 1  # where to look on if the stream is broken
        decompressor = bz2.BZ2Decompressor()
        while not decompressor.eof:
            chunk = memoryview(b"")
            if decompressor.needs_input:
                if position == len(raw):
                    more = file.read(READ_BYTES)
                    if not more:
                        yield Reason.TRUNCATED_RECORD
                        return
                    raw, start, position, offset = more, 0, 0, offset + len(raw)
                chunk = memoryview(raw)[position : position + _FEED_BYTES]
                position += len(chunk)
            try:
                data = decompressor.decompress(chunk, READ_BYTES)
            except OSError:
                yield Reason.BROKEN_ARCHIVE
                break
            yield data, is_own
        else:
            start = position - len(decompressor.unused_data)
