"""Extract candidates from web archives.

An archive (WARC or WAT; gzip, zstd or plain) is read record by record. Each text of an image (alt, title, figcaption,
og:image:alt) gives one candidate. A record without candidates becomes a row with a reason, and so does damage to the
archive: the rows account for every record, or state the offset after which the archive is unreadable.

Pages are read in a child process with limits on time and memory, because a parser can hang or crash, and nothing else
can interrupt it. Records travel in batches. If a batch fails, its records are read one by one.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import compress
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecord

from pipeline.data.sources import wat
from pipeline.data.sources.byte_ranges import Opener
from pipeline.data.sources.page import (
    MAX_URL_CHARACTERS,
    Candidate,
    as_table,
    base_url,
    candidate,
    columns_of,
    is_deep,
    page_candidates,
    resolve,
)
from pipeline.data.sources.warc_records import DAMAGE, GZIP_MAGIC, ZSTD_MAGIC, ReadError, Record, read_records
from pipeline.data.web.charsets import decode_html
from pipeline.isolation import DiedError, Isolated, TooSlowError
from pipeline.printable import message_of
from pipeline.reasons import Reason
from pipeline.resume_safe import RESUME_SAFE

ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".warc.zst", ".wat", ".wat.gz", ".wat.zst")
PAGE_MEMORY_GIB = 2.0
"""Memory that reading a page may take; a page of 8 MiB takes up to 1 GB."""
BATCH_RECORDS, BATCH_BYTES = 64, 2**20
"""Maximum number of records, and approximate number of bytes, that the child process reads at once."""
_RESPONSE = b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: "
_MAX_CRAWL_ID_CHARACTERS = 200
_CRAWL = re.compile(r"CC-MAIN-\d{4}-\d\d(?!\d)")
_NUM_BYTES = re.compile(r"\+?[0-9]{1,18}")
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
    page_timeout_seconds: float = field(default=10.0, metadata=RESUME_SAFE)
    """A page that takes longer to read is dropped. Most take a few milliseconds."""

    def __post_init__(self) -> None:
        if self.page_timeout_seconds <= 0:
            raise ValueError(f"extract.page_timeout_seconds = {self.page_timeout_seconds}: must be more than 0")


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
    """The page that a record contains, and its candidates; or one candidate with the reason why there are none."""

    url: str
    date: datetime | None
    candidates: list[Candidate]


class _RecordColumns(NamedTuple):
    """Columns of CANDIDATES whose values all rows of one record share."""

    page_url: str | None
    page_date: datetime | None
    crawl_id: str | None
    record_offset: int


_REQUESTS = msgspec.msgpack.Decoder(tuple[ExtractConfig, list[tuple[int, bytes, memoryview, bool]]])
_PAGES = msgspec.msgpack.Decoder(list[_Page])
_read_in_child = Isolated("pipeline.data.sources.extract", "answer", PAGE_MEMORY_GIB)


def _candidates(stream: Any, config: ExtractConfig, archive: str) -> pa.Table:
    candidates: list[Candidate] = []
    record_columns: list[_RecordColumns] = []
    crawl_in_name = _CRAWL.search(archive)
    crawl_id = crawl_in_name[0] if crawl_in_name else None
    offset = 0
    try:
        for batch in _batches(read_records(stream, config.max_page_bytes)):
            for record, page in zip(batch, _read_pages(batch, config), strict=True):
                offset = record.offset
                if record.header("WARC-Type").lower() == "warcinfo" and (part_of := _PART_OF.search(record.content)):
                    crawl_id = part_of[1].decode("utf-8", "replace").strip()[:_MAX_CRAWL_ID_CHARACTERS]
                page_url = page.url[:MAX_URL_CHARACTERS] or None  # each of the page's rows has a copy
                columns_of_page = _RecordColumns(page_url, page.date, crawl_id, offset)
                candidates += page.candidates
                record_columns += [columns_of_page] * len(page.candidates)
    except ReadError:
        raise
    except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
        reason = Reason.BROKEN_ARCHIVE if isinstance(error, DAMAGE) else Reason.UNFORESEEN
        candidates.append(Candidate(reason=reason, caption=message_of(error)))
        record_columns.append(_RecordColumns(None, None, crawl_id, offset))
    names = _RecordColumns._fields
    columns = dict(zip(names, columns_of(record_columns, len(names)), strict=True))
    return as_table(candidates, archive=[archive] * len(candidates), **columns)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records in batches of BATCH_RECORDS records or about BATCH_BYTES. An error is raised after all batches."""
    batch: list[Record] = []
    num_bytes = 0
    try:
        for record in records:
            batch.append(record)
            num_bytes += len(record.content)
            if num_bytes >= BATCH_BYTES or len(batch) == BATCH_RECORDS:
                yield batch
                batch, num_bytes = [], 0
    except Exception:
        yield batch
        raise
    yield batch


def _read_pages(batch: Sequence[Record], config: ExtractConfig) -> list[_Page]:
    """The page of each record. Responses are read in the child; WAT records are JSON, parsed in linear time."""
    are_responses = [_is_response(record) for record in batch]
    responses = list(compress(batch, are_responses))
    in_child = iter(_read_responses(responses, config) if responses else ())
    return [
        next(in_child) if is_response else _read_page(record, config)
        for record, is_response in zip(batch, are_responses, strict=True)
    ]


def _read_responses(batch: Sequence[Record], config: ExtractConfig, *, suspected: bool = False) -> list[_Page]:
    """A page that takes too long, or ends the process that reads it, costs only its record.

    When memory is short, the process may be killed because of others, so a page is refused when a second one dies.
    """
    try:
        request = msgspec.msgpack.encode((config, batch))
        return _PAGES.decode(_read_in_child(request, config.page_timeout_seconds))
    except (TooSlowError, DiedError) as error:
        if len(batch) > 1:
            return [page for record in batch for page in _read_responses([record], config)]
        if isinstance(error, TooSlowError):
            return [_no_page(batch[0], Reason.PAGE_TIMEOUT, str(error))]
        if suspected:
            return [_no_page(batch[0], Reason.PAGE_DIED, str(error))]
        return _read_responses(batch, config, suspected=True)


def answer(request: bytes) -> bytes:
    """Read the pages of a request, in the child process (`pipeline.isolation`)."""
    config, records = _REQUESTS.decode(request)
    return msgspec.msgpack.encode([_read_page(Record(*fields), config) for fields in records])


def _read_page(record: Record, config: ExtractConfig) -> _Page:
    try:
        page = _page_of(record, config)
    except Exception as error:  # noqa: BLE001 (as above)
        return _no_page(record, Reason.UNFORESEEN, message_of(error))
    return page if page.candidates else _no_page(record, Reason.NO_IMAGE)


def _is_response(record: Record) -> bool:
    return record.header("WARC-Type").lower() == "response"


def _page_of(record: Record, config: ExtractConfig) -> _Page:
    kind = record.header("WARC-Type").lower()
    if kind == "metadata" and record.is_whole and record.header("Content-Type").startswith("application/json"):
        try:
            page = wat.read_page(record.content, config.max_images_per_page)
        except (ValueError, RecursionError):  # invalid, truncated or too deeply nested JSON
            return _no_page(record, Reason.BROKEN_RECORD)
        if page is not None:
            base = base_url(page.url, page.base)
            images = [candidate(resolve(base, url), text, source) for url, source, text in page.images]
            return _Page(page.url, _date(page.date), images or [Candidate(reason=page.reason or Reason.NO_IMAGE)])
    if not _NUM_BYTES.fullmatch(record.header("Content-Length")):
        return _no_page(record, Reason.BROKEN_RECORD)
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
    return _Page(url, _date(record.header("WARC-Date")), list(on_page))


def _no_page(record: Record, reason: Reason, message: str | None = None) -> _Page:
    return _Page(_url(record), _date(record.header("WARC-Date")), [Candidate(reason=reason, caption=message)])


def _url(record: Record) -> str:
    return record.header("WARC-Target-URI").strip("<>")


def _date(text: str) -> datetime | None:
    """Parse a WARC-Date (W3C's profile of ISO 8601), rounded down to the second; None if it is malformed."""
    try:
        date = datetime.fromisoformat(text)
        # A time zone can lead out of the years that a date can have
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):
        return None


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
            content_type = response.http_headers.get("Content-Type")
            if (response.http_content_type or "text/html").lower() not in {"text/html", "application/xhtml+xml"}:
                return Reason.NOT_HTML
            body = response.reader.read(config.max_page_bytes)
        except OSError:
            continue
        if encodings == "all" or b"\0" not in body[:1024]:
            return decode_html(body, content_type)
    return Reason.BROKEN_RECORD
