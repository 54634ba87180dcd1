import json
import re
import time
from pathlib import Path

import ada_url
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.web.urls import absolute_url, host_of, is_normalized, location_url, normalize_url, parse_url, url_key

SAME = [
    ("http://a.example/x.jpg", "https://a.example/x.jpg"),
    ("http://A.Example:80/x.jpg", "https://a.example:443/x.jpg"),
    ("http://a.example:443/x.jpg", "https://a.example/x.jpg"),
    ("http://a.example./x.jpg#top", "HTTP://a.example/x.jpg"),
    ("http://a.example", "http://a.example/"),
    ("http://a.example/%7eme/%c3%a4.jpg", "http://a.example/~me/%C3%A4.jpg"),
    ("http://a.example/ä.jpg", "http://a.example/%C3%A4.jpg"),
    ("http://bücher.example:8080/x", "http://xn--BCHER-KVA.example:8080/x"),
    ("http://a.example/a b", "http://a.example/a%20b"),
    ("http://a.example/./b/../x", "http://a.example/x"),
    ("http://a.example\\x.jpg", "http://a.example/x.jpg"),
    ("http://a.example/x?b=1&a=2", "http://a.example/x?a=2&b=1"),
    ("http://a.example/x?utm_source=y&a=2&fbclid=z", "http://a.example/x?a=2"),
    ("http://a.example/x?", "http://a.example/x"),
    ("http://me:secret@a.example/x", "http://a.example/x"),
    ("http://a.example/x?%7A=1&b=2", "http://a.example/x?z=1&b=2"),
    ("http://a.example/x?utm%5Fsource=y&%67clid=z", "http://a.example/x"),
    ("http://a.example.:8080/x", "http://a.example:8080/x"),
    ("http://[::1]:80/x", "https://[0:0::1]/x"),
    ("http://a.example/a|b?c[]={d}", "http://a.example/a%7Cb?c%5B%5D=%7Bd%7D"),  # Chromium escapes |, Ada does not
]
DIFFERENT = [
    ("http://a.example/x.jpg", "http://b.example/x.jpg"),
    ("http://a.example/x.jpg", "http://a.example:8080/x.jpg"),
    ("http://a.example/x.jpg", "http://a.example/X.jpg"),
    ("http://a.example/x?w=100", "http://a.example/x?w=200"),
    ("http://a.example/a%2Fb", "http://a.example/a/b"),
    ("http://a.example/x", "http://a.example/x/"),
    ("http://a.example/x?a=%26b", "http://a.example/x?a=&b"),
    ("http://a.example/x%3Fa", "http://a.example/x?a"),
    ("http://a.example/%2541", "http://a.example/%41"),
    ("http://[::80]/x", "http://[::]/x"),
]
PAGE = "http://a.example/blog/post.html"


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_url_share_a_key(one: str, other: str) -> None:
    assert url_key(one) == url_key(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_urls_of_possibly_different_pictures_have_different_keys(one: str, other: str) -> None:
    assert url_key(one) != url_key(other)


@pytest.mark.parametrize("url", ["", "data:image/png;base64,AAAA", "ftp://a.example/x", "http://[::1/x", "x.jpg"])
def test_other_texts_are_their_own_key(url: str) -> None:
    assert url_key(url) == url


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://a.example/", "http://a.example/?"]))
def test_keys_are_stable(text: str, start: str) -> None:
    once = url_key(start + text)
    if once.startswith("//"):
        assert url_key(f"http:{once}") == once


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("htp:/@[].a%# ?é\\\t\ud800"), max_size=20).map("http:".__add__))
def test_normalizing_is_idempotent(url: str) -> None:
    try:
        once = normalize_url(url)
    except ValueError:
        return
    assert normalize_url(once) == once
    assert "#" not in once
    assert once.isascii()


PIECES = st.sampled_from(
    (
        *(
            "http://",
            "https:",
            "//",
            "/",
            "a.example",
            "A",
            ".",
            "..",
            "x.jpg",
            "?",
            "b=1",
            "#",
            ";",
            ":80",
            "%20",
            " ",
        ),
        *("é", "@", "%2e", "'", "{", "|", "^", "\\", "1", "0x1", "xn--", "-", "`", '"', "\t", "\n"),
    )
)


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(PIECES, max_size=7).map("".join), st.sampled_from([PAGE, "https://a.example", "http://A.example/x/", "x"])
)
@example("/x/../y.jpg", PAGE)
@example("/x?y=/../z", PAGE)
@example("/%2e%2E/z", PAGE)
@example("http://a.example/x?", PAGE)
@example("http://a.example/x;", PAGE)
@example("http://1.2.3/x", PAGE)
@example("http://a.0x1f/x", PAGE)
@example("/x.jpg;", PAGE)
@example("//", PAGE)
def test_fast_paths_give_the_urls_of_the_parser(url: str, base: str) -> None:
    try:
        expected = parse_url(url, base)
    except ValueError:
        expected = ""
    assert absolute_url(base, url) == expected
    if is_normalized(url):
        assert ada_url.normalize_url(url) == url


@pytest.mark.parametrize(
    ("written", "resolved"),
    [
        # The address goes out as written: aiohttp#2188, #4307, #11410
        (
            "http://a.example/smart/http%3A%2F%2Fo.example%2Fa.jpg",
            "http://a.example/smart/http%3A%2F%2Fo.example%2Fa.jpg",
        ),
        ("/foo%27bar%28c%29.jpg", "http://a.example/foo%27bar%28c%29.jpg"),
        ("/?file=my photo.jpg", "http://a.example/?file=my%20photo.jpg"),
        ("/?file=my+photo.jpg", "http://a.example/?file=my+photo.jpg"),
        ("/50%.jpg", "http://a.example/50%.jpg"),
        ("/x?u=a%2Fb", "http://a.example/x?u=a%2Fb"),
        ("/_next/image?url=%2Fhero.png&w=640", "http://a.example/_next/image?url=%2Fhero.png&w=640"),
        ("/a|b^c.jpg", "http://a.example/a|b%5Ec.jpg"),
        # Backslashes and missing slashes: whatwg/url#346
        ("\\images\\x.jpg", "http://a.example/images/x.jpg"),
        ("http:\\\\cdn.example\\x.jpg", "http://cdn.example/x.jpg"),
        ("https:/cdn.example/x.jpg", "https://cdn.example/x.jpg"),
        ("http:/x.jpg", "http://a.example/x.jpg"),
        ("///cdn.example/x.jpg", "http://cdn.example/x.jpg"),
        # White space around and inside: scrapy/w3lib#188, psf/requests#5030
        (" \t/x.jpg\n", "http://a.example/x.jpg"),
        ("/im\nages/\tx.jpg", "http://a.example/images/x.jpg"),
        ("\u00a0/x.jpg", "http://a.example/blog/%C2%A0/x.jpg"),
        # Hosts in other spellings: psf/requests#3687, urllib3#1758
        ("http://ＣＤＮ.example/x", "http://cdn.example/x"),
        ("http://cdn%2Eexample/x", "http://cdn.example/x"),
        ("http://0x7f.1/x", "http://127.0.0.1/x"),
        ("http://faß.example/x", "http://xn--fa-hia.example/x"),
        ("http://a.example/\ud800.jpg", "http://a.example/%EF%BF%BD.jpg"),
        # Rejected
        ("http://", ""),
        ("http://a b.example/x", ""),
        ("http://a.example:99999/x", ""),
        ("http://[::1/x", ""),
        ("http://xn--/x", ""),
    ],
)
def test_urls_are_read_as_browsers_read_them(written: str, resolved: str) -> None:
    assert absolute_url(PAGE, written) == resolved


def test_a_page_whose_own_url_is_broken_still_gives_absolute_urls() -> None:
    assert (
        absolute_url("", "http://A.example/x")
        == absolute_url("urn:uuid:1", "http://A.example/x")
        == "http://a.example/x"
    )
    assert absolute_url("", "/x.jpg") == absolute_url("http://[", "x.jpg") == ""


def test_data_urls_are_not_parsed() -> None:
    assert absolute_url(PAGE, " DATA:image/png;base64,AA/../A\n") == "DATA:image/png;base64,AA/../A"


@pytest.mark.parametrize(
    ("header", "resolved"),
    [
        ("/b\udce4r.jpg", "http://a.example/b%E4r.jpg"),
        ("/bär.jpg", "http://a.example/b%C3%A4r.jpg"),
        ("//b\udcc3\udcbccher.example/", "http://xn--bcher-kva.example/"),
        ("x y.jpg#top", "http://a.example/blog/x%20y.jpg"),
    ],
)
def test_locations_may_hold_bytes_of_any_encoding(header: str, resolved: str) -> None:
    assert location_url(PAGE, header) == resolved


def test_normalizing_keeps_significant_parts() -> None:
    assert normalize_url("http://[2001:DB8::1]:8080/A?b=%20#c") == "http://[2001:db8::1]:8080/A?b=%20"
    assert normalize_url("http://u:p@a.example/x") == "http://a.example/x", "user names and passwords are removed"
    for text in ("x.jpg", "//a.example/x", "javascript:alert(1)", "ftp://a.example/x", "data:,x"):
        with pytest.raises(ValueError, match=r"not a complete|Invalid"):
            normalize_url(text)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://WWW.Example.:8080/x", "www.example"),
        ("https://u@[2001:DB8::1]:80/", "2001:db8::1"),
        ("http://bücher.example", "xn--bcher-kva.example"),
        ("x.jpg", ""),
    ],
)
def test_hosts(url: str, host: str) -> None:
    assert host_of(url) == host


def test_parsing_takes_linear_time() -> None:
    for text in (
        "http://" + "a." * 2**22,
        "/" + "/." * 2**22,
        "/" + "%2e" * 2**21,
        "http://a.example/?" + "&a" * 2**22,
    ):
        assert len(url_key(absolute_url(PAGE, text))) <= len(text) + len(PAGE)


@pytest.mark.realdata
def test_conformance_with_web_platform_tests(clip_data: Path) -> None:
    """urltestdata.json: cases with an http(s) URL or base, and all rejections."""
    cases = json.loads((clip_data / "conformance" / "urltestdata.json").read_text())
    counted = differing = 0
    for case in cases:
        if not isinstance(case, dict) or not _is_web(case):
            continue
        counted += 1
        try:
            read = parse_url(case["input"], case.get("base") or "")
        except ValueError:
            read = None
        differing += read != (None if case.get("failure") else case["href"].partition("#")[0])
    assert (counted, differing) == (502, 0)


def _is_web(case: dict[str, str]) -> bool:
    return bool(case.get("failure")) or re.match("https?:", case["href"]) is not None


REPEATED = (
    *(
        "a",
        "a.",
        "ü",
        "ü.",
        "xn--",
        "xn--a.",
        "xn--9.",
        "\u0301\u0323",
        "/..",
        "/.",
        "%2e/",
        "%",
        "%41",
        "\t",
        "\\",
        "0.",
    ),
    *("0x", ":", "[", "@", "a@", ":@", "?", "&", "a=b&", "#", "\udc80", "\u00ad", "中"),
)


@pytest.mark.faults
@pytest.mark.parametrize("start", ["https://", "https://a.example/?"])
@pytest.mark.parametrize("piece", REPEATED)
def test_urls_of_8_mib_are_read_in_linear_time(piece: str, start: str) -> None:
    """The slowest is the key of eight million lone surrogates: 12 s, since each becomes three escapes."""
    url = start + piece * (2**23 // len(piece)) + "/"
    began = time.process_time()
    absolute_url("https://a.example/b", url)
    url_key(url)
    assert time.process_time() - began < 40
