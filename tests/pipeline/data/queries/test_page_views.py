import bz2
import gzip
import io
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.queries.page_views import check_views, page_name, parse_line, read_views
from pipeline.reasons import Reason
from pipeline.schemas import PAGE_VIEWS

HOURLY = b"""\
de Hund 7 0
en Dog 42 0
en.m Dog 8 0
en Special:Search 99 0
en.d dog 5 0
en Caf\xc3\xa9_au_lait 3 0
commons.m Dog 4 0
"""
DAILY = b"""\
de.wikipedia Hund 12 desktop 7 A7
en.wikipedia Dog 4269567 desktop 500 A100B400
en.wikipedia Dog 4269567 mobile-web 250 A250
en.wikipedia Old_page null desktop 3 C3
en.wikipedia No_id desktop 2 C2
en.wiktionary dog 1 desktop 9 A9
"""


def read(data: bytes, name: str, min_views: int = 1) -> dict[str | None, int]:
    table = read_views(io.BytesIO(data), name, "en", min_views)
    assert table.schema == PAGE_VIEWS
    return dict(zip(table["title"].to_pylist(), table["views"].to_pylist(), strict=True))


def test_an_hourly_file_is_read() -> None:
    views = {"Café au lait": 3, "Dog": 50, "Special:Search": 99}
    assert read(gzip.compress(HOURLY, mtime=0), "pageviews-20240101-000000.gz") == views
    assert read(gzip.compress(HOURLY, mtime=0), "pageviews-20240101-000000.gz", 50) == {"Dog": 50, "Special:Search": 99}


def test_a_daily_file_is_read() -> None:
    assert read(bz2.compress(DAILY), "pageviews-20240101-user.bz2") == {"Dog": 750, "No id": 2, "Old page": 3}


def test_broken_lines_and_a_truncated_file_are_rows_with_a_reason() -> None:
    data = gzip.compress(b"en Dog 1 0\nen Cat many 0\nen\n" + b"en Cow 2 0\n" * 50_000, mtime=0)
    table = read_views(io.BytesIO(data[:-20]), "x.gz", "en", 1)
    assert table["reason"].to_pylist()[-3:] == [Reason.BROKEN_LINE, Reason.BROKEN_LINE, Reason.TRUNCATED_RECORD]
    assert table["title"].to_pylist()[:2] == ["Cow", "Dog"]


@pytest.mark.parametrize("name", ["x.gz", "x.bz2"])
def test_an_uncompressed_file_is_a_row_with_a_reason(name: str) -> None:
    table = read_views(io.BytesIO(b"en Dog 1 0\n"), name, "en", 1)
    assert table["reason"].to_pylist() == [Reason.TRUNCATED_RECORD]


def rows(data: bytes, name: str = "x.gz", language: str = "en") -> list[tuple[str | None, int, str | None]]:
    table = read_views(io.BytesIO(data), name, language, 1)
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.mark.parametrize(
    ("line", "parsed"),
    [
        (b"en Main_Page 42 0", (b"Main_Page", 42)),  # pageviews, pagecounts-all-sites
        (b"en.m Main_Page 42 123456", (b"Main_Page", 42)),
        (b"de %C3%84pfel 2000 31337", (b"%C3%84pfel", 2000)),  # pagecounts-raw
        (b"en Two words 5 0", (b"Two_words", 5)),
        (b"en 1984 5 0", (b"1984", 5)),
        (b"en  5 0", (b"", 5)),
        (b"en.wikipedia Dog 4269567 desktop 500 A100B400", (b"Dog", 500)),  # pageview_complete, a day
        (b"en.wikipedia Dog null mobile-web 3 X3", (b"Dog", 3)),
        (b"en.wikipedia Dog desktop 3 C3", (b"Dog", 3)),
        (b"en.wikipedia 1984 desktop 3 C3", (b"1984", 3)),
        (b"en.wikipedia 1984 12 mobile-app 3 C3", (b"1984", 3)),
        (b"en.wikipedia Dog 7 C3D4", (b"Dog", 7)),
        (b"en.wikipedia Dog 4269567 desktop 900 A100Z400[100\\100]100^50_50", (b"Dog", 900)),  # a month
        (b"en.z Dog 7 C3D4", (b"Dog", 7)),  # pagecounts-ez/merged, a day
        (b"en.z Dog 7 AC3,BD4,", (b"Dog", 7)),  # a month
        (b"en.z Dog 7", (b"Dog", 7)),  # totals
        (b"en.z Dog 7 C3D?", (b"Dog", 7)),
        (b"en Dog", None),
        (b"en Dog 5", None),  # the end of an hourly line is missing
        (b"en Dog many 0", None),
        (b"en Dog -5 0", None),
        (b"en Dog " + b"9" * 5000 + b" 0", None),
        (b"en.wikipedia Dog 12 desktop 5", None),
        (b"other-search Main_Page external 3221", None),  # clickstream has tabs; here with blanks
        (b"other-search\tMain_Page\texternal\t3221", None),
        (b"", None),
    ],
)
def test_a_line_of_every_form_is_read(line: bytes, parsed: tuple[bytes, int] | None) -> None:
    assert parse_line(line) == parsed


@pytest.mark.parametrize(
    "raw",
    [
        *("%C3%84pfel", "%c3%84pfel", "Äpfel", "äpfel", "A\u0308pfel", "%25C3%2584pfel", "_Äpfel_", "Äpfel#Sorten"),
        *("%C3%A4pfel", "Äpfel__", "%20Äpfel", "%5F%C3%84pfel", "%C3%84pfel%23Sorten"),
    ],
)
def test_spellings_of_a_title_are_one(raw: str) -> None:
    """They are one page in MediaWiki. Compare miraheze/MatomoAnalytics#190 and wikimedia/restbase#1254."""
    assert page_name(raw.encode()) == "Äpfel"


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"100%", "100%"),
        (b"AC%2FDC", "AC/DC"),  # Commonists/pageview-api#6
        (b"Wie_is_de_mol%3F", "Wie is de mol?"),  # mediawiki-utilities/python-mwviews#2
        (b"%C4pfel", None),  # ISO 8859-1
        (b"Lule\xef\xbf\xbd", None),  # hatnote/top#10
        (b"\xe4pfel", None),
        (b"#top", None),
        (b"_", None),
        (b"%3Cscript%3E", None),
        (b"Dog|Cat", None),
        (b"a" * 300, None),
        (b"%25" * 20, "%" * 20),
        (b"\xc3\x9fx", "ßx"),
        (b"ipod", "Ipod"),
    ],
)
def test_requests_are_page_names_or_nothing(raw: bytes, name: str | None) -> None:
    assert page_name(raw) == name


def test_a_wiki_whose_titles_begin_with_small_letters_keeps_them() -> None:
    data = gzip.compress(b"jbo lojban 3 0\n", mtime=0)
    assert read_views(io.BytesIO(data), "x.gz", "jbo", 1, capital_titles=False)["title"].to_pylist() == ["lojban"]


def test_spellings_are_summed_and_what_is_no_title_has_a_reason() -> None:
    lines = ["de %C3%84pfel 2000 1", "de Äpfel 5 1", "de.m äpfel 3 1", "de - 50000 0", "de  7 0", "de undefined 9 0"]
    lines += ["de %C4pfel 1 0", "de CSI:_Miami 4 0"]
    assert rows(gzip.compress("\r\n".join(lines).encode()), language="de") == [
        ("CSI: Miami", 4, None),
        ("Äpfel", 2008, None),
        ("", 7, Reason.NOT_AN_ARTICLE),
        ("-", 50000, Reason.NOT_AN_ARTICLE),
        ("undefined", 9, Reason.NOT_AN_ARTICLE),
        (None, 0, Reason.BROKEN_LINE),
    ]


def test_merged_files_are_read() -> None:
    """pagecounts-ez has comments on top, and Wikipedia's suffix .z; en.d is Wiktionary."""
    data = b"# Wikimedia article requests\n#\n#  Format\nen.z Dog 12 A5B7\nen.d dog 5 A5\nde.z Hund 3 C3\n"
    assert rows(bz2.compress(data), "pagecounts-2012-01-01.bz2") == [("Dog", 12, None)]
    totals = b"# comment\nen.z Dog 12\nen.z %22Heroes%22 5\n"
    assert rows(bz2.compress(totals), "pagecounts-2012-01-views-ge-5-totals.bz2") == [
        ('"Heroes"', 5, None),
        ("Dog", 12, None),
    ]


def test_the_first_bytes_decide_the_compression() -> None:
    assert (
        rows(bz2.compress(HOURLY), "x.gz")
        == rows(gzip.compress(HOURLY, mtime=0), "x.bz2")
        == rows(gzip.compress(HOURLY))
    )


CLICKSTREAM = b"other-search\tMain_Page\texternal\t3221\n" * 50


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(CLICKSTREAM, mtime=0), Reason.BROKEN_LINE),
        (gzip.compress(b"\0" * 10_000_000, mtime=0), Reason.BROKEN_LINE),
        (gzip.compress(b"", mtime=0), Reason.TRUNCATED_RECORD),
        (b"", Reason.TRUNCATED_RECORD),
        (gzip.compress(HOURLY, mtime=0)[:-4], Reason.TRUNCATED_RECORD),
        (gzip.compress(HOURLY, mtime=0) + b"garbage", Reason.TRUNCATED_RECORD),
        (bz2.compress(HOURLY)[:-4], Reason.TRUNCATED_RECORD),
        (b"\x1f\x8b" + b"\0" * 100, Reason.TRUNCATED_RECORD),
    ],
)
def test_a_file_of_no_known_form_is_never_silently_empty(data: bytes, reason: Reason) -> None:
    assert rows(data)[-1] == (None, 0, reason)


def test_a_file_of_other_wikis_is_empty() -> None:
    assert rows(gzip.compress(b"de Hund 5 0\n" * 3000, mtime=0)) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (gzip.compress(CLICKSTREAM, mtime=0), "page_views=x.gz: the first line is 'other-search.*no line has a form"),
        (b"en Dog 1 0\n", "page_views=x.gz: neither a gzip nor a bz2 file"),
        (bz2.compress(HOURLY)[:20], "page_views=x.gz: neither a gzip nor a bz2 file"),
    ],
)
def test_a_file_that_has_no_page_views_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_views(io.BytesIO(data), "x.gz")
    check_views(io.BytesIO(bz2.compress(DAILY)), "x.bz2")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda tail: b"en " + tail), max_size=8), st.binary(max_size=20))
def test_any_line_is_a_row(lines: list[bytes], noise: bytes) -> None:
    found = rows(gzip.compress(b"\n".join([*lines, noise, b"en Dog 3 0"])))
    assert any(title == "Dog" and views >= 3 for title, views, reason in found if reason is None)


def test_a_title_of_many_marks_takes_linear_time() -> None:
    """python/cpython's unicodedata sorts the marks of one letter in quadratic time: a line of 64 KiB would take 1 s."""
    raw = ("a" + "\u0301" * 16_000 + "\u0323" * 16_000).encode()
    started = time.process_time()
    for _ in range(100):
        assert page_name(raw) is None
    assert time.process_time() - started < 1


def test_a_decomposed_title_is_as_long_as_its_composed_form() -> None:
    composed = "한" * 85
    assert page_name("\u1112\u1161\u11ab".encode() * 85) == page_name(composed.encode()) == composed
    assert page_name("\u1112\u1161\u11ab".encode() * 86) is page_name(("한" * 86).encode()) is None
