"""Extract the articles of a Wikipedia dump as plain text.

A dump (pages-articles: XML in bz2, one stream or many) is read in ranges of compressed bytes, so that one large file
makes many parts. A range has the bz2 streams that begin in it, and the pages that begin in those streams, wherever the
pages end. Each page is parsed separately (mwxml), and its markup is converted to text (mwparserfromhell). Unreadable
pages and streams become rows with a reason.
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from typing import BinaryIO
from xml.etree.ElementTree import ParseError

import mwparserfromhell
import mwxml
import pyarrow as pa
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Text, Wikilink
from mwparserfromhell.parser import ParserError
from mwparserfromhell.wikicode import Wikicode
from mwxml.errors import MalformedXML

from pipeline.data.sources.byte_ranges import ByteRange
from pipeline.reasons import Reason
from pipeline.schemas import ARTICLES

READ_BYTES = 2**20
MAX_PAGE_BYTES = 8 * 2**20
"""Maximum bytes of a page's XML. MediaWiki accepts at most 2 MiB of markup, so a longer page is broken."""

_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_MAGIC_BYTES = 10
_OPEN, _CLOSE = b"<page>", b"</page>"
_NO_TEXT_LINK = re.compile(r"(?i)\s*(file|image|media|category|[a-z]{2,3}(-[a-z]+)*)\s*:")
"""Links that show a picture, categorise the page, or lead to the page in another language."""
_NO_TEXT_TAGS = frozenset(
    ("ref", "references", "table", "gallery", "imagemap", "timeline", "math", "chem", "score", "graph", "hiero")
) | {"code", "pre", "source", "syntaxhighlight", "templatestyles", "style", "mapframe"}
_LINE_TAGS = frozenset(("li", "dt", "dd", "br", "hr", "p", "div", "blockquote"))


def read_articles(file: BinaryIO, byte_range: ByteRange) -> pa.Table:
    """Read ARTICLES from the streams that begin in a byte range of a dump.

    Redirects, pages of other namespaces, broken pages, and broken or truncated streams are rows with a reason.
    """
    rows = [_article(page) if isinstance(page, bytes) else (None, None, page) for page in _pages(file, byte_range)]
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], []], schema=ARTICLES)


def check_dump(file: BinaryIO, uri: str) -> None:
    """Check that a file is a bz2 file.

    Raises:
        ValueError: it is not.
    """
    if not _STREAM.match(file.read(_MAGIC_BYTES)):
        raise ValueError(f"wikipedia={uri}: not a bz2 file; give a dump named ...-pages-articles.xml.bz2")


def clean(markup: str) -> str:
    """Extract the running text of wiki markup.

    Templates, tables, references, files, categories, comments and formulas are removed.

    Raises:
        ParserError: the parser cannot handle the markup.
    """
    text = "".join(_text(mwparserfromhell.parse(markup, skip_style_tags=True)))
    lines = (" ".join(line.split()) for line in text.replace("'''", "").replace("''", "").splitlines())
    return "\n".join(line for line in lines if line)


def _article(xml: bytes) -> tuple[str | None, str | None, Reason | None]:
    """Title, text and reason of a page."""
    try:
        page = next(mwxml.Dump.from_page_xml(xml.decode("utf-8", "replace")).pages)
        if page.namespace != 0:
            return page.title, None, Reason.NOT_AN_ARTICLE
        if page.redirect is not None:
            return page.title, None, Reason.REDIRECT
        return page.title, clean(next(iter(page)).text or ""), None
    except (
        ParseError,
        MalformedXML,
        StopIteration,
        ValueError,
        TypeError,
        AttributeError,
        ParserError,
        RecursionError,
    ):
        return None, None, Reason.BROKEN_PAGE  # the errors that mwxml and mwparserfromhell raise on arbitrary input


def _text(code: Wikicode | None) -> Iterator[str]:
    for node in code.nodes if code is not None else ():
        if isinstance(node, Text):
            yield node.value
        elif isinstance(node, HTMLEntity):
            yield node.normalize()
        elif isinstance(node, Heading):
            yield "\n"
            yield from _text(node.title)
            yield "\n"
        elif isinstance(node, Wikilink):
            if not _NO_TEXT_LINK.match(str(node.title)):
                yield from _text(node.title if node.text is None else node.text)
        elif isinstance(node, ExternalLink):
            yield from _text(node.title)
        elif isinstance(node, Tag):
            name = str(node.tag).strip().lower()
            if name in _LINE_TAGS:
                yield "\n"
            if name not in _NO_TEXT_TAGS:
                yield from _text(node.contents)


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
        self._data = b""
        self._position = 0
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
        """Take the data up to the end of the next token; if it is too far away, skip one byte and return None."""
        searched = 0
        while (index := self._data.find(token, self._position + searched)) < 0:
            searched = max(0, len(self._data) - self._position - len(token) + 1)
            if searched > max_bytes or not self._read():
                self._position += 1
                return None
        first, self._position = self._position, index + len(token)
        return self._data[first : self._position]

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
            self._data, self._position = self._data[self._position :] + data, 0
            if is_own:
                self._own_end = len(self._data)
            return True
        return False


def _streams(file: BinaryIO, byte_range: ByteRange) -> Iterator[tuple[bytes, bool] | Reason]:
    """The data of every bz2 stream from the range's start on, and whether the stream begins in the range."""
    file.seek(byte_range.start)
    raw, offset = b"", byte_range.start  # bytes that are read but not used yet, and the file offset of the first
    while True:
        magic = _STREAM.search(raw)
        if not magic:
            more = file.read(READ_BYTES)
            if not more:
                return
            tail = raw[-(_MAGIC_BYTES - 1) :]
            offset += len(raw) - len(tail)
            raw = tail + more
            continue
        raw, offset = raw[magic.start() :], offset + magic.start()
        is_own = offset < byte_range.stop
        decompressor = bz2.BZ2Decompressor()
        while not decompressor.eof:
            if decompressor.needs_input:
                raw = raw or file.read(READ_BYTES)
                if not raw:
                    yield Reason.TRUNCATED_RECORD
                    return
                chunk, raw, offset = raw, b"", offset + len(raw)
            try:
                data = decompressor.decompress(chunk, READ_BYTES)
            except OSError:
                yield Reason.BROKEN_ARCHIVE
                raw, offset = chunk[1:], offset - len(chunk) + 1
                break
            chunk = b""
            yield data, is_own
        else:
            raw = decompressor.unused_data
            offset -= len(raw)
