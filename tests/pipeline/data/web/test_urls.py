import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.web.urls import normalized

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
def test_ways_of_writing_one_address_are_one(one: str, other: str) -> None:
    assert normalized(one) == normalized(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_may_be_another_picture_is_another(one: str, other: str) -> None:
    assert normalized(one) != normalized(other)


@pytest.mark.parametrize("url", ["", "data:image/png;base64,AAAA", "ftp://a.example/x", "http://[::1/x", "x.jpg"])
def test_what_is_no_address_of_the_web_stays_as_it_is(url: str) -> None:
    assert normalized(url) == url


@given(st.text(max_size=60), st.sampled_from(["", "http://", "https://a.example/", "http://a.example/?"]))
def test_any_text_has_one_form(text: str, start: str) -> None:
    once = normalized(start + text)
    if once.startswith("//"):
        assert normalized(f"http:{once}") == once
