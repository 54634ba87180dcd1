"""Resolve, normalize and compare URLs of images and pages, as browsers read them (WHATWG URL, parsed by Ada).

absolute_url     a URL as written on a page -> an absolute URL
location_url     a URL as written in a Location header -> an absolute URL
normalize_url    the one spelling that is stored, sent to servers, judged by robots.txt and compared with block lists
url_key          one key for all URLs of the same picture, such as the http and the https one
host_of          the host of a URL
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import ada_url

from pipeline.data.web.data_urls import is_data_url
from pipeline.printable import storable

_SEGMENTS = r"(?:/(?!\.|%2[Ee])[A-Za-z0-9._~%!$&'()*+,;=:@-]*+)++"
_QUERY = r"(?:\?[A-Za-z0-9._~%!$&()*+,;=:@/?-]*+)?"
_PLAIN = re.compile(rf"https?://(?![^/?#]*xn--)(?:[a-z0-9-]++\.)*+[a-z][a-z0-9-]*+{_SEGMENTS}{_QUERY}")
_ROOTED = re.compile(rf"(?!//){_SEGMENTS}{_QUERY}")
"""URLs that lack only the scheme and the host."""
_HTTP = re.compile(r"https?://(?P<authority>[^/?#]*)")
_STRIPPED = "".join(map(chr, range(0x21)))
"""The characters that the standard removes from both ends of a URL: C0 controls and the blank."""
_TRACKING = re.compile(r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|igshid|mc_[ce]id", re.IGNORECASE)
"""Query parameters that track where a visitor came from; they do not change the response."""
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})|[^A-Za-z0-9._~%!$&'()*+,;=:@/?-]")
"""An escape, or a character that RFC 3986 does not allow in a path or a query."""
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def is_normalized(url: str) -> bool:
    """Whether a URL is obviously in the form that `normalize_url` gives. Most URLs are and need no parsing."""
    return _PLAIN.fullmatch(url) is not None


def absolute_url(base: str, url: str) -> str:
    """The absolute form of a URL on a page, or "" if a browser would reject it.

    Args:
        base: URL of the page, or of its <base> element.
        url: the URL as written on the page. A data: URL is returned as it is, since it may have many millions of
            characters (data_urls.py reads it).
    """
    url = url.strip(_STRIPPED)
    if is_normalized(url):
        return url
    if _ROOTED.fullmatch(url) and (origin := _origin(base)):
        return origin + url
    if is_data_url(url):
        return url
    try:
        return parse_url(url, base)
    except ValueError:
        return ""


def location_url(base: str, location: str) -> str:
    """The absolute form of a Location header. Bytes outside ASCII are percent-encoded, whatever their encoding.

    Args:
        base: the URL that was requested.
        location: the header's value, decoded as aiohttp does (UTF-8, other bytes as lone surrogates).

    Raises:
        ValueError: a browser would reject the URL.
    """
    octets = location.encode("utf-8", "surrogateescape")
    ascii_only = "".join(chr(octet) if octet < 0x80 else f"%{octet:02X}" for octet in octets)
    return parse_url(ascii_only, base)


def parse_url(url: str, base: str = "") -> str:
    """A URL, or a URL relative to a base, as the standard serializes it, without its fragment.

    Raises:
        ValueError: a browser would reject the URL.
    """
    url = storable(url)
    try:
        href: str = ada_url.join_url(storable(base), url) if base else ada_url.normalize_url(url)
    except ValueError:
        if not base:
            raise
        href = ada_url.normalize_url(url)  # the base may be at fault
    _check_punycode(href)
    return href.partition("#")[0]


def normalize_url(url: str) -> str:
    """The spelling of a URL that is stored, requested and compared: the standard's, without user name and fragment.

    Raises:
        ValueError: it is not a complete http or https URL.
    """
    if is_normalized(url):
        return url
    href = parse_url(url)
    match = _HTTP.match(href)
    if match is None:
        raise ValueError("not a complete http or https URL")
    start, end = match.span("authority")
    return href[:start] + match["authority"].rpartition("@")[2] + href[end:]


def host_of(url: str) -> str:
    """The host of an http or https URL in lower-case ASCII, without a final dot; "" for other texts."""
    try:
        match = _HTTP.match(normalize_url(url))
    except ValueError:
        return ""
    assert match is not None
    return _host_and_port(match["authority"])[0].strip("[]").rstrip(".")


def _host_and_port(authority: str) -> tuple[str, str]:
    """Host and port of a normalized URL; the port is "" if it is that of the scheme."""
    end = authority.rfind("]") + 1
    host, _, port = authority[end:].partition(":")
    return authority[:end] + host, port


def url_key(url: str) -> str:
    """A key that all spellings of a URL share (RFC 3986, section 6.2). The key itself cannot be requested.

    http and https count as one scheme, and their default ports as none. Escapes are in upper case and only where RFC
    3986 needs them (browsers differ in escaping |), query parameters are sorted, and tracking parameters and a final
    dot of the host are removed. A text that is not a web URL, or that a browser would reject, is its own key.
    """
    try:
        _, _, rest = normalize_url(url).partition("://")
    except ValueError:
        return url
    authority, slash, rest = rest.partition("/")
    host, port = _host_and_port(authority)
    path, _, query = _ESCAPE.sub(_normalize_escape, rest).partition("?")
    parameters = sorted(p for p in query.split("&") if p and not _TRACKING.fullmatch(p.partition("=")[0]))
    query = f"?{'&'.join(parameters)}" if parameters else ""
    port = f":{port}" if port not in {"", "80", "443"} else ""
    return f"//{host.removesuffix('.')}{port}{slash}{path}{query}"


def _normalize_escape(match: re.Match[str]) -> str:
    if match[1] is None:
        return f"%{ord(match[0]):02X}"
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


def _check_punycode(href: str) -> None:
    """Reject labels that are not Punycode of a valid label (UTS 46, section 4, step 4); Ada 4.0 accepts some."""
    authority = href.partition("://")[2].partition("/")[0]
    if "xn--" not in authority:
        return
    for label in authority.rpartition("@")[2].partition(":")[0].split("."):
        if label.startswith("xn--"):
            decoded = label[4:].encode().decode("punycode")
            if decoded.isascii() or unicodedata.normalize("NFKC", decoded.lower()) != decoded:
                raise ValueError(f"{label!r} is not a valid label")


@lru_cache(maxsize=16)
def _origin(base: str) -> str:
    """Scheme and host of a normalized URL, "" for any other URL."""
    return "/".join(base.split("/", 3)[:3]) if is_normalized(base) else ""
