"""Images of WAT records: Common Crawl's metadata of a crawl's records, a JSON text for each.

The layout is that of ia-web-commons, which makes them: `Envelope` holds the headers of the record that is described,
`Payload-Metadata` the HTTP response and its HTML's head and links. Of an image it keeps the path `IMG@/src` with url,
alt and title; lazy-load attributes, srcset and figcaption are not in it, so a page gives less here than as a WARC.

Most bytes are links to pages and scripts, which nobody asks for here. In JSON a quotation mark inside a string has a
backslash before it, so `{"path":"IMG@/src"` can only be the beginning of an object: the few objects that matter are
found by their bytes and parsed alone. Where a record is laid out otherwise, all of it is parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.schemas import Reason

_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_FLAT = rb"\{(?:%s:%s,?+)*+\}" % (_STRING, _STRING)
_HEADERS = re.compile(rb'"WARC-Header-Metadata":(%s)' % _FLAT)
_MESSAGE = re.compile(rb'"Response-Message":(%s)' % _FLAT)
_METAS = re.compile(rb'"Metas":(\[(?:%s,?+)*+\])' % _FLAT)
_IMAGE = re.compile(rb'\{"path":"IMG@/src"(?:,%s:%s)*+\}' % (_STRING, _STRING))
_IMAGE_START = b'{"path":"IMG@'
_FIELD = re.compile(rb'"(WARC-Type|WARC-Date|WARC-Target-URI|Status)":(%s)' % _STRING)
_SURROGATE = re.compile("[\ud800-\udfff]")


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


class _Parts(NamedTuple):
    headers: Mapping[str, str]
    status: str | None
    is_html: bool
    base: str
    metas: Sequence[Mapping[str, Any]]
    links: Sequence[Mapping[str, Any]]


def read_page(content: bytes, max_images: int) -> Page | None:
    """The page that the content of a WAT record describes; None where the content is no WAT.

    Args:
        content: JSON in UTF-8.
        max_images: images behind these are not looked at.

    Raises:
        ValueError: the content is no JSON.
    """
    parts = _quick_parts(content) or _all_parts(content)
    if parts is None:
        return None
    url, date = parts.headers.get("WARC-Target-URI", "").strip("<>"), parts.headers.get("WARC-Date", "")
    reason = _why_no_page(parts)
    if reason:
        return Page(url, date, reason)
    images = [
        (_text(link.get("url")), name, text)
        for link in parts.links[:max_images]
        for name in ("alt", "title")
        if (text := _text(link.get(name))).strip() and link.get("url")
    ]
    og = {name: _text(meta.get("content")) for meta in reversed(parts.metas) if (name := meta.get("property"))}
    if og.get("og:image") and "og:image:alt" in og:
        images.append((og["og:image"], "og:image:alt", og["og:image:alt"]))
    return Page(url, date, None, parts.base, images)


def _why_no_page(parts: _Parts) -> Reason | None:
    kind = parts.headers.get("WARC-Type")
    if kind != "response":
        return Reason.REVISIT if kind == "revisit" else Reason.NOT_A_RESPONSE
    if parts.status is None:
        return Reason.NOT_HTML
    return why_not_status(parts.status) or (None if parts.is_html else Reason.NOT_HTML)


def why_not_status(status: str) -> Reason | None:
    """The reason for which a response of this status is no page; None of 200, and of what is no status."""
    if not (len(status) == 3 and status.isdigit()) or status == "200":
        return None
    return Reason.HTTP_REDIRECT if status.startswith("3") else Reason.HTTP_ERROR_PAGE


def _text(value: Any) -> str:
    """A value of the JSON as a text that can be stored: half of a surrogate pair becomes a replacement character."""
    if not isinstance(value, str):
        return ""
    return value if value.isascii() else _SURROGATE.sub("\ufffd", value)


def _quick_parts(content: bytes) -> _Parts | None:
    """The parts that matter, found by their bytes; None where the record is not laid out as Common Crawl's are."""
    at = content.rfind(b'"WARC-Header-Metadata":{')
    found = _HEADERS.match(content, at) if at >= 0 else None
    if found is None:
        return None
    headers = _fields(content, *found.span())
    if headers.get("WARC-Type") != "response":
        return _Parts(headers, None, False, "", (), ())
    message = _MESSAGE.search(content)
    html = content.find(b'"HTML-Metadata":{')
    if message is None or html < 0:
        return None if message is None else _Parts(headers, _status(content, message), False, "", (), ())
    head, links = html + len(b'"HTML-Metadata":{'), content.find(b'"Links":[', html)
    if links < 0 or content.find(b'"Base":', head, links) >= 0:
        return None
    if not content.startswith(b'"Head":{', head) and (links > head or content.find(b'"Head":{', links) >= 0):
        return None
    metas: Sequence[Mapping[str, Any]] = ()
    if content.find(b'"og:image:alt"', head, links) >= 0:
        found = _METAS.search(content, head, links)
        if found is None:
            return None
        metas = json.loads(found[1])
    first = content.find(_IMAGE_START, links)
    images = _IMAGE.findall(content, first) if first >= 0 else []
    return _Parts(headers, _status(content, message), True, "", metas, json.loads(b"[%s]" % b",".join(images)))


def _fields(content: bytes, start: int, end: int) -> dict[str, str]:
    found = _FIELD.findall(content, start, end)
    return {name.decode(): json.loads(value) if b"\\" in value else value[1:-1].decode() for name, value in found}


def _status(content: bytes, message: re.Match[bytes]) -> str | None:
    return _fields(content, *message.span()).get("Status")


def _all_parts(content: bytes) -> _Parts | None:
    envelope = _child(json.loads(content), "Envelope")
    headers = _child(envelope, "WARC-Header-Metadata")
    if not headers:
        return None
    response = _child(_child(envelope, "Payload-Metadata"), "HTTP-Response-Metadata")
    status = str(_child(response, "Response-Message").get("Status", "")) if response else None
    html = _child(response, "HTML-Metadata")
    head = _child(html, "Head")
    links = [link for link in _children(html, "Links") if link.get("path") == "IMG@/src"]
    texts = {name: _text(value) for name, value in headers.items()}
    is_html = "HTML-Metadata" in response
    return _Parts(texts, status, is_html, _text(head.get("Base")), _children(head, "Metas"), links)


def _child(parent: Any, name: str) -> Mapping[str, Any]:
    found = parent.get(name) if isinstance(parent, dict) else None
    return found if isinstance(found, dict) else {}


def _children(parent: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    found = parent.get(name)
    return [child for child in found if isinstance(child, dict)] if isinstance(found, list) else []
