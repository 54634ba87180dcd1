import base64
import codecs
import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.web.robots import (
    MAX_COMPARISONS,
    MAX_DISALLOW_CHARACTERS,
    MAX_ROBOTS_BYTES,
    MAX_TAG_CHARACTERS,
    Robots,
    tag_forbids,
)

AGENT = "clip-on-ray"
URL = "http://a.example/photos/star.jpg?w=1"


def allows(rules: str | bytes, path: str = "/photos/star.jpg?w=1", agent: str = AGENT) -> bool:
    return Robots(200, rules.encode() if isinstance(rules, str) else rules, agent).allows(f"http://a.example{path}")


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ("", True),
        ("User-agent: *\nDisallow:", True),
        ("User-agent: *\nDisallow: /", False),
        ("User-agent: *\nDisallow: /photos/", False),
        ("User-agent: *\nDisallow: /photo", False),
        ("User-agent: *\nDisallow: /Photos/", True),
        ("User-agent: *\nDisallow: /*.jpg", False),
        ("User-agent: *\nDisallow: /*.jpg$", True),
        ("User-agent: *\nDisallow: /*.jpg?w=1$", False),
        ("User-agent: *\nDisallow: /photos/\nAllow: /photos/star", True),  # the longest matching rule wins
        ("User-agent: *\nAllow: /photos/\nDisallow: /photos/star", False),
        ("User-agent: *\nDisallow: /photos/\nAllow: /photos/", True),
        ("User-agent: otherbot\nDisallow: /", True),
        ("<html><body>Not a robots.txt</body></html>", True),
    ],
)
def test_rules(rules: str, allowed: bool) -> None:
    assert allows(rules) is allowed


@pytest.mark.parametrize(
    ("rules", "allowed"),
    [
        ("User-agent: Clip-On-Ray\nDisallow: /", False),
        ("User-agent: *\nDisallow: /\n\nUser-agent: clip-on-ray\nDisallow:", True),  # only our own group applies
        ("User-agent: *\nDisallow: /\n\nUser-agent: clip-on-ray", True),  # even without rules
        ("User-agent: *\nDisallow:\n\nUser-agent: clip-on-ray\nDisallow: /", False),
        ("User-agent: otherbot\nUser-agent: clip-on-ray\nDisallow: /photos", False),
        (
            "User-agent: clip-on-ray\n\n\nUser-agent: otherbot\n\nDisallow: /photos",
            False,
        ),  # blank lines are ignored
        ("User-agent: clip-on-ray\nDisallow: /a\nUser-agent: otherbot\nDisallow: /photos", True),
        # All groups for an agent are combined, ignoring case
        (
            "User-agent: clip-on-ray\nAllow: /a\n\nUser-agent: b\nAllow: /\n\nUser-agent: CLIP-ON-RAY\nDisallow: /p",
            False,
        ),
        ("User-agent: *\nDisallow: /a\n\nUser-agent: b\nAllow: /\n\nUser-agent: *\nDisallow: /photos", False),
        ("User-agent: *\nDisallow: /photos\n\nUser-agent: b\nAllow: /\n\nUser-agent: *\nDisallow: /a", False),
        # The whole token must match, not a part of it
        *(
            (f"User-agent: {name}\nDisallow: /", True)
            for name in ("clip", "ray", "clip-on-ray-2", "lip-on-ray", "*bot")
        ),
        *((f"User-agent: {name}\nDisallow:\n\nUser-agent: *\nDisallow: /", False) for name in ("clip", "on", "c", "")),
        # Versions and comments are not part of the token
        *(
            (f"User-agent: {name}\nDisallow: /", False)
            for name in ("clip-on-ray/1.0", "clip-on-ray*", "clip-on-ray bot", "clip-on-ray#1")
        ),
        # Lines that are not rules do not end the list of agents
        ("User-agent: clip-on-ray\nSitemap: http://a.example/s\nUser-agent: b\nDisallow: /", False),
        ("User-agent: clip-on-ray\nCrawl-delay: 3\n\nUser-agent: *\nDisallow: /", False),
        ("User-agent: clip-on-ray\nAnything: at all\nUser-agent: b\nDisallow: /", False),
        ("Disallow: /\nUser-agent: clip-on-ray\nAllow: /a", True),  # rules before the first agent apply to no agent
    ],
)
def test_groups(rules: str, allowed: bool) -> None:
    assert allows(rules) is allowed


def test_the_version_of_the_agent_is_ignored() -> None:
    assert not allows("User-agent: clip-on-ray\nDisallow: /", agent="Clip-On-Ray/2.1")


@pytest.mark.parametrize(
    "rules",
    [
        "\ufeffUser-agent: * # everybody\r\nDisallow: /photos # now\r\n",
        "User-agent: *\rDisallow: /photos",
        "User-agent: *\r\n\r\nDisallow: /photos",
        "  User-agent  :  *\n\tDISALLOW\t:\t/photos\t",
        "user agent: *\nuseragent: x\ndisallow /photos",
        "User-agent *\nDissallow: /photos",
        b"User-agent: *\nDisallow: /caf\xe9\xff\0\nDisallow: /photos",
        "User-agent: *\nDisallow: /x\u2028Allow: /photos\x85\nDisallow: /photos",  # these characters do not end a line
    ],
)
def test_common_spellings_of_lines(rules: str | bytes) -> None:
    assert not allows(rules)


RFC_SIMPLE = """\
User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot

EOF
"""
RFC_LONGEST = "User-Agent: foobot\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n"


@pytest.mark.parametrize(
    ("rules", "agent", "path", "allowed"),
    [
        # RFC 9309, section 5.1
        (RFC_SIMPLE, "anybot", "/publications/x.gif", True),  # /publications/ is longer than *.gif$
        (RFC_SIMPLE, "anybot", "/x.gif", False),
        (RFC_SIMPLE, "anybot", "/x.gif?a", True),
        (RFC_SIMPLE, "anybot", "/example/page.html", False),
        (RFC_SIMPLE, "foobot", "/example/page.html", True),
        (RFC_SIMPLE, "foobot", "/example/allowed.gif", True),
        (RFC_SIMPLE, "foobot", "/publications/", False),
        (RFC_SIMPLE, "FooBot", "/", False),
        (RFC_SIMPLE, "barbot", "/example/page.html", False),
        (RFC_SIMPLE, "bazbot", "/example/page.html", False),
        (RFC_SIMPLE, "bazbot", "/example/other.gif", True),
        (RFC_SIMPLE, "quxbot", "/example/page.html", True),
        # Section 5.2
        (RFC_LONGEST, "foobot", "/example/page/x.gif", True),
        (RFC_LONGEST, "foobot", "/example/page/disallowed.gif", False),
    ],
)
def test_examples_of_the_rfc(rules: str, agent: str, path: str, allowed: bool) -> None:
    assert allows(rules, path, agent) is allowed


@pytest.mark.parametrize(
    ("rule", "path", "matches"),
    [
        # RFC 9309, section 2.2.2: both sides are compared in the same encoding
        ("/foo/bar?baz=quz", "/foo/bar?baz=quz", True),
        ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar", False),  # a slash is not %2F
        ("/foo/bar?baz=https%3A%2F%2Ffoo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar", True),
        ("/foo/bar/ツ", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%E3%83%84", "/foo/bar/ツ", True),
        ("/foo/bar/%e3%83%84", "/foo/bar/%E3%83%84", True),
        ("/foo/bar/%62%61%7A", "/foo/bar/baz", True),
        ("/foo/bar/baz", "/foo/bar/%62%61%7A", True),
        # Section 2.2.3
        ("/allow/this/path/exactly$", "/allow/this/path/exactly", True),
        ("/allow/this/path/exactly$", "/allow/this/path/exactly/not", False),
        ("/this/*/exactly", "/this/path/exactly", True),
        ("/this/*/exactly", "/this/a/b/exactly/x", True),
        ("/this/*/exactly", "/this/exactly", False),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html", True),
        ("/path/file-with-a-%2A.html", "/path/file-with-a-x.html", False),
        ("/path/foo-%24", "/path/foo-$", True),
        ("/path/foo-%24", "/path/foo-", False),
        # Consequences of these rules
        ("/fish*", "/fish.html", True),
        ("/*.php$", "/folder/x.php?parameters", False),
        ("/a**b", "/axb", True),
        ("/caf\xe9", "/caf%C3%A9", True),
        ("/a b", "/a%20b", True),
        ("/a#b", "/a", True),  # a comment
    ],
)
def test_patterns(rule: str, path: str, matches: bool) -> None:
    assert allows(f"User-agent: *\nDisallow: {rule}", path) is not matches


@pytest.mark.parametrize("status", [200, 201, 203, 206, 226, 299])
def test_any_success_applies_the_content(status: int) -> None:
    """Section 2.3.1.1 does not name 200; internetarchive/wayback#74 lost the rules of other statuses."""
    assert not Robots(status, b"User-agent: *\nDisallow: /", AGENT).allows(URL)
    assert Robots(status, b"User-agent: *\nDisallow: /\nAllow: /photos", AGENT).allows(URL)
    assert Robots(status, b"User-agent: *\nCrawl-delay: 9", AGENT).crawl_delay_seconds == 9
    assert Robots(status, b"", AGENT).allows(URL)  # 204 and 205 have no content


@pytest.mark.parametrize("status", [100, 300, 302, 304, 399, 400, 401, 403, 404, 410, 429, 500, 502, 503, 599, 999])
def test_other_statuses_allow_and_server_errors_forbid(status: int) -> None:
    """A redirect that cannot be followed leaves the file unavailable (section 2.3.1.2)."""
    for body in (b"", b"User-agent: *\nDisallow: /", b"User-agent: *\nDisallow:"):
        robots = Robots(status, body, AGENT)
        assert robots.allows(URL) is (status < 500)
        assert robots.crawl_delay_seconds is None


DIFFERENCES = Counter(
    {
        # Section 2.2.2: non-ASCII octets of the URL are percent-encoded before they are compared. For Google's parser
        # this is the caller's task.
        "Encoding 2b (URL not encoded: caller)": 1,
        "Encoding 3b (URL not encoded: caller)": 1,
        # Section 2.2.2: escapes of unreserved characters are decoded before they are compared; Google's parser does not
        "Encoding 4 (%62%61%7A; RFC says decode)": 1,
        # Section 2.5: at least 500 KiB are parsed. Google's parser cuts the line, and thus allows more than it says.
        "Line too long 2 cut (GoogleOnly)": 1,
    }
)


@pytest.mark.realdata
def test_the_tests_of_googles_parser(clip_data: Path) -> None:
    """The file has robots_test.cc of google/robotstxt. Where we differ, RFC 9309 decides."""
    cases = json.loads((clip_data / "conformance" / "robots.json").read_text())
    assert len(cases) == 169
    different = Counter(
        case["name"]
        for case in cases
        if Robots(200, base64.b64decode(case["robots_base64"]), case["agent"]).allows(case["url"])
        is not case["allowed"]
    )
    assert different == DIFFERENCES


@pytest.mark.parametrize("mark", [b"", b"\xef", b"\xef\xbb", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    "rules",
    [
        b"User-agent: *\nDisallow: /",
        b"Disallow: /x\nUser-agent: clip-on-ray\nDisallow: /",
        # BUbiNG#17, scrapy#6195, seomoz/rep-cpp#13
        b"User-agent: *\r\nDisallow: /\r\n",
        b"user-agent: *\nDisallow: /\n\nUser-agent: b\nDisallow:",
        b"User-Agent: *\nDisallow: /photos",
    ],
)
def test_a_byte_order_mark_or_its_beginning_is_skipped(mark: bytes, rules: bytes) -> None:
    assert not allows(mark + rules)


def test_what_is_no_byte_order_mark_harms_its_line() -> None:
    for start in (b"\xbb\xbf", b"\xef\x11\xbf", b"\xef\xbb\xbf\xef\xbb\xbf", b"\xbf"):
        assert allows(start + b"User-agent: *\nDisallow: /")
        assert not allows(start + b"Sitemap: x\nUser-agent: *\nDisallow: /")


UNICODE_RULES = "User-agent: *\r\nDisallow: /x\nDisallow: /фото\nDisallow: /photos # €\n"


@pytest.mark.parametrize(
    "body",
    [
        codecs.BOM_UTF16_LE + UNICODE_RULES.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + UNICODE_RULES.encode("utf-16-be"),
        codecs.BOM_UTF16_LE + UNICODE_RULES.encode("utf-16-le") + b"U",  # cut within a character
        codecs.BOM_UTF16_LE + UNICODE_RULES.encode("utf-16-le") + b"\x00\xd8",  # a lone surrogate
        codecs.BOM_UTF32_LE + UNICODE_RULES.encode("utf-32-le"),
    ],
)
def test_utf_16_is_decoded(body: bytes) -> None:
    """Section 2.2.2 permits to read other encodings; crawler-commons does so with UTF-16 too."""
    assert not allows(body)
    assert not allows(body, "/%D1%84%D0%BE%D1%82%D0%BE/1.jpg")
    assert allows(body, "/other")


@pytest.mark.parametrize(
    "body",
    [
        "User-agent: *\nDisallow: /photos".encode("utf-16-le"),
        "User-agent: *\r\nDisallow: /photos\r\n".encode("utf-16-be"),
        b"\0\0User-agent: *\nDisallow: /photos",
        b"User-agent: *\0\nDisallow: /photos\0\0\0",
        b"User-agent\0: *\nDisallow:\0/photos",
        b"User-agent: *\n\0Disallow: /pho\0tos",
    ],
)
def test_nul_bytes_are_left_out(body: bytes) -> None:
    """No line of the grammar (section 2.2) has one, and UTF-16 without a byte order mark has many."""
    assert not allows(body)
    assert allows(body, "/other")


@pytest.mark.parametrize("blank", [b"\xc2\xa0", b"\xa0", b" \xc2\xa0\t"])
def test_a_no_break_space_is_a_blank_where_the_grammar_has_no_character(blank: bytes) -> None:
    for line in (b"%bUser-agent: *", b"User-agent%b: *", b"User-agent:%b*", b"User-agent: *%b"):
        assert not allows(line.replace(b"%b", blank) + b"\nDisallow: /photos")
    for line in (b"%bDisallow: /photos", b"Disallow%b: /photos", b"Disallow:%b/photos", b"Disallow: /photos%b"):
        assert not allows(b"User-agent: *\n" + line.replace(b"%b", blank))
    assert not allows(b"User-agent: clip-on-ray%b\nDisallow: /".replace(b"%b", blank))


def test_a_no_break_space_within_a_path_is_part_of_it() -> None:
    """Section 2.2: a path has any UTF-8 character but controls, blanks and #."""
    assert not allows("User-agent: *\nDisallow: /a\N{NO-BREAK SPACE}b", "/a%C2%A0b")
    assert allows("User-agent: *\nDisallow: /a\N{NO-BREAK SPACE}b", "/ab")
    assert not allows("User-agent: *\nDisallow: /\nAllow: /photos\N{NO-BREAK SPACE}"), "an Allow is not shortened"
    assert allows("User-agent: *\nDisallow: /\nAllow: /photos\N{NO-BREAK SPACE}", "/photos%C2%A0")


@pytest.mark.parametrize(
    ("body", "path", "allowed"),
    [
        # mwmbl/crawler-script#1, scrapy#6292: octets of Latin-1 harm nothing but their line
        (b"User-agent: *\nDisallow: /caf\xe9\nDisallow: /photos", "/photos", False),
        (b"# \xdf\nUser-agent: *\nDisallow: /\nAllow: /stra\xdfe", "/stra%DFe", True),
        # crawler-commons#389
        ("User-agent: *\nDisallow: /bücher/".encode(), "/b%C3%BCcher/book1.html", False),
        (b"User-agent: *\nDisallow: /b\xfccher/", "/b%FCcher/book1.html", False),
        (b"User-agent: *\nDisallow: /b\xfccher/", "/k%C3%B6nyvek/", True),
    ],
)
def test_octets_that_are_not_utf_8(body: bytes, path: str, allowed: bool) -> None:
    assert allows(body, path) is allowed


def test_a_long_disallow_is_cut_and_a_long_allow_is_not() -> None:
    path = "/".ljust(MAX_DISALLOW_CHARACTERS, "a")
    for rest, forbidden in (("", True), ("b", True), ("c", True)):
        assert allows(f"User-agent: *\nDisallow: {path}b", path + rest) is not forbidden
    assert allows(f"User-agent: *\nDisallow: {path}b", path[:-1])
    assert allows(f"User-agent: *\nDisallow: /\nAllow: {path}b", path + "b")
    assert not allows(f"User-agent: *\nDisallow: /\nAllow: {path}b", path + "c")


def test_only_the_first_500_kib_are_read() -> None:
    filler = b"# filler\n" * (MAX_ROBOTS_BYTES // 9)
    rules = b"User-agent: *\nDisallow: /photos/\n"
    assert not Robots(200, rules + filler, AGENT).allows(URL)
    assert Robots(200, filler + b"#" * 9 + rules, AGENT).allows(URL)


ALL = "User-agent: *\n"
NBSP = "\N{NO-BREAK SPACE}"
SLOW = {
    # Protego alone would store every rule of every agent
    "agents": "".join(f"User-agent: a{i}\n" for i in range(15_000)) + "".join(f"Allow: /{i}\n" for i in range(15_000)),
    "stars": ALL * 15_000 + "".join(f"Allow: /{i}\n" for i in range(15_000)),
    "one pattern": f"{ALL}Disallow: /{'*a' * 250_000}b",
    "one pattern to the end": f"{ALL}Disallow: /{'*a' * 250_000}b$",
    "patterns": ALL + "".join(f"Disallow: /*{i:x}z\n" for i in range(30_000)),
    "long patterns": ALL + "".join(f"Disallow: /*{'a' * 40}{i:x}z\n" for i in range(9_000)),
    "paths": ALL + "".join(f"Disallow: /{i:x}z\n" for i in range(30_000)),
    "blanks": f"User-agent{' ' * 500_000}x",
    "no-break spaces": f"{ALL}Disallow:{NBSP * 125_000}/{NBSP * 125_000}",
    "no-break spaces in front": NBSP * 250_000,
    "long rules": ALL + f"Disallow: /{'a' * 20_000}\n" * 25,
    "escapes": f"{ALL}Disallow: /{'%' * 500_000}",
    "empty lines": "\r" * 500_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_hostile_files_and_urls_are_fast(name: str) -> None:
    """The limits are 20 times the measured times (0.35 s to parse, 20 ms to match)."""
    start = time.process_time()
    rules = Robots(200, SLOW[name].encode(), AGENT)
    assert time.process_time() - start < 7
    for path in ("a" * 100, "a" * 8_000, "a" * 300_000, "%" * 8_000):
        start = time.process_time()
        rules.allows(f"http://a.example/{path}")
        assert time.process_time() - start < 0.4


def test_urls_that_take_too_long_to_match_are_forbidden() -> None:
    rule = "Disallow: /*bbbbbbbb"
    length = MAX_COMPARISONS // (len(rule) * 1_000)
    rules = Robots(200, (ALL + f"{rule}\n" * 1_000).encode(), AGENT)
    url = "http://a.example/".ljust(length, "a")
    assert rules.allows(url)
    assert not rules.allows(f"{url}a")
    assert Robots(200, (ALL + "Disallow: /b\n" * 30_000).encode(), AGENT).allows(url), "plain paths are matched fast"


lines = st.sampled_from(
    ["User-agent: *", "user-agent:clip-on-ray", "User-agent: b", "Disallow: /", "Allow: /p", "", "x"]
)
texts = st.lists(lines | st.text(max_size=10), max_size=8).map("\r\n".join)


@given(st.binary(max_size=200) | texts.map(str.encode), st.text(max_size=20))
def test_any_bytes_can_be_parsed(body: bytes, path: str) -> None:
    rules = Robots(200, body, AGENT)
    assert rules.allows(f"http://a.example/{path}") in {True, False}
    assert rules.crawl_delay_seconds is None or rules.crawl_delay_seconds >= 0


@pytest.mark.parametrize(
    ("rules", "seconds"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: otherbot\nCrawl-delay: 9\n\nUser-agent: *\nDisallow: /x", None),
        ("User-agent: otherbot\nDisallow: /\nCrawl-delay: 9\n\nUser-agent: *\nDisallow: /x", None),
        ("User-agent: *\nDisallow: /x\nCrawl-delay: 9\n\nUser-agent: clip-on-ray\nCrawl-delay: 3", 3.0),
        ("User-agent: *\nCrawl-delay: soon", None),
        ("User-agent: *\nCrawl-delay: nan", None),
        ("User-agent: *\nCrawl-delay: -1", None),
        ("User-agent: *\nCrawl-delay: 1e999", None),
        ("User-agent: *\nCrawl-delay:", None),
        ("User-agent: *\nRequest-rate: 1/5", 5.0),
        ("User-agent: *\nRequest-rate: 2/1m", 30.0),
        ("User-agent: *\nRequest-rate: 1/10m 1300-1659", 600.0),
        ("User-agent: *\nRequest-rate: 1/5\nCrawl-delay: 7", 7.0),
        ("User-agent: *\nRequest-rate: 1/9\nCrawl-delay: 7", 9.0),
        ("User-agent: *\nRequest-rate: 0/5", None),
        ("User-agent: *\nRequest-rate: often", None),
        (f"User-agent: *\nRequest-rate: 1/{'9' * 400}", 1e9),
        (f"User-agent: *\nRequest-rate: {'9' * 400}/1", 0.0),
        ("", None),
    ],
)
def test_crawl_delay_and_request_rate(rules: str, seconds: float | None) -> None:
    assert Robots(200, rules.encode(), AGENT).crawl_delay_seconds == seconds


@pytest.mark.parametrize(
    "header",
    [
        *("noai", "noimageai", "noindex", "noimageindex", "none", "noml"),
        *("NoAI", " noai ", "noai, noimageai", "max-image-preview:large, noai", "nosnippet,noarchive , noindex"),
        *("max-image-preview: none, noai", "unavailable_after: none, noai"),
        *("clip-on-ray: noai", "Clip-On-Ray: noindex, nofollow", "clip-on-ray: nofollow, noai", "*: noai"),
        *("clip-on-ray/1.0: noai", "otherbot: noindex, *: noai", "clip-on-ray: unavailable_after: 1 Jan 2020"),
        *("otherbot: nofollow, clip-on-ray: noai", "clip-on-ray: noai, otherbot: all"),
        "unavailable_after: 25 Jun 2999 15:00:00 PST, noai",
        "unavailable_after: Friday, 25 Jun 2999 15:00:00 PST, noai",  # the time of day is not an agent
        "max-snippet: 20, max-video-preview: -1, noindex",
        *("clip-on-ray: max-snippet: 20, noindex", "noindex, indexifembedded"),
        # An unknown rule with a value is not an agent
        *("max-frobnication: 7, noai", "refresh: soon, noai", "nobody knows: this, noindex", ",,:, ::, noai"),
        # Common errors: other separators, and quotation marks
        *("noindex nofollow", "nofollow; noindex", "clip-on-ray: nofollow noindex", '"noindex, nofollow"', "'noai'"),
    ],
)
def test_tags_that_forbid(header: str) -> None:
    assert tag_forbids([header], AGENT)
    assert tag_forbids(["all", header], AGENT), "all headers apply"
    assert tag_forbids(["otherbot: all", header], AGENT), "an agent name applies only to the rest of its own header"


@pytest.mark.parametrize(
    "header",
    [
        *("", "all", "nofollow", "noarchive, nosnippet, notranslate", "noaiart", "index", "xnoai", "noindexifembedded"),
        *(
            "max-image-preview:large",
            "max-image-preview: none",
            "max-image-preview:none, all",
            "unavailable_after: noai",
        ),
        *("otherbot: noindex", "otherbot: noai, noimageai", "otherbot: nofollow, noindex", "clip-on-ray-2: noai"),
        *("otherbot: noindex, clip-on-ray: nofollow", "clip: noai", "otherbot: none, thirdbot: noai"),
        *("otherbot: max-image-preview: none, noindex", "otherbot: unavailable_after: 1 Jan 2020, noindex"),
        *("otherbot: noindex nofollow, noai", "no index", "non", "noindex=1", "frobnicate, : , ;"),
    ],
)
def test_tags_that_do_not_forbid(header: str) -> None:
    assert not tag_forbids([header], AGENT)


@pytest.mark.parametrize(
    "date",
    [
        "25 Jun 2010 15:00:00 PST",  # Google's example
        "Fri, 25 Jun 2010 15:00:00 GMT",  # RFC 822
        "Friday, 25-Jun-10 15:00:00 UTC",  # RFC 850
        *("25 Jun 2010", "Fri, 25 Jun 2010"),
        *("2010-06-25", "2010-06-25T15:00:00Z", "2010-06-25T15:00:00+02:00", "20100625"),  # ISO 8601
        "25 Jun 2010 15:00:00",  # without a time zone
    ],
)
def test_unavailable_after_forbids_after_its_date(date: str) -> None:
    for header in (
        f"unavailable_after: {date}",
        f"all, Unavailable_After:{date}, nofollow",
        f"*: unavailable_after: {date}",
    ):
        assert tag_forbids([header], AGENT)
        assert tag_forbids([header], AGENT, datetime(2010, 6, 26, 12, tzinfo=UTC))
        assert not tag_forbids([header], AGENT, datetime(2010, 6, 24, 12, tzinfo=UTC))


@pytest.mark.parametrize(
    "date", ["", "soon", "99 Jun 2010", "25 Jun 99999999999999999999", "0", "-1", "2010-13-45", ":"]
)
def test_an_unreadable_date_is_ignored(date: str) -> None:
    assert not tag_forbids([f"unavailable_after: {date}"], AGENT)
    assert tag_forbids([f"unavailable_after: {date}, noai"], AGENT)


rules = st.sampled_from(
    ["noai", "none", "otherbot", "clip-on-ray", "*", "unavailable_after", "max-snippet", "1 Jan 2020 10:00", "Fri", " "]
)
junk = st.lists(rules | st.text(max_size=8) | st.dates().map(str), max_size=8)


@given(st.lists(st.builds(str.join, st.sampled_from([",", ":", ": ", ", ", " ", "-"]), junk) | st.text(), max_size=3))
def test_junk_raises_no_error(headers: list[str]) -> None:
    assert tag_forbids(headers, AGENT) in {True, False}
    assert tag_forbids([*headers, "noai"], AGENT)


@given(st.text(alphabet="0123456789 :-/+,JanGMTZ.\t", max_size=30))
def test_any_date_raises_no_error(date: str) -> None:
    assert tag_forbids([f"unavailable_after: {date}"], AGENT) in {True, False}


@pytest.mark.parametrize("agent", ["Clip-On-Ray", "clip-on-ray/2.1"])
def test_the_agent_matches_by_its_product_token(agent: str) -> None:
    assert tag_forbids(["clip-on-ray: noai"], agent)


def test_no_headers_allow_everything() -> None:
    assert not tag_forbids([], AGENT)


def test_more_tags_than_are_read_forbid() -> None:
    assert not tag_forbids(["all, " * 10, "all"], AGENT)
    assert tag_forbids(["a" * (MAX_TAG_CHARACTERS // 2), "b" * (MAX_TAG_CHARACTERS // 2 + 1)], AGENT)


@pytest.mark.parametrize(
    "piece", ["a,", "a:", "a:b,", ";", "unavailable_after: 1,", "unavailable_after:", '"', "noai:"]
)
def test_hostile_tags_take_little_time(piece: str) -> None:
    start = time.process_time()
    tag_forbids([piece * (MAX_TAG_CHARACTERS // len(piece))], AGENT)
    assert time.process_time() - start < 1
