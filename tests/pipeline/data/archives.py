"""Build web archives with warcio, an independent implementation, or by hand if warcio refuses the record."""

import gzip
import io
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from warcio.archiveiterator import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from pipeline.data.sources.extract import ExtractConfig, read_archive

HTML = (("Content-Type", "text/html; charset=utf-8"),)


class Archive:
    """Write an archive record by record."""

    def __init__(self, compressed: bool = True) -> None:
        self._sink = io.BytesIO()
        self._writer = WARCWriter(self._sink, gzip=compressed)

    @property
    def data(self) -> bytes:
        return self._sink.getvalue()

    def add(
        self,
        body: bytes,
        url: str = "http://a.example/",
        kind: str = "response",
        status: str | None = "200 OK",
        headers: Iterable[tuple[str, str]] = HTML,
    ) -> int:
        """Write one record, as an HTTP message unless `status` is None, and return its offset in the file."""
        start = self._sink.tell()
        http = StatusAndHeaders(status, list(headers), protocol="HTTP/1.1") if status else None
        # Without the length, warcio buffers the body in a file that it does not close
        payload = io.BytesIO(body)
        self._writer.write_record(
            self._writer.create_warc_record(url, kind, payload=payload, length=len(body), http_headers=http)
        )
        return start


def response(message: bytes, url: str = "http://a.example/") -> bytes:
    """A record with an HTTP response that warcio would refuse to write."""
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http\r\n"
    return b"%sContent-Length: %d\r\n\r\n%s\r\n\r\n" % (head.encode(), len(message), message)


def members(*records: bytes) -> bytes:
    """Concatenate records, each compressed as one gzip member."""
    return b"".join(gzip.compress(record) for record in records)


def image_page(name: str) -> bytes:
    """A page with one image that has one caption."""
    return f'<p>{"lorem ipsum " * 20}</p><img src="/{name}.jpg" alt="the picture {name}">'.encode()


def read(data: bytes, config: ExtractConfig | None = None) -> pa.Table:
    """The rows of an archive's bytes."""
    return read_archive("x.warc.gz", lambda _: io.BytesIO(data), config or ExtractConfig())


def open_file(uri: str) -> BinaryIO:
    """Open a local file; the opener for `read_archive`."""
    return Path(uri).open("rb")


def offsets_by_warcio(file: Path) -> list[int]:
    """The offsets of a file's records according to warcio."""
    with file.open("rb") as stream:
        records = ArchiveIterator(stream)
        return [records.get_record_offset() for _ in records]
