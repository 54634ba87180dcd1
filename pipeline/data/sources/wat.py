"""Read images from WAT records, Common Crawl's JSON metadata of the records of a crawl.

The layout is that of ia-web-commons, which writes WAT files. `Envelope` contains the headers of the described record,
and `Payload-Metadata` the HTTP response with the head and links of its HTML. Of an image it keeps the path `IMG@/src`
with url, alt and title. Lazy-load attributes, srcset and figcaption are missing, so a WAT record gives fewer candidates
than the WARC record of the same page.

Parsing JSON takes nearly all of the time. msgspec's typed decoder therefore builds only the fields below; it skips the
rest but still validates it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pipeline.reasons import Reason


class Page(NamedTuple):
    """The contents of a WAT record."""

    url: str
    date: str
    """WARC-Date of the described record."""
    reason: Reason | None
    """Why the described record is not a page."""
    base: str = ""
    """The href of the base element."""
    images: Sequence[tuple[str, str, str]] = ()
    """URL, caption source and text of each image, as in the record."""


class _Struct(msgspec.Struct, gc=False):
    pass


class _Link(_Struct):
    path: str = ""
    url: str = ""
    alt: str = ""
    title: str = ""


class _Meta(_Struct):
    property: str = ""
    content: str = ""


class _Head(_Struct):
    base: str = msgspec.field(name="Base", default="")
    metas: msgspec.Raw = msgspec.field(name="Metas", default=msgspec.Raw(b"[]"))


class _Html(_Struct):
    head: _Head | None = msgspec.field(name="Head", default=None)
    links: list[_Link] = msgspec.field(name="Links", default_factory=list)


class _Message(_Struct):
    status: str = msgspec.field(name="Status", default="")


class _Response(_Struct):
    message: _Message | None = msgspec.field(name="Response-Message", default=None)
    html: _Html | None = msgspec.field(name="HTML-Metadata", default=None)


class _Payload(_Struct):
    response: _Response | None = msgspec.field(name="HTTP-Response-Metadata", default=None)


class _Headers(_Struct):
    kind: str = msgspec.field(name="WARC-Type", default="")
    url: str = msgspec.field(name="WARC-Target-URI", default="")
    date: str = msgspec.field(name="WARC-Date", default="")


class _Envelope(_Struct):
    payload: _Payload | None = msgspec.field(name="Payload-Metadata", default=None)
    headers: _Headers | None = msgspec.field(name="WARC-Header-Metadata", default=None)


class _Record(_Struct):
    envelope: _Envelope | None = msgspec.field(name="Envelope", default=None)


_RECORD = msgspec.json.Decoder(_Record)
_METAS = msgspec.json.Decoder(list[_Meta])


def read_page(content: bytes | memoryview, max_images: int) -> Page | None:
    """The page that a WAT record describes; None if the content is not a WAT record.

    Args:
        content: JSON in UTF-8.
        max_images: further images of the page are ignored.

    Raises:
        ValueError: the content is not valid JSON, or a field has the wrong type for a WAT record.
        RecursionError: the JSON is nested too deeply.
    """
    envelope = _RECORD.decode(content).envelope
    if envelope is None or envelope.headers is None:
        return None
    headers = envelope.headers
    url = headers.url.strip("<>")
    if headers.kind != "response":
        return Page(url, headers.date, Reason.REVISIT if headers.kind == "revisit" else Reason.NOT_A_RESPONSE)
    response = envelope.payload.response if envelope.payload else None
    message = response.message if response else None
    status = int(message.status) if message and message.status.isdecimal() else None
    reason = reason_for_status(status) if message else Reason.NOT_HTML
    html = response.html if response else None
    if reason or html is None:
        return Page(url, headers.date, reason or Reason.NOT_HTML)
    images = []
    for link in [link for link in html.links if link.path == "IMG@/src"][:max_images]:
        if link.alt and link.url and not link.alt.isspace():
            images.append((link.url, "alt", link.alt))
        if link.title and link.url and not link.title.isspace():
            images.append((link.url, "title", link.title))
    if html.head and b'"og:image:alt"' in bytes(html.head.metas):
        og = {meta.property: meta.content for meta in reversed(_METAS.decode(html.head.metas))}
        if og.get("og:image") and "og:image:alt" in og:
            images.append((og["og:image"], "og:image:alt", og["og:image:alt"]))
    return Page(url, headers.date, None, html.head.base if html.head else "", images)


def reason_for_status(status: int | None) -> Reason | None:
    """The reason why a response with this HTTP status is not a page; None for status 200 and for a missing status."""
    if status in {200, None}:
        return None
    return Reason.HTTP_REDIRECT if status in range(300, 400) else Reason.HTTP_ERROR_PAGE
