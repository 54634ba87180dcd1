"""Resolve, normalize and compare URLs of images and pages.

absolute_url     a URL as written on a page -> an absolute URL (RFC 3986, section 5)
normalize_url    the same URL without the parts that never change the response
request_url      the URL as sent to a server; block lists use this form
url_key          one key for all spellings of a URL; rows with the same key show the same picture
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urljoin, urlsplit, urlunsplit

from yarl import URL

_PATH = r"/[^\x00-\x20\x7f-\U0010ffff#;?]*+(?:\?[^\x00-\x20\x7f-\U0010ffff#;]++)?"
_PLAIN = re.compile(r"https?://[a-z0-9-]++(?:\.[a-z0-9-]++)*+" + _PATH)
_ROOTED = re.compile(r"(?!//)(?!.*/\.)" + _PATH)
"""URLs that lack only the scheme and the host."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_TRACKING = re.compile(r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|igshid|mc_[ce]id", re.IGNORECASE)
"""Query parameters that track where a visitor came from; they do not change the response."""
_ESCAPE = re.compile("%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def is_normalized(url: str) -> bool:
    """Whether a URL is absolute and obviously in normal form. Most URLs are and need no parsing."""
    return _PLAIN.fullmatch(url) is not None


def absolute_url(base: str, url: str) -> str:
    """The absolute form of a URL on a page (RFC 3986, section 5), or "" if it cannot be parsed.

    Args:
        base: URL of the page, or of its <base> element.
        url: the URL as written on the page.
    """
    url = url.strip()
    if is_normalized(url):
        return url
    if _ROOTED.fullmatch(url) and (origin := _origin(base)):
        return origin + url
    try:
        return urljoin(base, url)
    except ValueError:
        return ""


def normalize_url(url: str) -> str:
    """The URL without fragment and default port, and with its host in lower case.

    Raises:
        ValueError: the URL cannot be parsed.
    """
    if is_normalized(url):
        return url
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = f":{parts.port}" if parts.port and parts.port != _DEFAULT_PORTS.get(parts.scheme) else ""
    bracketed = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme.lower(), bracketed + port, parts.path or "/", parts.query, ""))


def request_url(url: str) -> str:
    """The normalized URL as sent to a server: the host in IDNA, the path percent-encoded.

    Raises:
        ValueError: it is not a complete http or https URL.
    """
    parsed = URL(normalize_url(url))
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.raw_host:
        raise ValueError("not a complete http or https URL")
    return str(parsed)


def url_key(url: str) -> str:
    """A key that all spellings of a URL share (RFC 3986, section 6.2). The key itself cannot be requested.

    http and https count as one scheme. The host is in lower case without its default port, escapes are in upper case
    and only where they are needed, query parameters are sorted, and tracking parameters and the fragment are removed.
    A text that is not a web URL, or cannot be parsed, is its own key.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        return url
    try:
        parts = urlsplit(f"//{rest}")
    except ValueError:  # malformed IPv6 address
        return url
    host = parts.netloc.lower().removesuffix(f":{_DEFAULT_PORTS[scheme]}").removesuffix(".")
    parameters = sorted(p for p in parts.query.split("&") if p and not _TRACKING.fullmatch(p.partition("=")[0]))
    query = f"?{'&'.join(parameters)}" if parameters else ""
    return f"//{host}{_ESCAPE.sub(_normalize_escape, (parts.path or '/') + query)}"


def _normalize_escape(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _UNRESERVED else match[0].upper()


@lru_cache(maxsize=16)
def _origin(base: str) -> str:
    """Scheme and host of a normalized URL, "" for any other URL."""
    return "/".join(base.split("/", 3)[:3]) if is_normalized(base) else ""
