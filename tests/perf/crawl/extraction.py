"""Measure extraction: `python -m tests.perf.crawl.extraction`; needs CLIP_DATA.

The input is a WAT file with about 100 MB of JSON: a real file of Common Crawl, and records of all real pages of the
data, repeated. Measures on one core: MB/s of reading the fields, compared with the standard library's gzip and json
reading the same fields; MB/s of `read_archive`, which also normalizes and hashes URLs; and HTML pages per second.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq
from fastwarc.warc import ArchiveIterator, WarcRecordType
from resiliparse.parse.encoding import bytes_to_str, detect_encoding

from pipeline.data.sources import wat
from pipeline.data.sources.extract import ExtractConfig, read_archive
from pipeline.data.sources.warc_records import read_records
from tests.perf.corpus.rows import Row, row, seconds_of_both
from tests.perf.crawl.matching import DATA
from tests.perf.crawl.wat_records import HtmlPage, records
from tests.pipeline.data.archives import Archive, open_file

NUM_BYTES = 100_000_000
CONFIG = ExtractConfig()


class Fields(NamedTuple):
    """The fields that both readers take from the record of a page."""

    url: str
    date: str
    base: str
    images: Sequence[tuple[str, str, str]]


def pages() -> Iterator[HtmlPage]:
    """Iterate over all real HTML pages."""
    for stored in pq.read_table(DATA / "web" / "pages.parquet").to_pylist():
        yield HtmlPage(stored["url"], stored["html"].decode("utf-8", "replace"), {"Content-Type": "text/html"})
    for file in sorted((DATA / "web").glob("*.warc.gz")):
        with file.open("rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
                http = record.http_headers
                if http and http.status_code == 200 and "html" in (record.http_content_type or ""):
                    body = record.reader.read()
                    html = bytes_to_str(body, detect_encoding(body) or "utf-8")
                    yield HtmlPage(record.headers["WARC-Target-URI"].strip("<>"), html, dict(http.items()))


def write_wat(file: Path, num_bytes: int) -> int:
    """Write a WAT of at least `num_bytes` of records, one gzip member each; returns the exact number of bytes."""
    real = (DATA / "web" / "whirlwind-python-whirlwind.warc.wat.gz").read_bytes()
    plain = [record for page in pages() for record in records(page)]
    round_bytes = len(gzip.decompress(real)) + sum(map(len, plain))
    members = real + b"".join(gzip.compress(record, 6) for record in plain)
    num_rounds = -(-num_bytes // round_bytes)
    file.write_bytes(members * num_rounds)
    return num_rounds * round_bytes


def ours(file: Path) -> list[Fields]:
    """Read the fields as extraction does."""
    found = []
    with file.open("rb") as stream:
        for record in read_records(stream, CONFIG.max_page_bytes):
            if record.header("WARC-Type") == "metadata":
                page = wat.read_page(record.content, CONFIG.max_images_per_page)
                if page and not page.reason:
                    found.append(Fields(page.url, page.date, page.base, page.images))
    return found


def peer(file: Path) -> list[Fields]:
    """Read the fields with the standard library."""
    found = []
    with gzip.open(file) as stream:
        while line := stream.readline():
            headers = {}
            while line.strip():
                name, _, value = line.partition(b":")
                headers[name] = value.strip()
                line = stream.readline()
            content = stream.read(int(headers[b"Content-Length"]))
            stream.read(4)
            if headers[b"Content-Type"] != b"application/json":
                continue
            parsed = json.loads(content)["Envelope"]
            header, http = parsed["WARC-Header-Metadata"], parsed["Payload-Metadata"].get("HTTP-Response-Metadata")
            if http is None or http["Response-Message"]["Status"] != "200" or "HTML-Metadata" not in http:
                continue
            head = http["HTML-Metadata"].get("Head", {})
            images = [
                (link["url"], name, link[name])
                for link in http["HTML-Metadata"].get("Links", [])
                if link["path"] == "IMG@/src" and link["url"]
                for name in ("alt", "title")
                if link.get(name, "").strip()
            ]
            og = {meta.get("property"): meta.get("content", "") for meta in reversed(head.get("Metas", []))}
            if og.get("og:image") and "og:image:alt" in og:
                images.append((og["og:image"], "og:image:alt", og["og:image:alt"]))
            found.append(Fields(header["WARC-Target-URI"], header["WARC-Date"], head.get("Base", ""), images))
    return found


def wat_extraction(file: Path, num_bytes: int) -> Row:
    """Measure bytes per second, after checking that both readers find the same fields."""
    assert ours(file) == peer(file)
    return row("images of a WAT", "bytes/s", num_bytes, "gzip and json", partial(ours, file), partial(peer, file))


def extraction() -> Row:
    """Measure the row of the performance table."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "real.warc.wat.gz"
        return wat_extraction(file, write_wat(file, NUM_BYTES))


def main() -> None:
    """Measure and print the results."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "real.warc.wat.gz"
        num_bytes = write_wat(file, NUM_BYTES)
        measured = wat_extraction(file, num_bytes)
        share = file.stat().st_size / num_bytes
        print(f"WAT: {num_bytes / 1e6:.0f} MB of records, {file.stat().st_size / 1e6:.1f} MB compressed")
        for name, rate in (("ours", measured.ours), (measured.peer_name, measured.peer)):
            print(f"{name:>15}: {rate / 1e6:6.1f} MB/s/core, {rate * share / 1e6:5.1f} compressed")
        print(f"{'ratio':>15}: {measured.ratio:.2f}")
        whole = partial(read_archive, str(file), open_file, CONFIG)
        table = whole()
        seconds, _ = seconds_of_both(whole, int)
        rate, rows = num_bytes / seconds / 1e6, table.num_rows / seconds
        print(f"{'read_archive':>15}: {rate:6.1f} MB/s/core, {rate * share:5.1f} compressed, {rows:,.0f} rows/s")

        archive = Archive()
        num_pages = 0
        for page in pages():
            archive.add(page.html.encode("utf-8", "replace"), page.url, headers=[("Content-Type", "text/html")])
            num_pages += 1
        (Path(folder) / "real.warc.gz").write_bytes(archive.data)
        html_bytes = len(gzip.decompress(archive.data))
        seconds, _ = seconds_of_both(partial(read_archive, str(Path(folder) / "real.warc.gz"), open_file, CONFIG), int)
        print(f"WARC: {num_pages / seconds:.0f} HTML pages/s/core, {html_bytes / seconds / 1e6:.1f} MB/s/core")


if __name__ == "__main__":
    main()
