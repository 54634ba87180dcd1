from urllib.parse import urljoin

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.web.urls import absolute_url, normalize_url, url_key

SAME = [
    ("http://a.example/x.jpg", "https://a.example/x.jpg"),
    ("http://A.Example:80/x.jpg", "https://a.example:443/x.jpg"),
    ("http://a.example./x.jpg#top", "HTTP://a.example/x.jpg"),
    ("http://a.example", "http://a.example/"),
    ("http://a.example/%7eme/%c3%a4.jpg", "http://a.example/~me/%C3%A4.jpg"),
    ("http://a.example/x?b=1&a=2", "http://a.example/x?a=2&b=1"),
    ("http://a.example/x?utm_source=y&a=2&fbclid=z", "http://a.example/x?a=2"),
    ("http://a.example/x?", "http://a.example/x"),
]
DIFFERENT = [
    ("http://a.example/x.jpg", "http://b.example/x.jpg"),
    ("http://a.example/x.jpg", "http://a.example:8080/x.jpg"),
    ("http://a.example/x.jpg", "http://a.example/X.jpg"),
    ("http://a.example/x?w=100", "http://a.example/x?w=200"),
    ("http://a.example/a%2Fb", "http://a.example/a/b"),
    ("http://a.example/x", "http://a.example/x/"),
]


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


PAGE = "http://a.example/blog/post.html"


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("htp:/@[].a%# ?é\\\t"), max_size=20).map("http:".__add__))
def test_normalizing_is_idempotent(url: str) -> None:
    try:
        once = normalize_url(url)
    except ValueError:
        return
    assert normalize_url(once) == once
    assert "#" not in once


PIECES = st.sampled_from(
    (
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
        "é",
        "@",
    )
)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(PIECES, max_size=7).map("".join), st.sampled_from([PAGE, "https://a.example", "http://A.example/x/", "x"])
)
@example("/x/../y.jpg", PAGE)
@example("/x?y=/../z", PAGE)
@example("http://a.example/x?", PAGE)
@example("http://a.example/x;", PAGE)
@example("/x.jpg;", PAGE)
@example("//", PAGE)
def test_fast_paths_give_the_same_urls(url: str, base: str) -> None:
    """Compare the fast paths of joining and normalizing with urllib and with the slow path."""
    try:
        expected = urljoin(base, url.strip())
    except ValueError:
        expected = ""
    assert absolute_url(base, url) == expected
    try:
        slow = normalize_url(f"{expected}#")  # a fragment forces the slow path
    except ValueError:
        return
    assert normalize_url(expected) == slow


def test_normalizing_keeps_significant_parts() -> None:
    assert normalize_url("http://[2001:DB8::1]:8080/A?b=%20#c") == "http://[2001:db8::1]:8080/A?b=%20"
    assert normalize_url("http://u:p@a.example/x") == "http://a.example/x", "user names and passwords are removed"
