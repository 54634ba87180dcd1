"""Extract candidates from web archives.

An archive (WARC or WAT; gzip, zstd or plain) is read record by record. Each text of an image (alt, title, figcaption,
og:image:alt) gives one candidate. A record without candidates becomes a row with a reason, and so does damage to the
archive: the rows account for every record, or state the offset after which the archive is unreadable.
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
    """Limits for extracting candidates from a page."""

    srcset_max_width: int = 1024
    """Of a srcset, the widest image up to this many pixels is taken. <source> elements must fit a window this wide."""
    max_page_bytes: int = 8 * 2**20
    """Longer pages are truncated to this size, both before and after decompression."""
    max_images_per_page: int = 2_000
    """Further images of a page are ignored."""


def check_archive(uri: str, open_stream: Opener) -> None:
    """Make sure that a file is a web archive with at least one record.

    Raises:
        ValueError: the file is empty, of another type, or has no record; the message says which.
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
    """Read all candidates of the archive at a URI; see `candidates_of`."""
    with open_stream(uri) as stream:
        return _candidates(stream, config, uri)


def candidates_of(data: bytes, config: ExtractConfig | None = None, archive: str = "") -> pa.Table:
    """All candidates of an archive's bytes, and a row with a reason for each record without candidates.

    Args:
        data: a WARC or WAT archive: plain, gzip or zstd.
        config: defaults to `ExtractConfig()`.
        archive: name of the archive, stored in the column `archive`; also the fallback source of `crawl_id`.

    Returns:
        CANDIDATES, in the order of the records. `record_offset` is the offset of the record's first byte in the
        (compressed) file. `crawl_id` is isPartOf of the warcinfo record, else the Common Crawl name in `archive`.
    """
    return _candidates(io.BytesIO(data), config or ExtractConfig(), archive)


class _Page(NamedTuple):
    """The page that a record contains, and its candidates."""

    url: str
    date: datetime | None
    candidates: Iterable[Candidate]
    reason: Reason | None = None
    """Why there are no candidates."""


class _RecordColumns(NamedTuple):
    """Columns of CANDIDATES whose values all rows of one record share."""

    page_url: str | None
    page_date: datetime | None
    crawl_id: str | None
    record_offset: int


def _candidates(stream: Any, config: ExtractConfig, archive: str) -> pa.Table:
    candidates: list[Candidate] = []
    record_columns: list[_RecordColumns] = []
    crawl_in_name = _CRAWL.search(archive)
    crawl_id = crawl_in_name[0] if crawl_in_name else None
    offset = 0
    try:
        for record in read_records(stream, config.max_page_bytes):
            offset = record.offset
            if record.header("WARC-Type").lower() == "warcinfo" and (part_of := _PART_OF.search(record.content)):
                crawl_id = part_of[1].decode("utf-8", "replace").strip()
            page = _page_of(record, config)
            num_before = len(candidates)
            candidates += page.candidates
            if len(candidates) == num_before:
                candidates.append(Candidate(reason=page.reason or Reason.NO_IMAGE))
            columns_of_page = _RecordColumns(page.url or None, page.date, crawl_id, offset)
            record_columns += [columns_of_page] * (len(candidates) - num_before)
    except DAMAGE as error:
        candidates.append(Candidate(reason=Reason.BROKEN_ARCHIVE, caption=str(error)))
        record_columns.append(_RecordColumns(None, None, crawl_id, offset))
    names = _RecordColumns._fields
    columns = dict(zip(names, columns_of(record_columns, len(names)), strict=True))
    return as_table(candidates, archive=[archive] * len(candidates), **columns)


def _page_of(record: Record, config: ExtractConfig) -> _Page:
    kind = record.header("WARC-Type").lower()
    if kind == "metadata" and record.is_whole and record.header("Content-Type").startswith("application/json"):
        try:
            page = wat.read_page(record.content, config.max_images_per_page)
        except (ValueError, RecursionError):  # invalid, truncated or too deeply nested JSON
            return _no_page(record, Reason.BROKEN_RECORD)
        if page is not None:
            base = (absolute_url(page.url, page.base) if page.base else "") or page.url
            images = (candidate(absolute_url(base, url), text, source) for url, source, text in page.images)
            return _Page(page.url, _date(page.date), images, page.reason)
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
    """Parse a WARC-Date (W3C's profile of ISO 8601), rounded down to the second; None if it is malformed."""
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).replace(microsecond=0)


def _read_html(content: bytes | memoryview, config: ExtractConfig) -> str | Reason:
    """The HTML of an HTTP response after undoing transfer and content encoding, or the reason why there is no page."""
    # A separate record, because the archive's iterator cannot continue after a body that fails to decode
    data = b"%s%d\r\n\r\n%s" % (_RESPONSE, len(content), content)
    for encodings in ("all", "content", "none"):  # some crawlers undo an encoding but keep its header
        response = WarcRecord.from_bytes(data)
        try:
            response.parse_http(auto_decode=encodings, quirks_mode=True)  # accept lines that end in LF alone
            if reason := wat.reason_for_status(response.http_headers.status_code):
                return reason
            if (response.http_content_type or "text/html").lower() not in {"text/html", "application/xhtml+xml"}:
                return Reason.NOT_HTML
            body = response.reader.read(config.max_page_bytes)
        except OSError:
            continue
        if encodings == "all" or b"\0" not in body[:1024]:
            return decode(body, response.http_charset)
    return Reason.BROKEN_RECORD
