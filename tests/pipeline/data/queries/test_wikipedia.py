import bz2
import io
import re
import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.queries import wikipedia
from pipeline.data.queries.wikipedia import check_dump, clean, read_articles
from pipeline.data.sources.byte_ranges import ByteRange
from pipeline.reasons import Reason
from pipeline.schemas import ARTICLES

HEAD = b"<mediawiki><siteinfo><sitename>Wikipedia</sitename></siteinfo>\n"
TAIL = b"</mediawiki>\n"


def page(title: str, text: str, *, namespace: int = 0, redirect: bool = False) -> bytes:
    target = '<redirect title="Dog" />' if redirect else ""
    head = f"<title>{title}</title><ns>{namespace}</ns><id>1</id>{target}"
    revision = f"<revision><id>2</id><model>wikitext</model><text>{text}</text></revision>"
    return f"  <page>{head}{revision}</page>\n".encode()


def multistream(pages: Sequence[bytes], at_once: int = 2) -> bytes:
    groups = [b"".join(pages[i : i + at_once]) for i in range(0, len(pages), at_once)]
    return b"".join(map(bz2.compress, (HEAD, *groups, TAIL)))


def read(data: bytes, start: int = 0, stop: int | None = None) -> list[tuple[str | None, str | None, str | None]]:
    table = read_articles(io.BytesIO(data), ByteRange("dump", start, len(data) if stop is None else stop))
    assert table.schema == ARTICLES
    return [tuple(row.values()) for row in table.to_pylist()]


PAGES = [page(f"Page {i}", f"The text of page {i}. " * (i + 1)) for i in range(9)]


def test_redirects_and_other_namespaces_have_a_reason() -> None:
    pages = [page("Dog", "A ''dog'' barks."), page("Hound", "#REDIRECT [[Dog]]", redirect=True)]
    pages.append(page("Talk:Dog", "Woof.", namespace=1))
    for data in (multistream(pages), bz2.compress(HEAD + b"".join(pages) + TAIL)):
        assert read(data) == [
            ("Dog", "A dog barks.", None),
            ("Hound", None, Reason.REDIRECT),
            ("Talk:Dog", None, Reason.NOT_AN_ARTICLE),
        ]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=6), st.integers(1, 4), st.booleans())
def test_every_page_is_in_exactly_one_byte_range(cuts: list[int], at_once: int, pages_span_streams: bool) -> None:
    """This holds for any ranges, even if streams end in the middle of a page."""
    if pages_span_streams:
        xml = HEAD + b"".join(PAGES) + TAIL
        data = b"".join(bz2.compress(xml[i : i + 150 * at_once]) for i in range(0, len(xml), 150 * at_once))
    else:
        data = multistream(PAGES, at_once)
    bounds = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    found = [row for start, stop in pairwise(bounds) for row in read(data, start, stop)]
    assert found == read(data)
    assert [row[0] for row in found] == [f"Page {i}" for i in range(9)]


def test_the_size_of_reads_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    data = multistream(PAGES)
    whole = read(data)
    monkeypatch.setattr(wikipedia, "READ_BYTES", 7)
    assert read(data) == whole


def test_a_truncated_dump_has_a_reason_and_keeps_its_complete_pages() -> None:
    data = multistream(PAGES)
    found = read(data[: len(data) * 2 // 3])
    assert found[-1] == (None, None, Reason.TRUNCATED_RECORD)
    assert [row[0] for row in found[:-1]] == [f"Page {i}" for i in range(len(found) - 1)]
    assert len(found) > 3


def test_a_broken_stream_is_skipped() -> None:
    streams = [bz2.compress(PAGES[i] + PAGES[i + 1]) for i in range(0, 8, 2)]
    streams[1] = streams[1][:40] + bytes(len(streams[1]) - 80) + streams[1][-40:]
    found = read(b"".join(streams))
    assert [title for title, _, reason in found if reason is None] == [f"Page {i}" for i in (0, 1, 4, 5, 6, 7)]
    assert [reason for _, _, reason in found if reason] == [Reason.BROKEN_ARCHIVE]


def test_a_broken_page_is_a_row_with_a_reason() -> None:
    half = page("Half", "lost")[:-40]
    bad = [half, page("Tags", "a < b"), b"<page></page>", b"<page><title>x</title><ns>zero</ns></page>"]
    found = read(bz2.compress(b"".join([PAGES[0], *bad, PAGES[1]])))
    assert [title for title, _, reason in found if reason is None] == ["Page 0", "Page 1"]
    assert [reason for *_, reason in found if reason] == [Reason.BROKEN_PAGE] * 4


def test_invalid_utf8_is_replaced() -> None:
    assert read(bz2.compress(PAGES[0].replace(b"page 0", b"caf\xe9")))[0][1] == "The text of caf\ufffd."


def test_a_page_above_the_maximum_size_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia, "MAX_PAGE_BYTES", 500)
    monkeypatch.setattr(wikipedia, "READ_BYTES", 100)
    found = read(bz2.compress(PAGES[0] + page("Long", "long " * 1000) + PAGES[1]))
    assert [(title, reason) for title, _, reason in found] == [
        ("Page 0", None),
        (None, Reason.BROKEN_PAGE),
        ("Page 1", None),
    ]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", ["word " * 200_000, "{{" * 3000, "[[" * 3000, "{| " * 1000, "&lt;ref&gt;" * 3000, "'''" * 3000]
)
def test_hostile_markup_is_parsed_in_bounded_time(text: str) -> None:
    """Among the texts are a line of a million characters and brackets that are never closed."""
    started = time.monotonic()
    found = read(bz2.compress(page("Odd", text)))
    assert len(found) == 1
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("[[Dog]]s and [[Canis lupus|wolves]]", "Dogs and wolves"),
        ("[[File:Dog.jpg|thumb|A [[dog]]]]seen", "seen"),
        ("Text[[Category:Dogs]][[fr:Chien]]", "Text"),
        ("before {{Infobox|name=[[x]]|{{nested}}}} after", "before after"),
        ("fact<ref name=a>Book</ref><ref name=b /> end", "fact end"),
        ("{| class=x\n| cell\n|}\nbelow", "below"),
        ("<math>x^2</math> squared", "squared"),
        ("<!-- hidden -->shown", "shown"),
        ("== Heading ==\nText", "Heading\nText"),
        ("* one\n* two", "one\ntwo"),
        ("[http://a.example the site] and [http://b.example]", "the site and"),
        ("caf&eacute; &amp; bar", "café & bar"),
        ("a<br/>b", "a\nb"),
        ("<gallery>\nA.jpg|x\n</gallery>end", "end"),
    ],
)
def test_markup_is_converted_to_text(markup: str, text: str) -> None:
    assert clean(markup) == text


def test_a_file_that_is_not_bz2_raises() -> None:
    with pytest.raises(ValueError, match=r"wikipedia=x\.bz2: not a bz2 file"):
        check_dump(io.BytesIO(b"<mediawiki>"), "x.bz2")
    check_dump(io.BytesIO(multistream(PAGES)), "x.bz2")


@pytest.mark.realdata
def test_a_real_dump_is_read(clip_data: Path) -> None:
    data = (clip_data / "enwiki-sample.xml.bz2").read_bytes()
    xml = bz2.decompress(data)
    found = read(data)
    assert len(found) == xml.count(b"<page>") == 206
    reasons = Counter(reason for *_, reason in found)
    others = 206 - xml.count(b"<ns>0</ns>")
    redirects = len(re.findall(rb"<ns>0</ns>\s*<id>\d+</id>\s*<redirect ", xml))
    assert reasons == {None: 206 - redirects - others, Reason.REDIRECT: redirects, Reason.NOT_AN_ARTICLE: others}
    text = "\n".join(text for _, text, _ in found if text)
    assert not any(mark in text for mark in ("{{", "}}", "[[", "]]", "<ref", "{|", "'''"))
    assert "Anarchism" in text
