"""Read robots.txt (RFC 9309) and X-Robots-Tag headers (as described in Google's documentation).

AI usage preferences in robots.txt or in separate headers (the IETF's AIPREF drafts, Content-Signal, TDMRep) are
ignored, because they are not standards yet.
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
"""Maximum of (characters in wildcard patterns) x (characters in a URL): about 20 ms of matching per URL."""

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
    """The robots.txt rules of one origin.

    This class selects our agent's group, and Protego matches paths against that group. Protego alone would apply a
    group for `clip` to `clip-on-ray`, and would store the rules of every agent: up to 480 million in a robots.txt of
    500 KiB.

    Args:
        status: HTTP status of the robots.txt response; 4xx allows everything, 5xx forbids everything.
        body: content of robots.txt.
        agent: our product token.
    """

    def __init__(self, status: int, body: bytes, agent: str) -> None:
        self._allow_all = 400 <= status < 500
        self._deny_all = status >= 500
        lines = _our_group(body[:MAX_ROBOTS_BYTES], agent) if status < 400 else []
        self._rules = Protego.parse("\n".join(["User-agent: *", *lines]))
        self._num_wild = sum(len(line) for line in lines if "*" in line)

    def allows(self, url: str) -> bool:
        """Whether our agent may request this URL; False if matching it would take too long."""
        if self._allow_all or self._deny_all:
            return self._allow_all
        return self._num_wild * len(url) <= MAX_COMPARISONS and bool(self._rules.can_fetch(url, "*"))

    @property
    def crawl_delay_seconds(self) -> float | None:
        """Seconds between requests that the site asks for, or None: the longer of Crawl-delay and Request-rate.

        RFC 9309 defines neither. A rate that is limited to some hours of the day is applied all day.
        """
        delay, rate = self._rules.crawl_delay("*"), self._rules.request_rate("*")
        pauses = [] if delay is None else [float(delay)]
        if rate is not None:
            pauses.append(min(rate.seconds, 10**9) / rate.requests)  # the number may be too large for a float
        return max(pauses, default=None)


def _our_group(body: bytes, agent: str) -> list[str]:
    """The rules for our agent: all groups with its product token (in any case) combined, else those for `*`.

    A group's list of agents ends at its first Allow or Disallow; other lines do not end it (RFC 9309, section 2.2.4).
    Non-ASCII octets are percent-encoded (section 2.2.2).
    """
    ours = agent.partition("/")[0].lower()
    groups: dict[str, list[str]] = {}
    current: set[str] = set()
    in_rules = True
    for line in _END_OF_LINE.split(body.removeprefix(b"\xef\xbb\xbf")):
        match = _LINE.match(line.partition(b"#")[0].strip())
        if match is None:
            continue
        value = quote(match["value"], safe=_PRINTABLE)
        if match["agent"]:
            if in_rules:
                current, in_rules = set(), False
            token = _TOKEN.match(match["value"].decode("utf-8", "replace").lower())
            if token and token[0] in {ours, "*"}:
                current.add(token[0])
                groups.setdefault(token[0], [])
        else:
            in_rules = in_rules or match["rule"] is not None
            field = (match["rule"] or match["pace"]).decode()
            for name in current:
                groups[name].append(f"{field}: {value}")
    return groups.get(ours, groups.get("*", []))


def tag_forbids(headers: Iterable[str], agent: str, now: datetime | None = None) -> bool:
    """Whether X-Robots-Tag headers forbid our agent to index the image or to train on it.

    A header is a comma-separated list of rules. `name:` before a rule limits this rule and the following ones, up to
    the next name, to that agent. All headers apply together, and the strictest rule wins. If the value in `name: value`
    is not a known rule, `name` is therefore read as an unknown rule and not as an agent; otherwise the rules after it
    would not apply to us. `unavailable_after` with a past date means `noindex`; with an unreadable date it is ignored.
    `max-image-preview` limits previews, not the image, so even its value `none` forbids nothing here. `noai` and
    `noimageai` come from DeviantArt.

    Args:
        headers: the values of all X-Robots-Tag headers.
        agent: our product token, as in robots.txt.
        now: the current time, with a time zone; defaults to the system clock.
    """
    now = now or datetime.now(UTC)
    our_names = {agent.partition("/")[0].lower(), "*"}
    for header in headers:
        addressed_to_us = True
        parts = header.lower().split(",")
        for part, next_part in zip(parts, [*parts[1:], ""], strict=True):
            name, value = _split(part)
            if _AGENT.fullmatch(name) and name not in _KNOWN and _words(_split(value)[0])[0] in _KNOWN:
                addressed_to_us = name.partition("/")[0] in our_names
                name, value = _split(value)
            if not addressed_to_us:
                continue
            if name == "unavailable_after":
                # A comma may separate the day of the week from its date
                if _has_passed(value, now) or _has_passed(f"{value},{next_part}", now):
                    return True
            elif not _REFUSING.isdisjoint(_words(name)):
                return True
    return False


def _split(rule: str) -> tuple[str, str]:
    name, _, value = rule.partition(":")
    return name.strip(), value.strip()


def _words(rules: str) -> list[str]:
    """Split rules that a site separated by blanks or semicolons or put in quotation marks."""
    return re.split(r"[\s;]+", rules.strip("\"' "))


def _has_passed(text: str, now: datetime) -> bool:
    """Whether an RFC 822, RFC 850 or ISO 8601 date (UTC by default) has passed; False if it cannot be parsed."""
    try:
        date = datetime.fromisoformat(text.upper())
    except ValueError:
        try:
            date = parsedate_to_datetime(text if ":" in text else f"{text} 00:00")
        except (ValueError, OverflowError):
            return False
    return (date if date.tzinfo else date.replace(tzinfo=UTC)) <= now
