"""Candidates from web archives, and from tables of addresses and captions.

An archive (WARC: gzip, zstd or plain) is read record by record; every image that a page shows beside a text gives one
candidate for each text: alt, title, figcaption, og:image:alt. A record that gives none is a row with a reason, so an
archive's rows account for all of its records.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType
from resiliparse.parse.encoding import bytes_to_str, detect_encoding
from selectolax.lexbor import LexborHTMLParser, LexborNode

from pipeline.hashing import hash128
from pipeline.schemas import CANDIDATES, Reason, conform

ARCHIVE_SUFFIXES = (".warc", ".warc.gz", ".warc.zst")
TABLE_SUFFIXES = (".parquet", ".csv")
LAZY_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src")
URL_COLUMNS = ("url", "URL")
CAPTION_COLUMNS = ("caption", "text", "TEXT", "captions")
IMAGE_COLUMNS = ("image", "jpg")
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)

Opener = Callable[[str], Any]
"""Opens a URI as a binary stream."""


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What extraction takes from a page."""

    srcset_max_width: int = 1024
    """The candidate of a srcset is the widest one up to this many pixels."""
    max_page_bytes: int = 8 * 2**20
    """A longer page is read up to here."""


def check_archive(uri: str, open_stream: Opener) -> None:
    """Make sure that a file is a web archive with something in it.

    Raises:
        ValueError: it is empty, of another type, or holds no record; the message says which.
    """
    with open_stream(uri) as stream:
        head = stream.read(1 << 16)
    if not head:
        raise ValueError(f"{uri}: the archive is empty (0 bytes)")
    if not head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"WARC/")):
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
    with open_stream(uri) as stream:
        try:
            for record in ArchiveIterator(stream, parse_http=False):
                place = {"archive": uri, "record_offset": int(record.stream_pos)}
                rows += [{**place, **row} for row in _candidates(record, config)]
        except OSError as error:
            rows.append({"archive": uri, "reason": Reason.BROKEN_ARCHIVE, "caption": str(error)})
    return conform(pa.Table.from_pylist(rows, schema=CANDIDATES), CANDIDATES)


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


def read_table(uri: str, filesystem: Any, path: str) -> pa.Table:
    """Candidates from a table of addresses and captions, or of images and captions (Parquet or CSV).

    The column names are those of LAION, DataComp, CC12M and img2dataset. Where a row has several captions, each one is
    a candidate. A row that holds its image but no address is known by the table's name and its row number.
    """
    table = _read_any(uri, filesystem, path)
    url_column = next((name for name in URL_COLUMNS if name in table.column_names), None)
    caption_column = next(name for name in CAPTION_COLUMNS if name in table.column_names)
    image_column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    name = uri.rsplit("/", 1)[-1]
    rows: list[dict[str, Any]] = []
    number = 0
    for batch in table.select([c for c in (url_column, caption_column, image_column) if c]).to_batches():
        for row in batch.to_pylist():
            captions = row[caption_column]
            url = str(row[url_column] or "") if url_column else f"table:{name}#{number}"
            held = {"archive": uri, "record_offset": number, "image": row[image_column] if image_column else None}
            for caption in captions if isinstance(captions, list) else [captions]:
                rows.append(_row(url, caption or "", "table", None) | held)  # noqa: PERF401 (a nested extend hides it)
            number += 1
    return conform(pa.Table.from_pylist(rows, schema=CANDIDATES), CANDIDATES)


def normalize_url(url: str) -> str:
    """One spelling for addresses that surely name the same: no fragment, host in lower case, no default port."""
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = f":{parts.port}" if parts.port and (parts.scheme, parts.port) not in {("http", 80), ("https", 443)} else ""
    bracketed = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme.lower(), bracketed + port, parts.path or "/", parts.query, ""))


def _candidates(record: WarcRecord, config: ExtractConfig) -> Iterator[dict[str, Any]]:
    page_url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    # The iterator ends without a word where a file ends inside a record, so the lengths are compared here
    content = record.reader.read(config.max_page_bytes)
    length = len(content)
    while chunk := record.reader.read(1 << 20):
        length += len(chunk)
    if length < int(record.headers.get("Content-Length") or 0):
        yield {"page_url": page_url or None, "reason": Reason.TRUNCATED_RECORD}
        return
    reason = _why_not_a_page(record, content)
    if reason is not None:
        yield {"page_url": page_url or None, "reason": reason}
        return
    html = _decode(record.reader.read(), record.http_charset)
    found = list(page_candidates(html, page_url, config))
    yield from found or [{"page_url": page_url, "reason": Reason.NO_IMAGE}]


def _why_not_a_page(record: WarcRecord, content: bytes) -> Reason | None:
    """Why a record is no page, or None; then its reader stands at the page, transfer and content encoding undone."""
    if record.record_type == WarcRecordType.revisit:
        return Reason.REVISIT
    if record.record_type != WarcRecordType.response:
        return Reason.NOT_A_RESPONSE
    record.set_bytes_content(content)
    record.parse_http(auto_decode="all")
    if not record.is_http_parsed:
        return Reason.BROKEN_RECORD if "http" in (record.headers.get("Content-Type") or "") else Reason.NOT_HTML
    if record.http_headers.status_code not in {200, None}:
        return Reason.HTTP_ERROR_PAGE
    content_type = (record.http_content_type or "text/html").lower()
    return None if content_type in {"text/html", "application/xhtml+xml"} else Reason.NOT_HTML


def _decode(body: bytes, header_charset: str | None) -> str:
    """Charset from the HTTP header, else from a meta element in the first 1,024 bytes, else from the bytes (WHATWG)."""
    meta = _CHARSET.search(body[:1024].decode("ascii", "replace"))
    charset = header_charset or (meta.group(1) if meta else None) or detect_encoding(body, from_html_meta=True)
    text: str = bytes_to_str(body, charset or "utf-8", fallback_encodings=("utf-8", "windows-1252"))
    return text


def page_candidates(html: str, page_url: str, config: ExtractConfig) -> Iterator[dict[str, Any]]:
    """The candidates of one page: url, caption, caption_source, page_url, pair_id; image where the address holds it."""
    tree = LexborHTMLParser(html)
    base_node = tree.css_first("base[href]")
    base = _join(page_url, (base_node.attributes.get("href") or "") if base_node else "")
    for node in tree.css("img"):
        url = _image_address(node, config)
        if not url:
            continue
        for source, text in _texts_of(node):
            yield _row(_join(base, url), text, source, page_url)
    image = tree.css_first('meta[property="og:image"]')
    alt = tree.css_first('meta[property="og:image:alt"]')
    if image is not None and alt is not None and image.attributes.get("content"):
        text = alt.attributes.get("content") or ""
        yield _row(_join(base, image.attributes["content"] or ""), text, "og:image:alt", page_url)


def _texts_of(node: LexborNode) -> Iterator[tuple[str, str]]:
    for name in ("alt", "title"):
        text = node.attributes.get(name)
        if text and text.strip():
            yield name, text
    parent = node.parent
    while parent is not None and parent.tag not in {"figure", "body"}:
        parent = parent.parent
    caption = parent.css_first("figcaption") if parent is not None and parent.tag == "figure" else None
    if caption is not None:
        yield "figcaption", caption.text(separator=" ")


def _image_address(node: LexborNode, config: ExtractConfig) -> str:
    """The address a browser would show in the end: lazy-load attributes first, then srcset, then src."""
    attributes = node.attributes
    for name in LAZY_ATTRIBUTES:
        if attributes.get(name):
            return (attributes[name] or "").strip()
    sets = [attributes.get("srcset"), attributes.get("data-srcset")]
    if node.parent is not None and node.parent.tag == "picture":
        sets += [source.attributes.get("srcset") for source in node.parent.css("source")]
    for srcset in sets:
        best = best_of_srcset(srcset or "", config.srcset_max_width)
        if best:
            return best
    return (attributes.get("src") or "").strip()


def best_of_srcset(srcset: str, max_width: int) -> str:
    """The widest candidate of a srcset that is not wider than max_width pixels, else the narrowest ("" for none).

    Widths are those of `640w` descriptors; `2x` counts as twice an unknown width and never beats a known one.
    """
    best, best_key = "", (-1, 0.0)
    for match in re.finditer(r"(\S*[^,\s])(?:\s+([\d.]+)([wx]))?\s*(?:,|$)", srcset.strip()):
        size = float(match[2] or 1)
        fits = match[3] != "w" or size <= max_width
        key = (1, size) if fits else (0, -size)
        if key > best_key:
            best, best_key = match[1], key
    return best


def _join(base: str, url: str) -> str:
    try:
        return urljoin(base, url.strip())
    except ValueError:
        return ""


def _row(url: str, caption: str, source: str, page_url: str | None) -> dict[str, Any]:
    caption = " ".join(caption.split())
    image, reason = None, None
    if url.startswith("data:"):
        image = _inline_image(url)
        url = f"data:{hash128(url)}"
        reason = None if image else Reason.BAD_URL
    elif not url.startswith("table:"):
        try:
            url = normalize_url(url)
        except ValueError:
            reason = Reason.BAD_URL
    if not url:
        reason = Reason.BAD_URL
    row = {"url": url, "caption": caption, "caption_source": source, "page_url": page_url, "reason": reason}
    return {"pair_id": hash128(url, caption), "image": image, **row}


def _inline_image(url: str) -> bytes | None:
    """The bytes of a data: address (RFC 2397), or None where it is malformed."""
    head, _, body = url.partition(",")
    data = unquote_to_bytes(body)
    if not head.endswith(";base64"):
        return data or None
    try:
        return base64.b64decode(data, validate=False) or None
    except binascii.Error:
        return None


def _table_schema(uri: str, filesystem: Any, path: str) -> pa.Schema:
    if uri.endswith(".csv"):
        with filesystem.open_input_stream(path) as stream, pyarrow.csv.open_csv(stream) as reader:
            return reader.schema
    return pq.read_schema(path, filesystem=filesystem)


def _read_any(uri: str, filesystem: Any, path: str) -> pa.Table:
    if uri.endswith(".csv"):
        with filesystem.open_input_stream(path) as stream:
            return pyarrow.csv.read_csv(stream)
    return pq.read_table(path, filesystem=filesystem, page_checksum_verification=True)
