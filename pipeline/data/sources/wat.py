"""Read images from WAT records, Common Crawl's JSON metadata of the records of a crawl.

The layout is that of ia-web-commons, which writes WAT files. `Envelope` contains the headers of the described record,
and `Payload-Metadata` the HTTP response with the head and links of its HTML. Of an image it keeps the path `IMG@/src`
with url, alt and title. Lazy-load attributes, srcset and figcaption are missing, so a WAT record gives fewer candidates
than the WARC record of the same page.

Parsing JSON takes nearly all of the time. msgspec's typed decoder therefore builds only the fields below; it skips the
rest but still validates it. A record that it refuses, for a lone surrogate or for one link without a URL, is read again
more tolerantly, so that the page keeps its other images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

import msgspec

from pipeline.printable import storable
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

    Values of the wrong type count as missing; octets that are not UTF-8 and lone surrogates become U+FFFD.

    Raises:
        ValueError: the content is not JSON, or not like a WAT record.
        RecursionError: the JSON is nested too deeply.
    """
    try:
        return _page(_RECORD.decode(content), max_images)
    except ValueError:
        value = json.loads(bytes(content).decode("utf-8", "replace"), strict=False)
        page = _page(_of_type(_Record, value) or _Record(), max_images)
        if page is None:
            raise
        return page


def _of_type(kind: Any, value: Any) -> Any:
    """A value from JSON as a type of the fields above, without the parts that do not fit; None if it does not fit."""
    if kind is str:
        return storable(value) if isinstance(value, str) else None
    if kind is msgspec.Raw:
        metas = [_of_type(_Meta, meta) or _Meta() for meta in value] if isinstance(value, list) else []
        return msgspec.Raw(msgspec.json.encode(metas))
    if get_origin(kind) is list:
        (item,) = get_args(kind)
        return list(filter(None, (_of_type(item, each) for each in value))) if isinstance(value, list) else None
    if kinds := [each for each in get_args(kind) if each is not NoneType]:
        return _of_type(kinds[0], value)
    if not isinstance(value, dict):
        return None
    fields = {field.name: _of_type(field.type, value.get(field.encode_name)) for field in _fields(kind)}
    return kind(**{name: part for name, part in fields.items() if part is not None})


@cache
def _fields(kind: type[_Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(kind)


def _page(record: _Record, max_images: int) -> Page | None:
    envelope = record.envelope
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
