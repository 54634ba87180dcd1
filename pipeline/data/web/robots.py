"""What a site asks of crawlers: robots.txt (RFC 9309) and X-Robots-Tag (as Google's documentation describes it).

Usage preferences for AI in robots.txt and in headers of their own (the IETF's AIPREF drafts, Content-Signal, TDMRep)
are not read: none of them is a standard yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote

from protego import Protego

MAX_ROBOTS_BYTES = 500 * 1024
"""RFC 9309, section 2.5: a crawler parses at least 500 KiB."""
MAX_COMPARISONS = 10**8
"""Characters of patterns with wildcards, times characters of an address: about 20 ms, more is not spent on one."""

_END_OF_LINE = re.compile(rb"\r\n?|\n")
_LINE = re.compile(
    rb"(?:(?P<agent>user[- ]?agent)"
    rb"|(?P<rule>allow|disallow|dissallow|dissalow|disalow|diasllow|disallaw)"
    rb"|(?P<pace>crawl[- ]delay|request[- ]rate))\s*[:\s]\s*(?P<value>.*)",
    re.IGNORECASE | re.DOTALL,
)
_TOKEN = re.compile(r"\*(?!\S)|[^\s/*]+")
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))

_REFUSING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none", "noml"})
_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})
_KNOWN = (
    _REFUSING
    | _WITH_VALUE
    | {"all", "index", "follow", "nofollow", "noarchive", "nocache", "nosnippet", "notranslate", "noodp", "noydir"}
    | {"indexifembedded"}
)
_AGENT = re.compile(r"\*|[a-z_][^\s:]*")


class Robots:
    """The rules of one host. `status` is the answer to robots.txt: 4xx allows everything, 5xx (or none) forbids it.

    Groups are chosen here and Protego judges paths by the one that is ours: it would take a group for `clip` as one for
    `clip-on-ray`, and hold the rules of all agents, which are 480 million in a robots.txt of 500 KiB.
    """

    def __init__(self, status: int, body: bytes, agent: str) -> None:
        self._allow_all = 400 <= status < 500
        self._deny_all = status >= 500
        lines = _our_group(body[:MAX_ROBOTS_BYTES], agent) if status < 400 else []
        self._rules = Protego.parse("\n".join(["User-agent: *", *lines]))
        self._num_wild = sum(len(line) for line in lines if "*" in line)

    def allows(self, url: str) -> bool:
        """Whether our agent may ask for this address; not where judging it would take too long."""
        if self._allow_all or self._deny_all:
            return self._allow_all
        return self._num_wild * len(url) <= MAX_COMPARISONS and bool(self._rules.can_fetch(url, "*"))

    @property
    def crawl_delay_seconds(self) -> float | None:
        """Seconds between requests that the site asks for, if it does: the longer of Crawl-delay and Request-rate.

        Neither is in RFC 9309. A rate for some hours of the day is kept all day.
        """
        delay, rate = self._rules.crawl_delay("*"), self._rules.request_rate("*")
        pauses = [] if delay is None else [float(delay)]
        if rate is not None:
            pauses.append(min(rate.seconds, 10**9) / rate.requests)  # more digits than a float holds
        return max(pauses, default=None)


def _our_group(body: bytes, agent: str) -> list[str]:
    """The rules for our agent: all groups with its product token (in any case) together, else those for everybody.

    A group's list of agents ends at its first Allow or Disallow; other lines do not end it (RFC 9309, section 2.2.4).
    Octets outside ASCII are percent-encoded (section 2.2.2).
    """
    ours = agent.partition("/")[0].lower()
    groups: dict[str, list[str]] = {}
    current: set[str] = set()
    in_rules = True
    for line in _END_OF_LINE.split(body.removeprefix(b"\xef\xbb\xbf")):
        found = _LINE.match(line.partition(b"#")[0].strip())
        if found is None:
            continue
        value = quote(found["value"], safe=_PRINTABLE)
        if found["agent"]:
            if in_rules:
                current, in_rules = set(), False
            token = _TOKEN.match(found["value"].decode("utf-8", "replace").lower())
            if token and token[0] in {ours, "*"}:
                current.add(token[0])
                groups.setdefault(token[0], [])
        else:
            in_rules = in_rules or found["rule"] is not None
            field = (found["rule"] or found["pace"]).decode()
            for name in current:
                groups[name].append(f"{field}: {value}")
    return groups.get(ours, groups.get("*", []))


def tag_forbids(headers: Iterable[str], agent: str, now: datetime | None = None) -> bool:
    """Whether X-Robots-Tag headers forbid our agent to index the image or to train on it.

    A header is a list of rules parted by commas. `name:` before a rule says that it and those after it, up to the next
    name, are for that agent only. Several headers add up, and of rules that disagree the stricter one counts. So
    `name: value` with a value that is no rule is an unknown rule, not an agent that what follows would be left to.
    `unavailable_after` with a date that has passed is `noindex`, and is ignored where its date cannot be read.
    `max-image-preview` speaks of previews, not of the image: even `none` forbids nothing here. noai and noimageai are
    DeviantArt's.

    Args:
        headers: the values of all X-Robots-Tag headers.
        agent: our product token, as in robots.txt.
        now: with its time zone; the present unless given.
    """
    now = now or datetime.now(UTC)
    us = {agent.partition("/")[0].lower(), "*"}
    for header in headers:
        addressed_to_us = True
        parts = header.lower().split(",")
        for part, next_part in zip(parts, [*parts[1:], ""], strict=True):
            name, value = _split(part)
            if _AGENT.fullmatch(name) and name not in _KNOWN and _words(_split(value)[0])[0] in _KNOWN:
                addressed_to_us = name.partition("/")[0] in us
                name, value = _split(value)
            if not addressed_to_us:
                continue
            if name == "unavailable_after":
                # A day of the week is parted from its date by a comma
                if _has_passed(value, now) or _has_passed(f"{value},{next_part}", now):
                    return True
            elif not _REFUSING.isdisjoint(_words(name)):
                return True
    return False


def _split(rule: str) -> tuple[str, str]:
    name, _, value = rule.partition(":")
    return name.strip(), value.strip()


def _words(rules: str) -> list[str]:
    """Rules that somebody parted by blanks or semicolons, or quoted."""
    return re.split(r"[\s;]+", rules.strip("\"' "))


def _has_passed(text: str, now: datetime) -> bool:
    """Whether a date as in RFC 822, RFC 850 or ISO 8601 (UTC unless it says) is over; what is no date is not."""
    try:
        date = datetime.fromisoformat(text.upper())
    except ValueError:
        try:
            date = parsedate_to_datetime(text if ":" in text else f"{text} 00:00")
        except (ValueError, OverflowError):
            return False
    return (date if date.tzinfo else date.replace(tzinfo=UTC)) <= now
