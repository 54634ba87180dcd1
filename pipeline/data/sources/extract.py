"""Candidates from web archives.

An archive (WARC or WAT: gzip, zstd or plain) is read record by record; every image that a page shows beside a text
gives one candidate for each text: alt, title, figcaption, og:image:alt. A record that gives none is a row with a
reason, and so is damage to the archive: the rows account for all records, or say from where on they cannot.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecord

from pipeline.data.sources import wat
from pipeline.data.sources.byte_ranges import Opener
from pipeline.data.sources.page import (
    Candidate,
    as_table,
    candidate,
    columns_of,
    decode,
    is_deep,
    page_candidates,
)
from pipeline.data.sources.warc_records import DAMAGE, GZIP_MAGIC, ZSTD_MAGIC, Record, read_records
from pipeline.data.web.urls import absolute_url
from pipeline.reasons import Reason

ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".warc.zst", ".wat", ".wat.gz", ".wat.zst")
_RESPONSE = b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: "
_CRAWL = re.compile(r"CC-MAIN-\d{4}-\d\d(?!\d)")
_PART_OF = re.compile(rb"(?im)^isPartOf[ \t]*:[ \t]*([^\r\n]+)")


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What extraction takes from a page."""

    srcset_max_width: int = 1024
    """The candidate of a srcset is the widest one up to this many pixels; a picture's source, one for such a window."""
    max_page_bytes: int = 8 * 2**20
    """A longer page is read up to here, as it is stored and as it is decompressed."""
    max_images_per_page: int = 2_000
    """A page's images behind these are not looked at."""


def check_archive(uri: str, open_stream: Opener) -> None:
    """Make sure that a file is a web archive with something in it.

    Raises:
        ValueError: it is empty, of another type, or holds no record; the message says which.
    """
    with open_stream(uri) as stream:
        head = stream.read(1 << 16)
    if not head:
        raise ValueError(f"{uri}: the archive is empty (0 bytes)")
    if not head.startswith((GZIP_MAGIC, ZSTD_MAGIC, b"WARC/")):
        raise ValueError(f"{uri}: not a web archive; expected WARC, plain or compressed by gzip or zstd")
    with open_stream(uri) as stream:
        try:
            first = next(iter(ArchiveIterator(stream, parse_http=False)), None)
        except OSError as error:
            raise ValueError(f"{uri}: not a web archive ({error}); expected WARC, plain or compressed") from error
    if first is None:
        raise ValueError(f"{uri}: the archive has no WARC record")


def read_archive(uri: str, open_stream: Opener, config: ExtractConfig) -> pa.Table:
    """All candidates of the archive at a URI, as `candidates_of` gives them."""
    with open_stream(uri) as stream:
        return _candidates(stream, config, uri)


def candidates_of(data: bytes, config: ExtractConfig | None = None, archive: str = "") -> pa.Table:
    """All candidates of an archive's bytes, and a row with a reason for each record that gives none.

    Args:
        data: WARC or WAT: plain, gzip or zstd.
        config: the defaults where it is left out.
        archive: its name, for the column of that name, and for the crawl where the archive does not say its own.

    Returns:
        CANDIDATES, in the order of the records. `record_offset` is the record's first byte in the (compressed) file,
        `crawl_id` what its warcinfo record is part of, else the Common Crawl that the name says.
    """
    return _candidates(io.BytesIO(data), config or ExtractConfig(), archive)


class _Page(NamedTuple):
    """What a record gives."""

    url: str
    date: datetime | None
    candidates: Iterable[Candidate]
    reason: Reason | None = None
    """Why there are no candidates."""


class _Place(NamedTuple):
    """What the rows of one record share: columns of CANDIDATES."""

    page_url: str | None
    page_date: datetime | None
    crawl_id: str | None
    record_offset: int


def _candidates(stream: Any, config: ExtractConfig, archive: str) -> pa.Table:
    candidates: list[Candidate] = []
    places: list[_Place] = []
    named = _CRAWL.search(archive)
    crawl_id = named[0] if named else None
    offset = 0
    try:
        for record in read_records(stream, config.max_page_bytes):
            offset = record.offset
            if record.header("WARC-Type").lower() == "warcinfo" and (found := _PART_OF.search(record.content)):
                crawl_id = found[1].decode("utf-8", "replace").strip()
            page = _page_of(record, config)
            before = len(candidates)
            candidates += page.candidates
            if len(candidates) == before:
                candidates.append(Candidate(reason=page.reason or Reason.NO_IMAGE))
            places += [_Place(page.url or None, page.date, crawl_id, offset)] * (len(candidates) - before)
    except DAMAGE as error:
        candidates.append(Candidate(reason=Reason.BROKEN_ARCHIVE, caption=str(error)))
        places.append(_Place(None, None, crawl_id, offset))
    columns = dict(zip(_Place._fields, columns_of(places, len(_Place._fields)), strict=True))
    return as_table(candidates, archive=[archive] * len(candidates), **columns)


def _page_of(record: Record, config: ExtractConfig) -> _Page:
    kind = record.header("WARC-Type").lower()
    if kind == "metadata" and record.is_whole and record.header("Content-Type").startswith("application/json"):
        try:
            found = wat.read_page(record.content, config.max_images_per_page)
        except (ValueError, RecursionError):  # no JSON, one that was cut, or one that is nested without end
            return _no_page(record, Reason.BROKEN_RECORD)
        if found is not None:
            base = (absolute_url(found.url, found.base) if found.base else "") or found.url
            images = (candidate(absolute_url(base, url), text, source) for url, source, text in found.images)
            return _Page(found.url, _date(found.date), images, found.reason)
    if not record.is_whole:
        return _no_page(record, Reason.TRUNCATED_RECORD)
    if kind != "response":
        return _no_page(record, Reason.REVISIT if kind == "revisit" else Reason.NOT_A_RESPONSE)
    if not record.header("Content-Type").lower().startswith("application/http"):
        return _no_page(record, Reason.NOT_HTML)
    html = _read_html(record.content, config)
    if isinstance(html, Reason):
        return _no_page(record, html)
    if is_deep(html):
        return _no_page(record, Reason.TOO_DEEP)
    url = _url(record)
    on_page = page_candidates(html, url, config.srcset_max_width, config.max_images_per_page)
    return _Page(url, _date(record.header("WARC-Date")), on_page)


def _no_page(record: Record, reason: Reason) -> _Page:
    return _Page(_url(record), _date(record.header("WARC-Date")), (), reason)


def _url(record: Record) -> str:
    return record.header("WARC-Target-URI").strip("<>")


def _date(text: str) -> datetime | None:
    """A WARC-Date (W3C's profile of ISO 8601) to the second, or None where it is none."""
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).replace(microsecond=0)


def _read_html(content: bytes | memoryview, config: ExtractConfig) -> str | Reason:
    """The page of a HTTP response, transfer and content encoding undone, or why it is none."""
    # A record of its own: the archive's iterator could not go on after a body that does not decode
    data = b"%s%d\r\n\r\n%s" % (_RESPONSE, len(content), content)
    for encodings in ("all", "content", "none"):  # some crawlers undo an encoding and leave the header that names it
        response = WarcRecord.from_bytes(data)
        try:
            response.parse_http(auto_decode=encodings, quirks_mode=True)  # lines may end in LF alone
            if reason := wat.why_not_status(response.http_headers.status_code):
                return reason
            if (response.http_content_type or "text/html").lower() not in {"text/html", "application/xhtml+xml"}:
                return Reason.NOT_HTML
            body = response.reader.read(config.max_page_bytes)
        except OSError:
            continue
        if encodings == "all" or b"\0" not in body[:1024]:
            return decode(body, response.http_charset)
    return Reason.BROKEN_RECORD
