"""Addresses of images and pages: made absolute, normalized, and compared whatever way they are spelt.

absolute_url     an address as it stands on a page -> an absolute one (RFC 3986, section 5)
normalize_url    the same address without what never changes the answer
request_url      the address as a server is asked for it, which is what block lists hold
url_key          one key for all spellings of an address; rows with one key are one picture
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import urljoin, urlsplit, urlunsplit

from yarl import URL

_PATH = r"/[^\x00-\x20\x7f-\U0010ffff#;?]*+(?:\?[^\x00-\x20\x7f-\U0010ffff#;]++)?"
_PLAIN = re.compile(r"https?://[a-z0-9-]++(?:\.[a-z0-9-]++)*+" + _PATH)
_ROOTED = re.compile(r"(?!//)(?!.*/\.)" + _PATH)
"""Addresses that lack only the scheme and the host."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_TRACKING = re.compile(r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|igshid|mc_[ce]id", re.IGNORECASE)
"""Query parameters that tell a site where a visitor came from; they do not change its answer."""
_ESCAPE = re.compile("%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def is_normalized(url: str) -> bool:
    """Whether an address is absolute and visibly in normal form. Most are, which saves parsing them."""
    return _PLAIN.fullmatch(url) is not None


def absolute_url(base: str, url: str) -> str:
    """The absolute form of an address on a page (RFC 3986, section 5), or "" where it cannot be parsed.

    Args:
        base: address of the page, or of its <base> element.
        url: the address as the page has it.
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
    """The address without fragment and default port, and with its host in lower case.

    Raises:
        ValueError: it cannot be parsed.
    """
    if is_normalized(url):
        return url
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    port = f":{parts.port}" if parts.port and parts.port != _DEFAULT_PORTS.get(parts.scheme) else ""
    bracketed = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme.lower(), bracketed + port, parts.path or "/", parts.query, ""))


def request_url(url: str) -> str:
    """The normalized address as a server is asked for it: the host in IDNA, the path percent-encoded.

    Raises:
        ValueError: it is not a complete http or https address.
    """
    parsed = URL(normalize_url(url))
    if parsed.scheme not in _DEFAULT_PORTS or not parsed.raw_host:
        raise ValueError("no address of the web")
    return str(parsed)


def url_key(url: str) -> str:
    """A key that all spellings of an address share (RFC 3986, section 6.2). It is not an address to request.

    http and https count as one scheme. The host is in lower case without its default port, escapes are in upper case
    and only where they are needed, query parameters are sorted, and tracking parameters and the fragment are removed.
    What is not a web address, or cannot be parsed, is its own key.
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


def _normalize_escape(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()


@lru_cache(maxsize=16)
def _origin(base: str) -> str:
    """Scheme and host of a normalized address, "" for any other."""
    return "/".join(base.split("/", 3)[:3]) if is_normalized(base) else ""
