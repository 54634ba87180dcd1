"""Write web archives (WARC 1.0, ISO 28500) of the demo's pages: one gzip member per record, with reproducible bytes."""

import base64
import gzip
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_FIRST_DATE: Final = datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)
_REVISIT_PROFILE: Final = "http://netpreserve.org/warc/1.0/revisit/identical-payload-digest"


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A recorded request and response. A `revisit` repeats an earlier response, so only its headers are recorded."""

    url: str
    status: str = "200 OK"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    revisit: bool = False


def write_archive(path: Path, exchanges: Sequence[Exchange]) -> int:
    """Write a warcinfo record and each exchange's request and response (or revisit) record.

    Returns:
        The number of records written.
    """
    info = b"software: clip-on-ray demo\r\nformat: WARC File Format 1.0\r\n"
    fields = {"WARC-Filename": path.name, "Content-Type": "application/warc-fields"}
    records = [_record(path.name, 0, "warcinfo", fields, info)]
    for exchange in exchanges:
        parts = urlsplit(exchange.url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        request = f"GET {target or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nAccept: */*\r\n\r\n".encode()
        fields = {"WARC-Target-URI": exchange.url, "Content-Type": "application/http; msgtype=request"}
        records.append(_record(path.name, len(records), "request", fields, request))
        records.append(_record(path.name, len(records), *_response(exchange)))
    # Written under a temporary name first, so that an archive under its final name is complete.
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(b"".join(records))
    partial.rename(path)
    return len(records)


def gzipped(data: bytes) -> bytes:
    """Compress `data` with gzip, without a timestamp, so that the bytes are reproducible."""
    return gzip.compress(data, compresslevel=6, mtime=0)


def _response(exchange: Exchange) -> tuple[str, dict[str, str], bytes]:
    headers = {**exchange.headers, "Content-Length": str(len(exchange.body))}
    lines = [f"HTTP/1.1 {exchange.status}", *(f"{name}: {value}" for name, value in headers.items())]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
    fields = {
        "WARC-Target-URI": exchange.url,
        "Content-Type": "application/http; msgtype=response",
        "WARC-Payload-Digest": _digest(exchange.body),
    }
    if exchange.revisit:
        return "revisit", {**fields, "WARC-Profile": _REVISIT_PROFILE}, head
    return "response", fields, head + exchange.body


def _record(archive: str, number: int, kind: str, fields: Mapping[str, str], block: bytes) -> bytes:
    name = uuid.uuid5(uuid.NAMESPACE_URL, f"{archive}#{number}")
    date = _FIRST_DATE + timedelta(seconds=number)
    head = {
        "WARC-Type": kind,
        "WARC-Record-ID": f"<urn:uuid:{name}>",
        "WARC-Date": date.strftime("%Y-%m-%dT%H:%M:%SZ"),
        **fields,
        "WARC-Block-Digest": _digest(block),
        "Content-Length": str(len(block)),
    }
    text = "WARC/1.0\r\n" + "".join(f"{key}: {value}\r\n" for key, value in head.items()) + "\r\n"
    return gzipped(text.encode("utf-8") + block + b"\r\n\r\n")


def _digest(data: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(data, usedforsecurity=False).digest()).decode("ascii")
