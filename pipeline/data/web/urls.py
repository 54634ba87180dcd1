"""Addresses that differ in writing only: one form for all of them, so that what is one picture is fetched once."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_TRACKING = re.compile(r"utm_\w+|fbclid|gclid|dclid|msclkid|yclid|igshid|mc_[ce]id", re.IGNORECASE)
"""Parameters that tell a site where its visitor comes from, and change nothing of what it answers."""
_ESCAPE = re.compile("%([0-9a-fA-F]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def normalized(url: str) -> str:
    """What all ways of writing one address have in common (RFC 3986, section 6.2); never an address to ask for.

    http and https are one; the host is in lower case, without its default port; escapes are in upper case, and only
    where they are needed; parameters are in order, those for tracking and the fragment are gone. What is no address of
    the web stays as it is, and so does one that cannot be read.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        return url
    try:
        parts = urlsplit(f"//{rest}")
    except ValueError:  # of an IPv6 address that is none
        return url
    host = parts.netloc.lower().removesuffix(_DEFAULT_PORTS[scheme]).removesuffix(".")
    parameters = sorted(p for p in parts.query.split("&") if p and not _TRACKING.fullmatch(p.partition("=")[0]))
    query = f"?{'&'.join(parameters)}" if parameters else ""
    return f"//{host}{_ESCAPE.sub(_escape, (parts.path or '/') + query)}"


def _escape(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if character in _UNRESERVED else found[0].upper()
