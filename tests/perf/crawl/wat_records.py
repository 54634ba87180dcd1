"""Build WAT records of HTML pages in Common Crawl's layout with the standard library's parser, for measurements.

As in Common Crawl, a page gives three records: for its request, its response and its metadata. Tags, attributes and the
order of keys are those of ia-web-commons.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from html.parser import HTMLParser
from typing import Any, NamedTuple

_LINKS = {
    "img": ("src", ("alt", "title")),
    "form": ("action", ("target", "method")),
    **dict.fromkeys(("iframe", "embed", "source", "video", "audio", "input", "frame", "track"), ("src", ())),
}
_HEAD = {"link": ("Link", "href", ("rel", "type")), "script": ("Scripts", "src", ("type",))}
_ANCHOR = ("target", "alt", "title", "rel", "hreflang", "type")
_META = ("name", "rel", "content", "http-equiv", "property")
_MAX_TEXT = 128
_ARCHIVE = "CC-MAIN-20240517233122-20240518023122-00000.warc.gz"
_INFO = "urn:uuid:668d88fc-4208-41fc-b327-1aa6cb783331"
_ID = "urn:uuid:292f457d-203c-42f2-a1b5-69a4dabefd4f"
_DIGEST = "sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ"
_DATE = "2024-05-18T01:58:10Z"
_REQUEST_HEADERS = {
    "User-Agent": "CCBot/2.0 (https://commoncrawl.org/faq/)",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "br,gzip",
    "Connection": "Keep-Alive",
}


class HtmlPage(NamedTuple):
    """A page with HTTP status 200."""

    url: str
    html: str
    headers: Mapping[str, str]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.head: dict[str, Any] = {}
        self.links: list[dict[str, str]] = []
        self._anchors: list[tuple[dict[str, str], list[str]]] = []
        self._title: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in reversed(attrs) if value is not None}

        def link(attribute: str, others: Iterable[str]) -> dict[str, str]:
            rest = {name: values[name] for name in others if name in values}
            return {"path": f"{tag.upper()}@/{attribute}", "url": values[attribute], **rest}

        if tag == "a":
            self._anchors.append((link("href", _ANCHOR) if "href" in values else {}, []))
        elif tag == "base" and "href" in values:
            self.head["Base"] = values["href"]
        elif tag == "title":
            self._title = []
        elif tag == "meta" and (meta := {name: values[name] for name in _META if name in values}):
            self.head.setdefault("Metas", []).append(meta)
        elif tag in _HEAD and _HEAD[tag][1] in values:
            name, attribute, others = _HEAD[tag]
            self.head.setdefault(name, []).append(link(attribute, others))
        elif tag in _LINKS and _LINKS[tag][0] in values:
            self.links.append(link(*_LINKS[tag]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._anchors:
            link, texts = self._anchors.pop()
            if link:
                text = " ".join("".join(texts).split())[:_MAX_TEXT]
                self.links.append({**link, "text": text} if text else link)
        elif tag == "title" and self._title is not None:
            self.head["Title"] = " ".join("".join(self._title).split())[:_MAX_TEXT]
            self._title = None

    def handle_data(self, data: str) -> None:
        if self._title is not None:
            self._title.append(data)
        for _, texts in self._anchors:
            texts.append(data)


def html_metadata(html: str) -> dict[str, Any]:
    """The HTML-Metadata object of ia-web-commons for a page."""
    reader = _Reader()
    reader.feed(html)
    return {**({"Head": reader.head} if reader.head else {}), **({"Links": reader.links} if reader.links else {})}


def records(page: HtmlPage) -> Iterator[bytes]:
    """The WAT records of a page's request, response and metadata."""
    message = {"Method": "GET", "Path": "/", "Version": "HTTP/1.1"}
    http = {"Request-Message": message, "Headers-Length": "263", "Headers": _REQUEST_HEADERS, **_entity(0)}
    yield record(page.url, envelope(page.url, "request", {"HTTP-Request-Metadata": http}))
    http = {
        "Response-Message": {"Version": "HTTP/1.1", "Status": "200", "Reason": "OK"},
        "Headers-Length": "1021",
        "Headers": dict(page.headers),
        "HTML-Metadata": html_metadata(page.html),
        **_entity(len(page.html)),
    }
    yield record(page.url, envelope(page.url, "response", {"HTTP-Response-Metadata": http}))
    fields = [{"Name": "fetchTimeMs", "Value": "272"}, {"Name": "charset-detected", "Value": "UTF-8"}]
    yield record(page.url, envelope(page.url, "metadata", {"WARC-Metadata-Metadata": {"Metadata-Records": fields}}))


def _entity(length: int) -> dict[str, str]:
    return {"Entity-Length": str(length), "Entity-Digest": _DIGEST, "Entity-Trailing-Slop-Length": "0"}


def envelope(url: str, kind: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that describes a record in a WAT file."""
    types = {"metadata": "application/warc-fields"}
    content_type = types.get(kind, f"application/http; msgtype={kind}")
    lengths = {"Deflate-Length": "423", "Header-Length": "10", "Footer-Length": "8", "Inflated-CRC": "1106529533"}
    return {
        "Container": {"Filename": _ARCHIVE, "Compressed": True, "Offset": "80610308", "Gzip-Metadata": lengths},
        "Envelope": {
            "Payload-Metadata": {"Actual-Content-Type": content_type, **payload, "Block-Digest": _DIGEST},
            "Format": "WARC/1.0",
            "WARC-Header-Length": "357",
            "WARC-Header-Metadata": {
                "WARC-Type": kind,
                "WARC-Date": _DATE,
                "WARC-Record-ID": f"<{_ID}>",
                "Content-Length": "265",
                "Content-Type": content_type,
                "WARC-Warcinfo-ID": f"<{_INFO}>",
                "WARC-Target-URI": url,
            },
        },
    }


def record(url: str, content: Mapping[str, Any]) -> bytes:
    """An uncompressed WAT record."""
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    head = (
        f"WARC/1.0\r\nWARC-Type: metadata\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-31T01:17:49Z\r\n"
        f"WARC-Record-ID: <{_ID}>\r\nWARC-Refers-To: <{_ID}>\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nWARC-Payload-Digest: {_DIGEST}\r\nWARC-Block-Digest: {_DIGEST}\r\n\r\n"
    )
    return head.encode() + data + b"\r\n\r\n"
