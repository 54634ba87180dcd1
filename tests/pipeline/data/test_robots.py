import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.robots import MAX_ROBOTS_BYTES, Robots, tag_forbids

AGENT = "clip-on-ray"
URL = "http://a.example/photos/star.jpg?w=1"


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
        ("User-agent: *\nDisallow: /photos/\nAllow: /photos/star", True),  # the longest rule counts
        ("User-agent: *\nAllow: /photos/\nDisallow: /photos/star", False),
        ("User-agent: *\nDisallow: /photos/\nAllow: /photos/", True),
        ("User-agent: otherbot\nDisallow: /", True),
        ("User-agent: Clip-On-Ray\nDisallow: /", False),
        ("User-agent: *\nDisallow: /\n\nUser-agent: clip-on-ray\nDisallow:", True),  # our own group alone counts
        ("User-agent: *\nDisallow:\n\nUser-agent: clip-on-ray\nDisallow: /", False),
        ("User-agent: otherbot\nUser-agent: clip-on-ray\nDisallow: /photos", False),
        ("\ufeffUser-agent: * # everybody\r\nDisallow: /photos # now\r\n", False),
        ("<html><body>Not a robots.txt</body></html>", True),
    ],
)
def test_rules(rules: str, allowed: bool) -> None:
    assert Robots(200, rules.encode(), AGENT).allows(URL) is allowed


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 502, 503])
def test_a_host_without_rules_allows_and_one_in_trouble_forbids(status: int) -> None:
    for body in (b"", b"User-agent: *\nDisallow: /", b"User-agent: *\nDisallow:"):
        assert Robots(status, body, AGENT).allows(URL) is (status < 500)


def test_a_long_file_is_read_up_to_500_kib() -> None:
    filler = b"# filler\n" * (MAX_ROBOTS_BYTES // 9)
    rules = b"User-agent: *\nDisallow: /photos/\n"
    assert not Robots(200, rules + filler, AGENT).allows(URL)
    assert Robots(200, filler + b"#" * 9 + rules, AGENT).allows(URL)


@given(st.binary(max_size=200))
def test_any_bytes_are_rules(body: bytes) -> None:
    rules = Robots(200, body, AGENT)
    assert rules.allows(URL) in {True, False}
    assert rules.crawl_delay_seconds is None or rules.crawl_delay_seconds >= 0


@pytest.mark.parametrize(
    ("rules", "seconds"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: otherbot\nCrawl-delay: 9\n\nUser-agent: *\nDisallow: /x", None),
        ("User-agent: *\nCrawl-delay: 9\n\nUser-agent: clip-on-ray\nCrawl-delay: 3", 3.0),
        ("User-agent: *\nCrawl-delay: soon", None),
        ("User-agent: *\nCrawl-delay: nan", None),
        ("User-agent: *\nCrawl-delay: -1", None),
        ("", None),
    ],
)
def test_crawl_delay(rules: str, seconds: float | None) -> None:
    assert Robots(200, rules.encode(), AGENT).crawl_delay_seconds == seconds


@pytest.mark.parametrize(
    "header",
    [
        *("noai", "noimageai", "noindex", "noimageindex", "none", "noml"),
        *("NoAI", " noai ", "noai, noimageai", "max-image-preview:large, noai", "nosnippet,noarchive , noindex"),
        *("clip-on-ray: noai", "Clip-On-Ray: noindex, nofollow", "clip-on-ray: nofollow, noai", "*: noai"),
        "otherbot: nofollow, clip-on-ray: noai",
        "unavailable_after: 25 Jun 2010 15:00:00 PST, noai",
        "unavailable_after: Friday, 25 Jun 2010 15:00:00 PST, noai",  # the time of day names no agent
        "max-snippet: 20, max-video-preview: -1, noindex",
    ],
)
def test_tags_that_forbid(header: str) -> None:
    assert tag_forbids([header], AGENT)
    assert tag_forbids(["all", header], AGENT), "several headers add up"


@pytest.mark.parametrize(
    "header",
    [
        *("", "all", "nofollow", "noarchive, nosnippet, notranslate", "noaiart", "index", "xnoai", "noindexifembedded"),
        *("max-image-preview:large", "max-image-preview: none", "unavailable_after: noai"),
        *("otherbot: noindex", "otherbot: noai, noimageai", "otherbot: nofollow, noindex", "clip-on-ray-2: noai"),
        "otherbot: noindex, clip-on-ray: nofollow",
    ],
)
def test_tags_that_do_not(header: str) -> None:
    assert not tag_forbids([header], AGENT)


def test_no_headers_forbid_nothing() -> None:
    assert not tag_forbids([], AGENT)
