import base64
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.sources.page import (
    MAX_DEPTH,
    MAX_TEXT_CHARACTERS,
    MAX_URL_CHARACTERS,
    candidate,
    is_deep,
    page_candidates,
)
from pipeline.data.web.charsets import decode_html
from pipeline.hashing import hash128
from pipeline.reasons import Reason

PAGE = "http://a.example/blog/post.html"


def rows_of(
    html: str, page_url: str = PAGE, srcset_max_width: int = 1024, max_images: int = 100
) -> list[dict[str, Any]]:
    return [row._asdict() for row in page_candidates(html, page_url, srcset_max_width, max_images)]


def found(html: str, page_url: str = PAGE) -> list[tuple[str, str, str]]:
    return [(row["url"], row["caption_source"], row["caption"]) for row in rows_of(html, page_url)]


def image_url(html: str) -> str:
    (row,) = rows_of(html)
    return str(row["url"])


def test_each_text_of_an_image_is_a_candidate() -> None:
    html = """
      <figure><a href="/"><img src="star.jpg" alt=" A red\n star " title="Star of the week"></a>
      <figcaption>The <b>red</b> star, <i>seen</i> at night</figcaption></figure>
      <img src="/circle.png" alt="a blue circle">
      <img src="bare.jpg"><img alt="no address"><img src="blank.jpg" alt="  ">
    """
    star = "http://a.example/blog/star.jpg"
    assert found(html) == [
        (star, "alt", "A red star"),
        (star, "title", "Star of the week"),
        (star, "figcaption", "The red star, seen at night"),
        ("http://a.example/circle.png", "alt", "a blue circle"),
    ]


def test_a_figcaption_belongs_to_the_nearest_figure() -> None:
    html = """<figure><figcaption>outer one</figcaption><img src="1">
      <figure><div><div><img src="2"></div></div><figcaption>inner one</figcaption></figure></figure><img src="3">"""
    assert [(url[-1], caption) for url, _, caption in found(html)] == [("1", "outer one"), ("2", "inner one")]


def test_og_image_alt_describes_og_image() -> None:
    image = '<meta property="og:image" content="/og.jpg">'
    alt = '<meta property="og:image:alt" content="A ship at sea">'
    assert found(f"<head>{alt}{image}</head>") == [("http://a.example/og.jpg", "og:image:alt", "A ship at sea")]
    assert found(f"<head>{image}</head>") == found(f"<head>{alt}</head>") == []


@pytest.mark.parametrize(
    ("base", "src", "expected"),
    [
        ("", "x.jpg", "http://a.example/blog/x.jpg"),
        ("", "/x.jpg", "http://a.example/x.jpg"),
        ("", "../x.jpg", "http://a.example/x.jpg"),
        ("", "//cdn.example/x.jpg", "http://cdn.example/x.jpg"),
        ("", "HTTPS://CDN.Example:443/X.jpg#top", "https://cdn.example/X.jpg"),
        ("", "http://cdn.example:80", "http://cdn.example/"),
        ("", "http://cdn.example:8080/x?b=1&amp;a=2", "http://cdn.example:8080/x?b=1&a=2"),
        ("", " \n x.jpg ", "http://a.example/blog/x.jpg"),
        ("", "?v=2", "http://a.example/blog/post.html?v=2"),
        ('<base href="http://b.example/img/">', "x.jpg", "http://b.example/img/x.jpg"),
        ('<base href="/img/">', "x.jpg", "http://a.example/img/x.jpg"),
        ('<base href="//b.example/img/x.html">', "y.jpg", "http://b.example/img/y.jpg"),
        ('<base href="http://[">', "x.jpg", "http://a.example/blog/x.jpg"),
        ('<base href="javascript:;">', "x.jpg", "http://a.example/blog/x.jpg"),
        ('<base href="data:text/html,x">', "x.jpg", "http://a.example/blog/x.jpg"),
        ('<base href="">', "x.jpg", "http://a.example/blog/x.jpg"),
        ('<svg><base href="/svg/"></svg><base href="/one/">', "x.jpg", "http://a.example/one/x.jpg"),
        ('<math><base href="/math/"></math>', "x.jpg", "http://a.example/blog/x.jpg"),
        (
            '<svg><foreignObject><div><base href="/one/"></div></foreignObject></svg>',
            "x.jpg",
            "http://a.example/one/x.jpg",
        ),
        ('<template><base href="/t/"></template>', "x.jpg", "http://a.example/blog/x.jpg"),
        ("", "http:x.jpg", "http://a.example/blog/x.jpg"),
        ("", "https:/cdn.example/x.jpg", "https://cdn.example/x.jpg"),
        ("", "http:\\\\cdn.example\\x.jpg", "http://cdn.example/x.jpg"),
        ("", "///cdn.example/x.jpg", "http://cdn.example/x.jpg"),
        ('<base target="_blank"><base href="/one/"><base href="/two/">', "x.jpg", "http://a.example/one/x.jpg"),
    ],
)
def test_urls_are_absolute_and_normalized(base: str, src: str, expected: str) -> None:
    assert image_url(f'{base}<img src="{src}" alt="a star">') == expected


@pytest.mark.parametrize(
    "src", ["http://[bad/x.jpg", "http://a.example:99999/x.jpg", "javascript:void(0)", "about:blank"]
)
def test_unusable_urls(src: str) -> None:
    (row,) = rows_of(f'<img src="{src}" alt="a star">')
    assert row["reason"] == Reason.BAD_URL


@pytest.mark.parametrize("page_url", ["", "http://[bad", "post.html", "dns:a.example"])
def test_a_relative_url_on_a_page_without_a_url(page_url: str) -> None:
    (row,) = rows_of('<img src="x.jpg" alt="a star">', page_url)
    assert row["reason"] == Reason.BAD_URL


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ('src="s"', "s"),
        ('src="s" srcset="a 320w, b 640w, c 2048w"', "b"),
        ('src="s" srcset="c 2048w, d 4096w"', "c"),
        ('src="spacer.gif" data-src="lazy"', "lazy"),
        ('src="spacer.gif" data-original="lazy"', "lazy"),
        ('src="spacer.gif" data-lazy-src="lazy" srcset="a 1x"', "lazy"),
        ('src="spacer.gif" srcset="data:image/gif;base64,R0lGOD 1w" data-srcset="lazy 640w, huge 2000w"', "lazy"),
        ('src="s" srcset=""', "s"),
        ('src="s" srcset=" , "', "s"),
    ],
)
def test_the_url_is_the_one_a_browser_finally_shows(attributes: str, expected: str) -> None:
    assert image_url(f'<img {attributes} alt="a star">') == f"http://a.example/blog/{expected}"


def test_the_url_of_a_picture_comes_from_its_sources() -> None:
    sources = '<source srcset="a.webp 320w, b.webp 800w"><source srcset="c.avif">'
    assert image_url(f'<picture>{sources}<img src="s" alt="a star"></picture>') == "http://a.example/blog/b.webp"


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ('<source data-srcset="lazy.webp 640w">', "lazy.webp"),
        ('<source type="image/svg+xml" srcset="a.svg"><source type="image/avif" srcset="b.avif">', "b.avif"),
        ('<source type="IMAGE/WebP; codecs=x" srcset="a.webp">', "a.webp"),
        ('<source type="image/jxl" srcset="a.jxl">', "s"),
        ('<source media="(max-width: 600px)" srcset="small"><source srcset="large">', "large"),
        ('<source media="(min-width: 1200px)" srcset="huge"><source media="(min-width:600px)" srcset="b">', "b"),
        ('<source media="(min-width: 600px) and (max-width: 1100.5px)" srcset="a">', "a"),
        ('<source media="(min-width: 80em)" srcset="huge"><source media="(min-width: 40em)" srcset="b">', "b"),
        ('<source media="print" srcset="printed">', "s"),
        ('<source media="(orientation: landscape)" srcset="a">', "a"),
    ],
)
def test_sources_must_fit_a_screen(sources: str, expected: str) -> None:
    assert image_url(f'<picture>{sources}<img src="s" alt="a star"></picture>') == f"http://a.example/blog/{expected}"


def test_noscript_content_is_read() -> None:
    lazy = '<img src="data:image/gif;base64,R0lGODlhAQABAIAAAA" alt="a star" data-unknown="x">'
    rows = found(f'<p>{lazy}<noscript><img src="star.jpg" alt="a star"></noscript>')
    assert [url for url, *_ in rows][1:] == ["http://a.example/blog/star.jpg"]


PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")


@pytest.mark.parametrize(
    "src",
    [
        f"data:image/gif;base64,{base64.b64encode(PIXEL).decode()}",
        f"data:image/gif;charset=x;BASE64,{base64.b64encode(PIXEL).decode()}",
        f"data:image/gif;base64,{base64.b64encode(PIXEL).decode().replace('/', '%2F')}",
        "data:image/gif," + "".join(f"%{byte:02x}" for byte in PIXEL),
    ],
)
def test_a_data_url_contains_its_image(src: str) -> None:
    (row,) = rows_of(f'<img src="{src}" alt="a tiny star">')
    assert (row["image"], row["reason"]) == (PIXEL, None)
    assert row["url"] == f"data:{hash128(src)}", "no other column contains the image"


@pytest.mark.parametrize("src", ["data:", "data:image/gif;base64,", "data:image/gif;base64,A", "data:;base64,####"])
def test_a_data_url_without_an_image(src: str) -> None:
    (row,) = rows_of(f'<img src="{src}" alt="a tiny star">')
    assert (row["image"], row["reason"]) == (None, Reason.BAD_URL)


def test_a_url_that_no_server_accepts_is_not_kept_whole() -> None:
    (row,) = rows_of(f"<img src='{'x' * 100_000}' alt='a star'>")
    assert row["reason"] == Reason.BAD_URL
    assert len(row["url"]) == MAX_URL_CHARACTERS


def test_lone_surrogates_are_replaced() -> None:
    row = candidate("http://a.example/\ud800", "a \udfff star", "table")
    assert (row.url, row.caption, row.reason) == ("http://a.example/%EF%BF%BD", "a \ufffd star", None)
    assert candidate("x\ud800", "", "table").url == "x\ufffd"


def test_the_pair_id_depends_on_url_and_caption() -> None:
    row = candidate("http://A.example/x.jpg#1", " a  star ", "alt")
    assert row.pair_id == hash128("http://a.example/x.jpg", "a star")
    assert row == candidate("http://a.example:80/x.jpg", "a star", "alt")


def decode(body: bytes, label: str | None) -> str:
    """Decode a page that declares this charset in its HTTP header."""
    return decode_html(body, None if label is None else f"text/html; charset={label}")


WORD = "Größe “naïve” €"


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (WORD.encode(), "utf-8"),
        (WORD.encode(), "UTF8"),
        (WORD.encode("cp1252"), "iso-8859-1"),
        (WORD.encode("cp1252"), "latin1"),
        (b'<meta charset="windows-1252">' + WORD.encode("cp1252"), None),
        (b"<meta http-equiv=content-type content='text/html; charset=utf-8'>" + WORD.encode(), None),
        (b'<meta charset="utf-8">' + WORD.encode("cp1252"), "windows-1252"),  # the HTTP header wins
        (b'<meta charset="utf-16">' + WORD.encode(), None),  # the label was read as ASCII, so it must be wrong
        (b'<meta charset="utf-8">' + WORD.encode(), "nonsense"),
        (b'<meta charset="nonsense">' + WORD.encode(), "utf-8"),
        (b"\xef\xbb\xbf" + WORD.encode(), "windows-1252"),  # the byte order mark wins
        (b"\xff\xfe" + WORD.encode("utf-16-le"), None),
        (b"\xfe\xff" + WORD.encode("utf-16-be"), "utf-8"),
        (WORD.encode("utf-16-le"), "utf-16"),
        ((WORD * 20).encode(), None),
    ],
)
def test_charsets(body: bytes, header: str | None) -> None:
    text = decode(body, header)
    assert WORD in text
    assert "\ufeff" not in text


def test_east_asian_charsets() -> None:
    assert decode("東京の夜".encode("shift_jis"), "x-sjis") == "東京の夜"
    assert decode("東京の夜".encode("euc-jp"), "EUC-JP") == "東京の夜"
    assert decode("北京".encode("gb18030"), "gb2312") == "北京"


@pytest.mark.parametrize(
    "label",
    [
        "nonsense-42",
        "zlib_codec",
        "hex",
        "undefined",
        "punycode",
        "idna",
        "unicode_escape",
        "utf-7",
        "a\0b",
        "ü",
        "",
        "None",
    ],
)
def test_labels_unknown_on_the_web(label: str) -> None:
    """Some labels name Python codecs that raise, or that transform text in ways no page intends."""
    assert decode(f"{WORD} \\u0041 +AEE-".encode(), label) == f"{WORD} \\u0041 +AEE-"


def test_a_bad_byte_affects_one_character() -> None:
    assert decode("Größe ".encode() + b"\xff" + " naïve".encode(), "utf-8") == "Größe \ufffd naïve"
    assert decode("Größe".encode()[:-2], "utf-8") == "Grö\ufffd", "as in a truncated page"


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60), st.none() | st.text(max_size=8) | st.sampled_from(["utf-8", "gbk", "iso-2022-jp", "big5"])
)
@example(b"\xed\xa0\x80", "utf-8")
@example(b"\x00\xd8", "utf-16")
def test_any_bytes_decode_to_valid_text(body: bytes, label: str | None) -> None:
    assert decode(body, label).encode() is not None


html_pieces = st.sampled_from(
    (
        *("<img ", "src=", "'x.jpg'", "alt=", '"a', '"', ">", "<figure>", "</figure>", "<figcaption>", "<base href="),
        *("//[", " ", "<picture>", "<source srcset=", "1w,", "data:", "<!--", "-->", "<script>", "</", "<svg>"),
        *("&#x0;", "&#xD800;", "\0", "é"),
    )
)


@settings(max_examples=300, deadline=None)
@given(st.lists(html_pieces, max_size=25).map("".join), st.sampled_from([PAGE, "", "http://[", "x"]))
def test_any_page_can_be_read(html: str, page_url: str) -> None:
    for row in rows_of(html, page_url):
        assert row["reason"] in {None, Reason.BAD_URL}
        assert row["url"].encode() is not None
        assert row["caption"] == " ".join(row["caption"].split())
        assert len(row["pair_id"]) == 32


class TestBounds:
    """Hostile pages must not take unbounded time or memory."""

    def test_nesting(self) -> None:
        deep = "<div>" * (MAX_DEPTH + 1)
        assert is_deep(deep)
        assert is_deep("<DIV class='a'>" * (MAX_DEPTH + 1) + "</div>" * (MAX_DEPTH + 1))
        assert is_deep("<b></i>" * (MAX_DEPTH + 1)), "an end tag without an open element is ignored"
        assert not is_deep("<div>" * (MAX_DEPTH - 1) + "</div>" * (MAX_DEPTH - 1))

    @pytest.mark.parametrize(
        "html",
        [
            "<script>" + r"<span>x<\/span>" * 5_200 + "</script>",
            "<!-- " + "<div>" * 6_000 + "-->",
            "<style>" + "<div>" * 6_000,
            '<p title="' + "<div>" * 6_000 + '">',
            "<p title='>" + "<div>" * 6_000 + "'>",
        ],
        ids=["script", "comment", "style that does not end", "attribute", "attribute with >"],
    )
    def test_what_is_no_tag_is_not_deep(self, html: str) -> None:
        assert not is_deep(html)

    @pytest.mark.parametrize(
        "piece",
        [
            *(
                "<",
                "</",
                "<a",
                "<a ",
                "<a b='",
                '<a b="',
                "<a b='x",
                "<a=",
                "<!--",
                "<!-",
                "<!-->",
                "<script",
                "<script>",
            ),
            *(
                "<script>a</",
                "</scrip",
                "<xmp></xmp",
                "<b>",
                "</b>",
                "<br>",
                "<a b=     ",
                "=",
                "<td\0",
                "\0",
                "<textarea>",
            ),
        ],
    )
    @pytest.mark.parametrize("start", ["", "<br>" * (MAX_DEPTH + 1), "<br>" * (MAX_DEPTH + 1) + "<a ", "<script>"])
    def test_any_8_mib_are_judged_in_linear_time(self, start: str, piece: str) -> None:
        """openzim/warc2zim's tests have a page with one <td and 434,451 NULs; scrapy/w3lib#268 is of this kind."""
        html = start + piece * (8 * 2**20 // len(piece))
        began = time.process_time()
        is_deep(html)
        assert time.process_time() - began < 8.0  # seconds; quadratic time would take hours

    @pytest.mark.parametrize(
        "piece", ["<div>x</div>", "<p>x", "<br>", "<li>x", "<td>x", "<img src=x>", "<path d='M'/>", "a < b "]
    )
    def test_long_pages_are_not_deep(self, piece: str) -> None:
        assert not is_deep(piece * (2 * MAX_DEPTH))

    def test_images(self) -> None:
        assert len(rows_of("<img src=x alt='a star'>" * 50, max_images=20)) == 20

    def test_texts(self) -> None:
        rows = rows_of(f"<figure>{'<img src=x>' * 20}<figcaption>{'word ' * 10_000}</figcaption></figure>")
        assert len(rows) == 20
        assert max(len(row["caption"]) for row in rows) <= MAX_TEXT_CHARACTERS

    @pytest.mark.parametrize(
        "html",
        [
            f"<img alt='a star' srcset='{'a' * 300_000} zz zz'>",
            f"<img alt='a star' srcset='{',' * 300_000} a b'>",
            f"<img alt='a star' srcset='{'a 1w 2w,' * 50_000}'>",
            f"<img alt='a star' srcset='{'a, ' * 50_000}'>",
            "<figure>" + "<div>" * 3_000 + "<img src=x alt='a star'>" * 3_000,
            "<a " * 200_000,
            "<figure><figcaption>" + "a caption" * 100_000 + "</figcaption>" + "<img src=x alt='a star'>" * 2_000,
            "<figure><figcaption>" + "<b></b>" * 100_000 + "</figcaption>" + "<img src=x>" * 2_000,
            "<figure><figcaption><img src=x>" * 1_000 + "a caption" * 100_000,
        ],
        ids=[
            *("one word", "commas", "descriptors", "many", "far from its figure", "no tag ends"),
            *("one long figcaption", "one empty figcaption", "nested figcaptions"),
        ],
    )
    def test_time(self, html: str) -> None:
        start = time.process_time()
        assert not is_deep(html)
        rows_of(html, max_images=2_000)
        assert time.process_time() - start < 3.0

    @pytest.mark.parametrize(
        "url",
        [
            "data:image/png;base64," + "a" * 2**22,
            "data:image/png;base64," + "!" * 2**22,
            "data:," + "%41" * 2**20,
            "/" + "a" * 2**22,
            "https://é.example/" + "é" * 2**21,
        ],
        ids=["data", "no base64", "escapes", "long path", "not normalized"],
    )
    def test_one_address_of_many_images_is_read_once(self, url: str) -> None:
        html = f'<picture><source srcset="{url}">' + "<img alt=a title=b>" * 2_000
        start = time.process_time()
        assert len(rows_of(html, max_images=2_000)) == 4_000
        assert time.process_time() - start < 8.0  # seconds; reading it for each text takes minutes

    def test_a_base_that_is_too_long_is_none(self) -> None:
        html = f'<base href="https://b.example/{"a" * 2**22}">' + "<img src=x alt=a>" * 2_000
        start = time.process_time()
        assert {row["url"] for row in rows_of(html, max_images=2_000)} == {"http://a.example/blog/x"}
        assert {row["reason"] for row in rows_of(html, f"http://a.example/{'a' * 2**22}")} == {Reason.BAD_URL}
        assert time.process_time() - start < 3.0
