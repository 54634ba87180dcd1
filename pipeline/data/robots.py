"""What a site asks of crawlers: robots.txt (RFC 9309) and X-Robots-Tag."""

from __future__ import annotations

import re
from collections.abc import Iterable

from protego import Protego

MAX_ROBOTS_BYTES = 500 * 1024
"""RFC 9309, section 2.5: a crawler parses at least 500 KiB."""
_REFUSING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "noml"})
_AGENT = re.compile(r"[^\s:]+")
_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})


class Robots:
    """The rules of one host. `status` is the answer to robots.txt: 4xx allows everything, 5xx (or none) forbids it."""

    def __init__(self, status: int, body: bytes, agent: str) -> None:
        self._agent = agent
        self._allow_all = 400 <= status < 500
        self._deny_all = status >= 500
        text = body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace") if status < 400 else ""
        self._rules = Protego.parse(text)

    def allows(self, url: str) -> bool:
        """Whether our agent may ask for this address."""
        if self._allow_all or self._deny_all:
            return self._allow_all
        return bool(self._rules.can_fetch(url, self._agent))

    @property
    def crawl_delay_seconds(self) -> float | None:
        """Seconds between requests that the site asks for, if it does."""
        delay = self._rules.crawl_delay(self._agent)
        return float(delay) if delay is not None else None


def tag_forbids(headers: Iterable[str], agent: str) -> bool:
    """Whether X-Robots-Tag headers forbid our agent to index the image or to train on it.

    A header is a list of rules parted by commas; one that begins with `name:` speaks to that agent only, unless the
    name is a rule that takes a value (`max-image-preview: large`). Several headers add up.

    Args:
        headers: the values of all X-Robots-Tag headers.
        agent: our product token, as in robots.txt.
    """
    for header in headers:
        addressed_to_us = True
        for rule in header.lower().split(","):
            name, colon, rest = (part.strip() for part in rule.partition(":"))
            if colon and name not in _WITH_VALUE and _AGENT.fullmatch(name):  # and no time of day
                addressed_to_us = name in {agent.lower(), "*"}
                name = rest
            if addressed_to_us and name in _REFUSING:
                return True
    return False
