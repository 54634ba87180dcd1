"""The targets of the fuzzer: a function of bytes that must not raise, and the inputs to begin with."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs
import pyarrow.parquet as pq

from pipeline.data.crawl import fetch
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.resize import ImageProcessor
from pipeline.data.queries import page_views, wikipedia
from pipeline.data.queries.wikitext import clean
from pipeline.data.sources import extract, img2dataset, tables
from pipeline.data.sources.byte_ranges import ByteRange
from pipeline.data.sources.extract import ExtractConfig, candidates_of
from pipeline.data.sources.page import as_table, is_deep, page_candidates
from pipeline.data.text.caption_rules import CaptionConfig, apply_rules
from pipeline.data.text.match import Matcher, match_captions
from pipeline.data.text.personal_data import redact
from pipeline.data.web.addresses import BadSchemeError, NotPublicError, check_url, registered_domain
from pipeline.data.web.charsets import decode_html
from pipeline.data.web.data_urls import read_data_url
from pipeline.data.web.robots import Robots, tag_forbids
from pipeline.data.web.srcset import choose
from pipeline.data.web.urls import absolute_url, location_url, url_key
from pipeline.reasons import Reason
from tests.pipeline.data.archives import image_page, members, response
from tests.pipeline.data.hostile_images import photo, with_exif
from tests.pipeline.data.rows import candidates, encode, photo_like

AGENT = "clip-on-ray"
FORESEEN = frozenset(Reason) - {Reason.UNFORESEEN, Reason.PAGE_TIMEOUT, Reason.PAGE_DIED}
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
_LOCAL = pyarrow.fs.LocalFileSystem()
_PROCESSOR = ImageProcessor(ImageConfig(), with_phash=True)
_MATCHER = Matcher(["star", "red star", "東京", "c++", "don't"])


class Target(NamedTuple):
    """A function to call with any bytes, and inputs that it can read."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def check_rows(table: pa.Table) -> None:
    """Each row has its values or a foreseen reason, and can be stored."""
    table.validate(full=True)
    assert set(table["reason"].to_pylist()) <= FORESEEN | {None}, table["caption"].to_pylist()


def page(data: bytes) -> None:
    """An HTML page, with the HTTP header Content-Type in its first line."""
    head, _, body = data.partition(b"\n")
    html = decode_html(body, head.decode("latin-1"))
    html.encode()
    if not is_deep(html):
        rows = list(page_candidates(html, "http://a.example/page", 1024, 2000))
        assert all(row.reason in {None, Reason.BAD_URL} for row in rows)
        as_table(rows).validate(full=True)


def headers(data: bytes) -> None:
    """Headers of a response, as aiohttp decodes them."""
    text = data.decode("utf-8", "surrogateescape")
    assert 0 <= fetch._retry_after({"Retry-After": text}) < 10**12
    tag_forbids(text.split("\n"), AGENT)
    decode_html(b"", text)
    try:
        url = location_url("http://a.example/x", text)
        check_url(url, {})
    except (ValueError, BadSchemeError, NotPublicError):
        return
    assert url.isascii()


def urls(data: bytes) -> None:
    """A URL, a srcset, or a data: URL of a page."""
    text = data.decode("utf-8", "surrogatepass" if data.isascii() else "replace")
    absolute = absolute_url("http://a.example/page", text)
    assert url_key(url_key(absolute)) == url_key(absolute)
    registered_domain(absolute)
    choose(text, 1024, text)
    read_data_url(f"data:{text}", 2**20)


def robots(data: bytes) -> None:
    """A robots.txt."""
    rules = Robots(200, data, AGENT)
    for url in ("http://a.example/", "http://a.example/a/b?c=%C3%A4&d=*"):
        assert rules.allows(url) in {True, False}
    assert (rules.crawl_delay_seconds or 0.0) >= 0.0


def warc(data: bytes) -> None:
    """An archive, read in this process."""
    extract._read_in_child = lambda request, _timeout: extract.answer(request)  # type: ignore[assignment]
    check_rows(candidates_of(data, ExtractConfig(), "x.warc.gz"))


def wat(data: bytes) -> None:
    """The JSON of a WAT record."""
    head = b"WARC/1.0\r\nWARC-Type: metadata\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    warc(head % len(data) + data + b"\r\n\r\n")


def wikitext(data: bytes) -> None:
    """The markup of an article."""
    clean(data.decode("utf-8", "replace")).encode()


def dump(data: bytes) -> None:
    """The XML of a dump of articles."""
    packed = io.BytesIO(bz2.compress(data, 1))
    table = wikipedia.read_articles(packed, ByteRange("x.xml.bz2", 0, len(packed.getvalue())))
    table.validate(full=True)


def views(data: bytes) -> None:
    """The lines of a file of page views."""
    for name in ("pageviews-20240101-000000.gz", "pageviews-20240101-user.gz", "pagecounts-20150101-000000.gz"):
        page_views.read_views(io.BytesIO(gzip.compress(data, 1)), name, "en", 1).validate(full=True)


def csv(data: bytes) -> None:
    """A CSV file."""
    _read_table("x.csv", data)


def parquet(data: bytes) -> None:
    """A Parquet file."""
    _read_table("x.parquet", data)


def _read_table(name: str, data: bytes) -> None:
    path = _FOLDER / name
    path.write_bytes(data)
    try:
        tables.check_table(name, _LOCAL, str(path))
    except (ValueError, OSError):  # refused before work begins
        return
    check_rows(tables.read_table(name, _LOCAL, str(path)))


def tar(data: bytes) -> None:
    """A webdataset shard."""
    check_rows(img2dataset.read_shard("x.tar", io.BytesIO(data)))


def image(data: bytes) -> None:
    """An image file."""
    picture = _PROCESSOR(data)
    assert (picture.jpg is None) != (picture.reason is None)
    json.dumps([picture.exif, picture.error_message]).encode()
    for text in (picture.exif, picture.error_message):
        assert text is None or text.encode() is not None


def exif(data: bytes) -> None:
    """The EXIF data of a good JPEG."""
    image(with_exif(photo(64, 48), data[:60_000]))


def caption(data: bytes) -> None:
    """A caption, from its rules to its queries."""
    text = data.decode("utf-8", "replace")
    table = candidates(url=["http://a.example/"], caption=[text], reason=[None])
    judged = apply_rules(table, CaptionConfig(language=""))
    check_rows(match_captions(judged, _MATCHER))
    redact(text)


def _samples() -> bytes:
    import tarfile

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as shard:
        for name, content in (("1.jpg", b"image"), ("1.txt", b"a star"), ("1.json", b'{"url": "http://a.example/"}')):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return sink.getvalue()


def _parquet_seed(**options: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"url": ["http://a.example/1"] * 3, "caption": ["a red star", None, "ä"]})
    pq.write_table(table, sink, write_page_checksum=True, **options)
    return sink.getvalue()


_PAGE = b"""text/html; charset="utf-8"
<!doctype html><meta charset=shift_jis><base href="/img/"><figure><picture><source srcset="a.webp 320w, b.webp 2x"
media="(min-width: 600px)" type=image/webp><img src=x.jpg alt="a star" title='red'></picture><figcaption>the <b>red</b>
star</figcaption></figure><img src="data:image/gif;base64,R0lGOD"><meta property="og:image" content="http://[">"""
_WAT = json.dumps(
    {
        "Envelope": {
            "WARC-Header-Metadata": {
                "WARC-Type": "response",
                "WARC-Target-URI": "http://a.example/",
                "WARC-Date": "2024",
            },
            "Payload-Metadata": {
                "HTTP-Response-Metadata": {
                    "Response-Message": {"Status": "200"},
                    "HTML-Metadata": {
                        "Head": {"Base": "/x", "Metas": [{"property": "og:image:alt", "content": "a"}]},
                        "Links": [{"path": "IMG@/src", "url": "x.jpg", "alt": "a star", "title": "red"}],
                    },
                }
            },
        }
    }
).encode()
_WIKITEXT = """'''Stars''' are [[sun]]s &amp; [[File:X.jpg|thumb|A [[red]] star]]{{Infobox|a=b}} {| class=x
| cell
|} <ref name="x">no</ref> <!-- c --> __NOTOC__ [[Category:Stars]] [[de:Stern]] [http://a.example link] == Head ==
* item <math>x</math> <nowiki>[[</nowiki>"""
_XML = f"""<mediawiki><siteinfo><case>first-letter</case><namespaces><namespace key="6">Datei</namespace></namespaces>
</siteinfo><page><title>Star</title><ns>0</ns><id>1</id><revision><id>2</id><text xml:space="preserve">
{_WIKITEXT.replace("&", "&amp;").replace("<", "&lt;")}</text></revision></page></mediawiki>"""
_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"

TARGETS = {
    "page": Target(page, lambda: [_PAGE, b"\n<p>" + image_page("x")]),
    "headers": Target(
        headers, lambda: [b"Mon, 1 Jan 2024 00:00:00 GMT", b"120", b"noai\nbot: noindex", b"//b.example/x"]
    ),
    "urls": Target(
        urls, lambda: [b"/a/../b?c=d#e", b"http://b\xc3\xbccher.example:80/", b"a 1x, b 2x", b"image/png;base64,AA"]
    ),
    "robots": Target(robots, lambda: [b"User-agent: *\nDisallow: /a*b$\nCrawl-delay: 2\n", b"\xef\xbb\xbfAllow: /"]),
    "warc": Target(
        warc,
        lambda: [members(response(b"HTTP/1.1 200 OK\r\n\r\n" + image_page("x"))), response(b"HTTP/1.0 404 No\r\n\r\n")],
    ),
    "wat": Target(wat, lambda: [_WAT]),
    "wikitext": Target(wikitext, lambda: [_WIKITEXT.encode()]),
    "dump": Target(dump, lambda: [_XML.encode()]),
    "views": Target(views, lambda: [b"en Star 12 0\n", b"en.wikipedia Star 123 desktop 5 A5\n", b"en.z Star 5 A1B4\n"]),
    "csv": Target(
        csv, lambda: [b'url,caption\nhttp://a.example/1,"a ""star"", red"\nx\n', b"\xef\xbb\xbfURL,TEXT\n,\n"]
    ),
    "parquet": Target(parquet, lambda: [_parquet_seed(), _parquet_seed(compression="none", use_dictionary=False)]),
    "tar": Target(tar, lambda: [_samples()]),
    "image": Target(
        image,
        lambda: [
            *(encode(photo_like(1, 40, 36), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF")),
            photo(48, 40, progressive=True),
        ],
    ),
    "exif": Target(exif, lambda: [_EXIF, base64.b64decode(b"RXhpZgAASUkqAAgAAAA=")]),
    "caption": Target(
        caption, lambda: ["a LEGO™ star – don´t".encode(), "東京タワーの夜景".encode(), b"x_y.jpg 4.8 stars"]
    ),
}
