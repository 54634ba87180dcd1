"""Candidates from web archives, and from tables of addresses and captions.

An archive (WARC: gzip, zstd or plain) is read record by record; every image that a page shows beside a text gives one
candidate for each text: alt, title, figcaption, og:image:alt. A record that gives none is a row with a reason, and so
is damage to the archive: the rows account for all records, or say from where on they cannot.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from pipeline.data.page import candidate, decode, is_deep, page_candidates
from pipeline.schemas import CANDIDATES, Reason, conform

ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".warc.zst")
TABLE_SUFFIXES = (".parquet", ".csv")
URL_COLUMNS = ("url", "URL")
CAPTION_COLUMNS = ("caption", "text", "TEXT", "captions")
IMAGE_COLUMNS = ("image", "jpg")
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_RESPONSE = b"WARC/1.1\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: "
_LINE_BYTES = 1 << 16
_CSV = {
    "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
    "convert_options": pyarrow.csv.ConvertOptions(  # a caption may look like a number or a date
        column_types={name: pa.string() for name in (*URL_COLUMNS, *CAPTION_COLUMNS)}
    ),
}

Opener = Callable[[str], Any]
"""Opens a URI as a binary stream."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What extraction takes from a page."""

    srcset_max_width: int = 1024
    """The candidate of a srcset is the widest one up to this many pixels."""
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
    """All candidates of one archive, and a row with a reason for each record that gives none.

    Returns:
        CANDIDATES, in the order of the records. `record_offset` is the record's first byte in the (compressed) file.
    """
    rows: list[dict[str, Any]] = []
    offsets: list[int] = []
    with open_stream(uri) as stream:
        try:
            for record in ArchiveIterator(stream, parse_http=False):
                offsets.append(int(record.stream_pos))
                place = {"archive": uri, "record_offset": offsets[-1]}
                rows += [{**place, **row} for row in _candidates(record, config)]
            if not rows or rows[-1]["reason"] != Reason.TRUNCATED_RECORD:
                _check_end(stream, offsets)
        except (OSError, EOFError, zlib.error) as error:
            place = {"archive": uri, "record_offset": offsets[-1] if offsets else 0}
            rows.append({**place, "reason": Reason.BROKEN_ARCHIVE, "caption": str(error)})
    return conform(pa.Table.from_pylist(rows, schema=CANDIDATES), CANDIDATES)


def _candidates(record: WarcRecord, config: ExtractConfig) -> Iterator[dict[str, Any]]:
    page_url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    # The iterator ends without a word where a file ends inside a record, so the lengths are compared here
    content = record.reader.read(config.max_page_bytes)
    length = len(content)
    while chunk := record.reader.read(1 << 20):
        length += len(chunk)
    reason = Reason.TRUNCATED_RECORD if length < record.content_length else _why_not_a_response(record)
    found: list[dict[str, Any]] = []
    if reason is None:
        page = _read_page(content, config)
        if isinstance(page, Reason):
            reason = page
        elif is_deep(page):
            reason = Reason.TOO_DEEP
        else:
            found += page_candidates(page, page_url, config.srcset_max_width, config.max_images_per_page)
    yield from found or [{"page_url": page_url or None, "reason": reason or Reason.NO_IMAGE}]


def _why_not_a_response(record: WarcRecord) -> Reason | None:
    if record.record_type == WarcRecordType.revisit:
        return Reason.REVISIT
    if record.record_type != WarcRecordType.response:
        return Reason.NOT_A_RESPONSE
    return None if record.is_http else Reason.NOT_HTML


def _read_page(content: bytes, config: ExtractConfig) -> str | Reason:
    """The page of a HTTP response, transfer and content encoding undone, or why it is none."""
    # A record of its own: the archive's iterator could not go on after a body that does not decode
    data = b"%s%d\r\n\r\n%s" % (_RESPONSE, len(content), content)
    for encodings in ("all", "content", "none"):  # some crawlers undo an encoding and leave the header that names it
        response = WarcRecord.from_bytes(data)
        try:
            response.parse_http(auto_decode=encodings, quirks_mode=True)  # lines may end in LF alone
            if response.http_headers.status_code not in {200, None}:
                return Reason.HTTP_ERROR_PAGE
            if (response.http_content_type or "text/html").lower() not in {"text/html", "application/xhtml+xml"}:
                return Reason.NOT_HTML
            body = response.reader.read(config.max_page_bytes)
        except OSError:
            continue
        if encodings == "all" or b"\0" not in body[:1024]:
            return decode(body, response.http_charset)
    return Reason.BROKEN_RECORD


def _check_end(stream: Any, offsets: Sequence[int]) -> None:
    """Make sure that the last record is whole and that none follows it.

    FastWARC stops without a word where a file ends inside a record's headers or inside a gzip member, as half a
    download does, and where a member cannot be opened; so the last record is read once more. Of zstd it tells.

    Args:
        stream: the archive.
        offsets: first byte of each record that was found, in ascending order.

    Raises:
        OSError, EOFError, zlib.error: the archive has more than these records, or ends inside one.
    """
    start = offsets[-1] if offsets else 0
    stream.seek(0)
    magic = stream.read(4)
    if magic == ZSTD_MAGIC:
        return
    stream.seek(start)
    if magic.startswith(GZIP_MAGIC) and stream.read(2) != GZIP_MAGIC:
        start = 0  # the file is one gzip member as a whole, and the offsets tell nothing
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


def check_table(uri: str, filesystem: Any, path: str) -> None:
    """Make sure that a table names its addresses (or holds its images) and its captions.

    Raises:
        ValueError: a column is missing, or the file is not what its name says; the message lists the columns there are.
    """
    try:
        schema = _table_schema(uri, filesystem, path)
    except pa.ArrowInvalid as error:
        kind = "CSV" if uri.endswith(".csv") else "Parquet"
        raise ValueError(f"{uri}: cannot be read as {kind} ({error})") from error
    names = list(schema.names)
    if not set(names) & set(CAPTION_COLUMNS):
        raise ValueError(f"{uri}: no caption column; expected one of {list(CAPTION_COLUMNS)}, found {names}")
    if not set(names) & {*URL_COLUMNS, *IMAGE_COLUMNS}:
        raise ValueError(
            f"{uri}: neither addresses nor images; expected one of {[*URL_COLUMNS, *IMAGE_COLUMNS]}, found {names}"
        )
    checks = (("strings", _is_text), ("strings, or lists of them", _is_caption), ("bytes", _is_bytes))
    for column, (expected, fits) in zip(_columns(names), checks, strict=True):
        if column and not fits(schema.field(column).type):
            raise ValueError(f"{uri}: column {column!r} holds {schema.field(column).type}, expected {expected}")


def read_table(uri: str, filesystem: Any, path: str) -> pa.Table:
    """Candidates from a table of addresses and captions, or of images and captions (Parquet or CSV).

    The column names are those of LAION, DataComp, CC12M and img2dataset. Where a row has several captions, each one is
    a candidate; `record_offset` is the number of the row.
    """
    table = _read_any(uri, filesystem, path)
    url_column, caption_column, image_column = _columns(table.column_names)
    assert caption_column is not None, f"{uri} was not checked"
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(_rows(table, [c for c in (url_column, caption_column, image_column) if c])):
        place = {"archive": uri, "record_offset": number}
        captions = row[caption_column]
        url = row[url_column] or "" if url_column else ""
        image = row[image_column] if image_column else None
        for caption in (captions or [""]) if isinstance(captions, list) else [captions]:
            rows.append({**place, **candidate(url, caption or "", "table", None, image)})  # noqa: PERF401 (two loops)
    return conform(pa.Table.from_pylist(rows, schema=CANDIDATES), CANDIDATES)


def _columns(names: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The columns that hold addresses, captions and images."""
    url, caption, image = (
        next((name for name in known if name in names), None) for known in (URL_COLUMNS, CAPTION_COLUMNS, IMAGE_COLUMNS)
    )
    return url, caption, image


def _rows(table: pa.Table, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in table.select(columns).to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_caption(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if is_list else kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _table_schema(uri: str, filesystem: Any, path: str) -> pa.Schema:
    if uri.endswith(".csv"):
        with filesystem.open_input_stream(path) as stream, pyarrow.csv.open_csv(stream, **_CSV) as reader:
            return reader.schema
    return pq.read_schema(path, filesystem=filesystem)


def _read_any(uri: str, filesystem: Any, path: str) -> pa.Table:
    if uri.endswith(".csv"):
        with filesystem.open_input_stream(path) as stream:
            return pyarrow.csv.read_csv(stream, **_CSV)
    return pq.read_table(path, filesystem=filesystem, page_checksum_verification=True)
