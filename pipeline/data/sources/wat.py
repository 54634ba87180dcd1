"""Images of WAT records: Common Crawl's metadata of a crawl's records, a JSON text for each.

The layout is that of ia-web-commons, which makes them: `Envelope` holds the headers of the record that is described,
`Payload-Metadata` the HTTP response and its HTML's head and links. Of an image it keeps the path `IMG@/src` with url,
alt and title; lazy-load attributes, srcset and figcaption are not in it, so a page gives less here than as a WARC.

Nearly all of the time goes into reading JSON, so only what is asked for is made into objects (msgspec's typed decoder,
which passes over the rest and still checks it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pipeline.reasons import Reason


class Page(NamedTuple):
    """What a WAT record tells of the record that it describes."""

    url: str
    date: str
    """WARC-Date of the record that is described."""
    reason: Reason | None
    """Why it is no page."""
    base: str = ""
    """The href of the base element."""
    images: Sequence[tuple[str, str, str]] = ()
    """Address, caption source and text, as they stand there."""


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
    """The page that the content of a WAT record describes; None where the content is no WAT.

    Args:
        content: JSON in UTF-8.
        max_images: images behind these are not looked at.

    Raises:
        ValueError: the content is no JSON, or what is read of it is not laid out as a WAT is.
        RecursionError: it is nested too deeply.
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
    reason = why_not_status(status) if message else Reason.NOT_HTML
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


def why_not_status(status: int | None) -> Reason | None:
    """The reason for which a response of this status is no page; None of 200, and where there is no status."""
    if status in {200, None}:
        return None
    return Reason.HTTP_REDIRECT if status in range(300, 400) else Reason.HTTP_ERROR_PAGE
