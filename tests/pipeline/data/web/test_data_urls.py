import base64
import json
import time
import tracemalloc
from pathlib import Path
from urllib.parse import unquote_to_bytes

import ada_url
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.web import data_urls
from pipeline.data.web.data_urls import MAX_PARSED_CHARACTERS, base64_decode, is_data_url, percent_decode, read_data_url

MAX_BYTES = 1_000
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
CODE = base64.b64encode(PIXEL).decode()


@pytest.mark.realdata
def test_the_urls_of_web_platform_tests(clip_data: Path) -> None:
    """The file has each URL with its MIME type, of which we return the essence, and its data, or null."""
    cases = json.loads((clip_data / "conformance" / "data-urls.json").read_text())
    assert len(cases) == 78
    for url, mime_type, *octets in cases:
        expected = None if mime_type is None else (mime_type.partition(";")[0], bytes(octets[0]))
        assert read_data_url(url, MAX_BYTES) == expected, url


@pytest.mark.realdata
def test_the_base64_of_web_platform_tests(clip_data: Path) -> None:
    cases = json.loads((clip_data / "conformance" / "base64.json").read_text())
    assert len(cases) == 80
    for text, octets in cases:
        expected = None if octets is None else bytes(octets)
        assert base64_decode(text.encode()) == expected, text
        read = read_data_url(f"data:;base64,{text}", MAX_BYTES)
        assert read == (None if expected is None else ("text/plain", expected)), text


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/gif;base64,{CODE}",
        f"DATA:IMAGE/GIF;BASE64,{CODE}",
        f" \n\x01da\nta\r:image/g\tif;base64,{CODE} \n",
        f"data: image/gif ; base64 ,{CODE}",
        f"data:image/gif;charset=x;  base64,{CODE}",
        f"data:image/gif;base64,{CODE}#{CODE}",
        f"data:image/gif;base64,{CODE.rstrip('=')}",
        "data:image/gif," + "".join(f"%{byte:02x}" for byte in PIXEL),
        # eclecticiq/python-data-uri#7, erezlife/html2docx#62: a blank after the comma
        f"data:image/gif;base64, {CODE}",
        # dnfield/flutter_svg#298: line breaks from Illustrator
        "data:image/gif;base64," + "\r\n".join(CODE[i : i + 9] for i in range(0, len(CODE), 9)),
        # scrapy/w3lib#71, xhtml2pdf#409: escaped base64
        "data:image/gif;base64," + CODE.replace("/", "%2F") + "%0A%20",
        "data:image/gif;base64," + "%20%0a".join(f"%{ord(character):02X}" for character in CODE),
    ],
)
def test_spellings_of_an_image(url: str) -> None:
    assert is_data_url(url)
    assert read_data_url(url, len(PIXEL)) == ("image/gif", PIXEL)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        # matatonic/openedai-vision#4: a PNG without padding
        ("data:image/png;base64,iVBORw0KGgo", ("image/png", b"\x89PNG\r\n\x1a\n")),
        ("data:image/png;base64,iVBORw0", ("image/png", b"\x89PNG\r")),
        # dompdf#236: + is no blank
        ("data:;base64,a+/b", ("text/plain", base64.b64decode("a+/b"))),
        ("data:;base64,a-_b", None),  # the alphabet for URLs is another one
        ("data:;base64,%61%62%63%64", ("text/plain", base64.b64decode("abcd"))),
        ("data:;base64,####", ("text/plain", b"")),
        ("data:,a b+c", ("text/plain", b"a b+c")),
        ("data:,a #b", ("text/plain", b"a ")),
        ("data:,a b \n", ("text/plain", b"a b")),
        ("data:,%4\n1", ("text/plain", b"A")),  # line breaks are removed first
        ("data:,%%41%4%zz%", ("text/plain", b"%A%4%zz%")),
        ("data:,é\0\ud800", ("text/plain", b"\xc3\xa9\0\xef\xbf\xbd")),
        ("data:\ud800/x,\ud800", ("%ef%bf%bd/x", b"\xef\xbf\xbd")),
        ("data:text/html?a b,c d?e", ("text/plain", b"c d?e")),
        ("data:text/html;a#,b", None),
        ("data:text/html", None),
        ("data:", None),
        ("data:/a/../b/,x", ("text/plain", b"x")),
        ("data:/,a/../../b", None),  # a path without its comma
        ("data://host/a,b#c", ("text/plain", b"b")),
        ("data://a b/,x", None),
        ("data:image/svg+xml;utf8,<svg>%23</svg>", ("image/svg+xml", b"<svg>#</svg>")),
        ("data:;base64;x,WA", ("text/plain", b"WA")),
        ("data:base64,WA", ("text/plain", b"WA")),
        ("data:;;base64,WA", ("text/plain", b"X")),
    ],
)
def test_urls(url: str, expected: tuple[str, bytes] | None) -> None:
    assert read_data_url(url, MAX_BYTES) == expected


@pytest.mark.parametrize(
    "url", ["", "dat", "data", "data%3A,x", "xdata:,x", "http://a.example/data:,x", "daſta:,", "\xa0data:,"]
)
def test_other_addresses(url: str) -> None:
    assert not is_data_url(url)
    assert read_data_url(url, MAX_BYTES) is None


def test_longer_data_are_not_read() -> None:
    assert read_data_url("data:,abcd", 4) == ("text/plain", b"abcd")
    assert read_data_url("data:,abcde", 4) is None
    assert read_data_url("data:,%61%62%63%64", 4) is not None
    assert read_data_url("data:;base64,YWJjZA", 4) == ("text/plain", b"abcd")
    assert read_data_url("data:;base64,YWJjZGU", 4) is None
    assert read_data_url("data:;base64,YQ" + " " * (2**16 + 2), 4) is None, "not read at all"


def test_the_url_parser_reads_no_more_than_it_must() -> None:
    longest = "a" * (MAX_PARSED_CHARACTERS - len("data:/"))
    for url in (f"data:{longest}/,x", f"data:/{longest[1:]},x", f"data:/,{longest}"):
        assert read_data_url(url, MAX_PARSED_CHARACTERS) is not None
    for url in (f"data:{longest}a/,x", f"data:/{longest},x", f"data:/,{longest}a"):
        assert read_data_url(url, MAX_PARSED_CHARACTERS) is None


def read_whole(url: str) -> bytes | None:
    """The data by the letter of the standards: the whole URL is parsed, serialized and then read."""
    try:
        input_ = ada_url.URL(url).href.partition("#")[0][len("data:") :]
    except ValueError:
        return None
    mime_type, comma, encoded = input_.partition(",")
    body = unquote_to_bytes(encoded)
    mime_type = mime_type.strip("\t\n\f\r ")
    if not comma:
        return None
    if mime_type.lower().endswith("base64") and mime_type[:-6].rstrip(" ").endswith(";"):
        body = bytes(byte for byte in body if byte not in b"\t\n\f\r ")
        if len(body) % 4 == 0:
            body = body.removesuffix(b"=") if not body.endswith(b"==") else body[:-2]
        alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        if len(body) % 4 == 1 or not set(body) <= set(alphabet):
            return None
        bits = "".join(f"{alphabet.index(byte):06b}" for byte in body)
        return bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8))
    return body


pieces = st.sampled_from(
    [
        *'/?#,;%=+ \n\t\f\0é\x7f\x1f"<`aAYz09',
        "//",
        "../",
        ";base64",
        "base64,",
        "%41",
        "%2",
        "%3D",
        "==",
        "💩",
        "a/b",
        "%2e",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(pieces, max_size=12).map("".join))
@example(",a \t #x")
@example("/x/..,;base64,YQ==")
def test_the_data_are_those_of_the_whole_url(rest: str) -> None:
    url = f"data:{rest}"
    read = read_data_url(url, MAX_BYTES)
    assert (read and read[1]) == read_whole(url)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.integers(0, 50))
def test_any_text_can_be_read(text: str, max_bytes: int) -> None:
    for url in (text, f"data:{text}", f"data:{text[:9]};base64,{text[9:]}"):
        read = read_data_url(url, max_bytes)
        assert read is None or (len(read[1]) <= max_bytes and read[0].isascii() and "/" in read[0])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["%", "4", "a", "%41", "%fF", "é", "%%", "zz"]), max_size=30).map("".join),
    st.integers(3, 9),
)
def test_escapes_across_chunks(text: str, chunk_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_urls, "_CHUNK_BYTES", chunk_bytes)
        assert percent_decode(text) == unquote_to_bytes(text)


LARGE = 20 * 2**20


@pytest.mark.parametrize(
    "url",
    [
        "data:;base64," + "A" * LARGE,
        "data:;base64," + ("A" * 76 + "\n") * (LARGE // 77),
        "data:;base64," + "%41" * (LARGE // 3),
        "data:;base64," + "%20" * (LARGE // 3),
        "data:," + "%" * LARGE,
        "data:," + "é" * (LARGE // 2),
        "data:/" + "a/" * (LARGE // 2) + ",",
        "data:" + "a/" * (LARGE // 2) + ",",
        "data:" + "; " * (LARGE // 2) + "base64,",
        "\t" * LARGE + "data:,x",
        "d" + "\n" * LARGE + "ata:,x",
        "data:" + "a" * LARGE,
    ],
    ids=[
        "base64",
        "lines",
        "escaped",
        "blanks",
        "percents",
        "wide",
        "path",
        "type",
        "marks",
        "tabs",
        "name",
        "no comma",
    ],
)
def test_20_mib_take_little_time_and_memory(url: str) -> None:
    """The slowest takes 0.2 s; memory is at most 8 times the URL."""
    start = time.process_time()
    read_data_url(url, LARGE)
    assert time.process_time() - start < 4
    tracemalloc.start()
    read_data_url(url, LARGE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(url.encode())
