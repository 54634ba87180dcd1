"""Read web archives with warcio and the standard library's HTML parser, as a reference for extraction."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urldefrag, urljoin, urlsplit

import brotli
from warcio.archiveiterator import ArchiveIterator

_URL_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src", "data-srcset", "srcset", "src")
_WEB_CHARSETS = {"gb2312": "gbk", "iso-8859-1": "cp1252"}
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_IN_PATH, _IN_QUERY = (_PRINTABLE.translate(dict.fromkeys(map(ord, escaped))) for escaped in ('"#<>?^`{}', "\"#<>'"))
"""The characters that the URL standard does not percent-encode in a path and in a query."""
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)


class Outcome(NamedTuple):
    """The kind of a record, and the count of each (URL, source, caption) on its page."""

    kind: str
    candidates: Counter[tuple[str, str, str]]


class Images(HTMLParser):
    """Collect the images that have a text, in the order of the page."""

    def __init__(self, page_url: str) -> None:
        super().__init__()
        self.base = page_url
        self.found: list[tuple[dict[str, str], str, str]] = []
        self._has_base = False
        self._figures: list[tuple[list[dict[str, str]], list[str] | None]] = []
        self._og: dict[str, str] = {}
        self._pictures: list[dict[str, str]] = []
        self._caption: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in reversed(attrs)}
        if tag == "base" and values.get("href") and not self._has_base:
            self.base, self._has_base = urljoin(self.base, values["href"].strip()), True
        elif tag == "meta" and values.get("property", "") in {"og:image", "og:image:alt"}:
            self._og.setdefault(values["property"], values.get("content", ""))
        elif tag == "picture":
            self._pictures = [{"sources": ""}]
        elif tag == "source":
            for picture in self._pictures:
                picture["sources"] += values.get("srcset", "") + values.get("data-srcset", "")
        elif tag == "figure":
            self._figures.append(([], None))
        elif tag == "figcaption" and self._figures:
            self._caption = []
        elif tag == "img" and any(values.get(name, "").strip() for name in _URL_ATTRIBUTES):
            if self._pictures:
                values["sources"] = self._pictures[0]["sources"]
                self._pictures.append(values)
            self.found += [(values, name, values[name]) for name in ("alt", "title") if values.get(name, "").strip()]
            if self._figures:
                self._figures[-1][0].append(values)

    def handle_endtag(self, tag: str) -> None:
        if tag == "figcaption" and self._figures and self._caption is not None:
            images, first = self._figures[-1]
            self._figures[-1] = (images, first or self._caption)
            self._caption = None
        elif tag == "picture":
            self._pictures = []
        elif tag == "figure" and self._figures:
            images, caption = self._figures.pop()
            if caption is not None:
                self.found += [(values, "figcaption", "".join(caption)) for values in images]

    def handle_data(self, data: str) -> None:
        if self._caption is not None:
            self._caption.append(f"{data} ")

    def candidates(self) -> Counter[tuple[str, str, str]]:
        """The count of each (URL, source, caption), with runs of blanks collapsed."""
        counted = Counter((self._url(values), name, " ".join(text.split())) for values, name, text in self.found)
        if self._og.get("og:image") and "og:image:alt" in self._og:
            counted[self._join(self._og["og:image"]), "og:image:alt", " ".join(self._og["og:image:alt"].split())] += 1
        return counted

    def _url(self, values: dict[str, str]) -> str:
        """The absolute src, or "" if the image has several URLs or a data: URL."""
        more = any(values.get(name) for name in (*_URL_ATTRIBUTES[:-1], "sources"))
        return "" if more or values["src"].startswith("data:") else self._join(values["src"])

    def _join(self, url: str) -> str:
        joined = urlsplit(urldefrag(urljoin(self.base, url.strip())).url.replace(":80/", "/", 1))
        path, query = (quote(text, safe) for text, safe in ((joined.path, _IN_PATH), (joined.query, _IN_QUERY)))
        return joined._replace(path=path, query=query).geturl()


def read(file: Path) -> list[Outcome]:
    """Read the outcome of every record of a file."""
    with file.open("rb") as stream:
        return [_outcome(record) for record in ArchiveIterator(stream)]


def _outcome(record: Any) -> Outcome:
    if record.rec_type != "response":
        return Outcome(record.rec_type, Counter())
    if record.http_headers is None:
        return Outcome("not http", Counter())
    status = record.http_headers.get_statuscode()
    content_type = record.http_headers.get_header("Content-Type") or "text/html"
    if status != "200":
        return Outcome("redirect" if status.startswith("3") else "error", Counter())
    if content_type.split(";")[0].strip().lower() not in {"text/html", "application/xhtml+xml"}:
        return Outcome("not html", Counter())
    is_brotli = record.http_headers.get_header("Content-Encoding") == "br"  # warcio fails since brotli 1.2
    body = brotli.decompress(record.raw_stream.read()) if is_brotli else record.content_stream().read()
    return Outcome("page", images_of(body, content_type, record.rec_headers["WARC-Target-URI"]))


def images_of(body: bytes, content_type: str, page_url: str) -> Counter[tuple[str, str, str]]:
    """The count of each candidate of a page."""
    declared = _CHARSET.search(content_type.encode()) or _CHARSET.search(body[:1024])
    try:
        label = declared[1].decode().lower() if declared else "utf-8"
        html = body.decode(_WEB_CHARSETS.get(label, label), "replace")
    except LookupError:
        html = body.decode("utf-8", "replace")
    parser = Images(page_url.strip("<>"))
    parser.feed(html)
    return parser.candidates()
