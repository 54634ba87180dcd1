"""Read robots.txt (RFC 9309) and X-Robots-Tag headers (as described in Google's documentation).

AI usage preferences in robots.txt or in separate headers (the IETF's AIPREF drafts, Content-Signal, TDMRep) are
ignored, because they are not standards yet.

A robots.txt that breaks the RFC's grammar is read in the way that forbids more: UTF-16 is decoded (section 2.2.2
permits it), NUL bytes are left out, a no-break space counts as a blank where the grammar has no place for one and at
the end of a Disallow, and an overlong Disallow is cut.
"""

from __future__ import annotations

import codecs
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

MAX_TAG_CHARACTERS = 65_536
"""Maximum of all X-Robots-Tag headers of a response together; more of them forbid."""
MAX_DISALLOW_CHARACTERS = 16_000
"""A longer Disallow is cut and so forbids more. URLs are shorter; Google's parser cuts every line at 16,663 bytes."""

_END_OF_LINE = re.compile(r"\r\n?|\n")
_WHITE = " \t\v\f"
_BLANKS = _WHITE + "\N{NO-BREAK SPACE}\udca0"
"""U+DCA0 stands for the octet A0, the no-break space of Latin-1."""
_LINE = re.compile(
    rf"[{_BLANKS}]*+(?:(?P<agent>user[- ]?agent)"
    r"|(?P<allow>allow)|(?P<disallow>disallow|dissallow|dissalow|disalow|diasllow|disallaw)"
    rf"|(?P<pace>crawl[- ]delay|request[- ]rate))(?:[{_BLANKS}]*+:|[{_BLANKS}])[{_BLANKS}]*+(?P<value>.*)",
    re.IGNORECASE | re.DOTALL | re.ASCII,
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
        status: HTTP status of the robots.txt response. 2xx applies the content (section 2.3.1.1), 5xx forbids
            everything (section 2.3.1.4), and any other one allows everything (section 2.3.1.3).
        body: content of robots.txt.
        agent: our product token.
    """

    def __init__(self, status: int, body: bytes, agent: str) -> None:
        is_success = 200 <= status < 300
        self._deny_all = status >= 500
        self._allow_all = not is_success and not self._deny_all
        lines = _our_group(_decode(body[:MAX_ROBOTS_BYTES]), agent) if is_success else []
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


def _decode(body: bytes) -> str:
    """The text; octets that are not UTF-8 become surrogates.

    The beginning of a UTF-8 byte order mark is skipped too, as in Google's parser.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = body.decode("utf-16", "replace")
    else:
        mark = next((size for size in (3, 2, 1) if body.startswith(codecs.BOM_UTF8[:size])), 0)
        text = body[mark:].decode("utf-8", "surrogateescape")
    return text.replace("\0", "")


def _our_group(text: str, agent: str) -> list[str]:
    """The rules for our agent: all groups with its product token (in any case) combined, else those for `*`.

    A group's list of agents ends at its first Allow or Disallow; other lines do not end it (RFC 9309, section 2.2.4).
    Non-ASCII octets are percent-encoded (section 2.2.2).
    """
    ours = agent.partition("/")[0].lower()
    groups: dict[str, list[str]] = {}
    current: set[str] = set()
    in_rules = True
    for line in _END_OF_LINE.split(text):
        match = _LINE.match(line.partition("#")[0])
        if match is None:
            continue
        value = match["value"].rstrip(_WHITE if match["allow"] else _BLANKS)
        if match["agent"]:
            if in_rules:
                current, in_rules = set(), False
            token = _TOKEN.match(value.lower())
            if token and token[0] in {ours, "*"}:
                current.add(token[0])
                groups.setdefault(token[0], [])
        else:
            if match["disallow"]:
                value = value[:MAX_DISALLOW_CHARACTERS]
            in_rules = in_rules or match["pace"] is None
            field = match["allow"] or match["disallow"] or match["pace"]
            rule = f"{field}: {quote(value, safe=_PRINTABLE, errors='surrogateescape')}"
            for name in current:
                groups[name].append(rule)
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
        headers: the values of all X-Robots-Tag headers. More than MAX_TAG_CHARACTERS are not read and forbid, because
            aiohttp accepts 64 MiB of them, and all other requests would wait.
        agent: our product token, as in robots.txt.
        now: the current time, with a time zone; defaults to the system clock.
    """
    now = now or datetime.now(UTC)
    our_names = {agent.partition("/")[0].lower(), "*"}
    headers = list(headers)
    if sum(map(len, headers)) > MAX_TAG_CHARACTERS:
        return True
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
