"""The articles of a Wikipedia dump as plain text.

A dump (pages-articles: XML in bz2, one stream or many) is read in ranges of compressed bytes, so that one large file
makes many parts: a range has the bz2 streams that begin in it, and the pages that begin in those, wherever they end. A
page is parsed by itself (mwxml), and its markup becomes text (mwparserfromhell); what cannot be read is a row with a
reason.
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
"""Of a page's XML. MediaWiki takes 2 MiB of markup and no more, so what is longer here is broken."""

_STREAM = re.compile(rb"BZh[1-9]1AY&SY")
_MAGIC_BYTES = 10
_OPEN, _CLOSE = b"<page>", b"</page>"
_NO_TEXT_LINK = re.compile(r"(?i)\s*(file|image|media|category|[a-z]{2,3}(-[a-z]+)*)\s*:")
"""Links that show a picture, sort the page, or lead to another language's."""
_NO_TEXT_TAGS = frozenset(
    ("ref", "references", "table", "gallery", "imagemap", "timeline", "math", "chem", "score", "graph", "hiero")
) | {"code", "pre", "source", "syntaxhighlight", "templatestyles", "style", "mapframe"}
_LINE_TAGS = frozenset(("li", "dt", "dd", "br", "hr", "p", "div", "blockquote"))


def read_articles(file: BinaryIO, extent: ByteRange) -> pa.Table:
    """ARTICLES of the streams that begin in an extent of a dump.

    Redirects, pages of other namespaces, broken pages and broken or truncated streams are rows with a reason.
    """
    rows = [_article(page) if isinstance(page, bytes) else (None, None, page) for page in _pages(file, extent)]
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], []], schema=ARTICLES)


def check_dump(file: BinaryIO, uri: str) -> None:
    """Raises ValueError where a file is no bz2."""
    if not _STREAM.match(file.read(_MAGIC_BYTES)):
        raise ValueError(f"wikipedia={uri}: not a bz2 file; a dump is called ...-pages-articles.xml.bz2")


def clean(markup: str) -> str:
    """The running text of wiki markup: no templates, tables, references, files, categories, comments or formulas.

    Raises:
        ParserError: the markup is beyond the parser.
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
        return None, None, Reason.BROKEN_PAGE  # what mwxml and mwparserfromhell do about XML and markup of any kind


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


def _pages(file: BinaryIO, extent: ByteRange) -> Iterator[bytes | Reason]:
    """The XML of every page that begins in a stream that begins in the range, or what is wrong instead."""
    tape = _Tape(_streams(file, extent))
    while tape.seek(_OPEN) and tape.is_own:
        page = tape.take(_CLOSE, MAX_PAGE_BYTES)
        yield from tape.faults()
        if page is None:
            yield Reason.BROKEN_PAGE
        else:
            first = page.rfind(_OPEN)
            if first:  # the end of one page and the beginning of the next are lost
                yield Reason.BROKEN_PAGE
            yield page[first:]
    yield from tape.faults()


class _Tape:
    """Decompressed data, forwards only."""

    def __init__(self, pieces: Iterator[tuple[bytes, bool] | Reason]) -> None:
        self._pieces = pieces
        self._data = b""
        self._place = 0
        self._own_end = 0
        self._faults: list[Reason] = []

    @property
    def is_own(self) -> bool:
        """Whether the next byte is of a stream that begins in the range."""
        return self._place < self._own_end

    def seek(self, token: bytes) -> bool:
        """Go to the next place of a token; False where there is none, or none that could be our own any more."""
        while (found := self._data.find(token, self._place)) < 0:
            self._place = max(self._place, len(self._data) - len(token) + 1)
            if not self._read():
                return False
        self._place = found
        return True

    def take(self, token: bytes, most: int) -> bytes | None:
        """What is before the end of the next token; None, and nothing is taken but a byte, where that is too far."""
        searched = 0
        while (found := self._data.find(token, self._place + searched)) < 0:
            searched = max(0, len(self._data) - self._place - len(token) + 1)
            if searched > most or not self._read():
                self._place += 1
                return None
        first, self._place = self._place, found + len(token)
        return self._data[first : self._place]

    def faults(self) -> Iterator[Reason]:
        """What was wrong with the streams since the last call."""
        yield from self._faults
        self._faults.clear()

    def _read(self) -> bool:
        for piece in self._pieces:
            if isinstance(piece, Reason):
                self._faults.append(piece)
                continue
            data, is_own = piece
            self._own_end = max(0, self._own_end - self._place)
            self._data, self._place = self._data[self._place :] + data, 0
            if is_own:
                self._own_end = len(self._data)
            return True
        return False


def _streams(file: BinaryIO, extent: ByteRange) -> Iterator[tuple[bytes, bool] | Reason]:
    """The data of every bz2 stream from the extent's start on, and whether the stream begins in the extent."""
    file.seek(extent.start)
    raw, place = b"", extent.start  # what is read and not used yet, and where its first byte stands
    while True:
        found = _STREAM.search(raw)
        if not found:
            more = file.read(READ_BYTES)
            if not more:
                return
            kept = raw[-(_MAGIC_BYTES - 1) :]
            place += len(raw) - len(kept)
            raw = kept + more
            continue
        raw, place = raw[found.start() :], place + found.start()
        is_own = place < extent.stop
        decompressor = bz2.BZ2Decompressor()
        while not decompressor.eof:
            if decompressor.needs_input:
                raw = raw or file.read(READ_BYTES)
                if not raw:
                    yield Reason.TRUNCATED_RECORD
                    return
                given, raw, place = raw, b"", place + len(raw)
            try:
                data = decompressor.decompress(given, READ_BYTES)
            except OSError:
                yield Reason.BROKEN_ARCHIVE
                raw, place = given[1:], place - len(given) + 1
                break
            given = b""
            yield data, is_own
        else:
            raw = decompressor.unused_data
            place -= len(raw)
