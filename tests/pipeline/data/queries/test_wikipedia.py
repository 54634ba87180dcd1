import bz2
import io
import random
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
from pipeline.data.queries.wiki_site import Site
from pipeline.data.queries.wikipedia import check_dump, read_articles, read_site
from pipeline.data.queries.wikitext import clean
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


@pytest.mark.parametrize("text", ["&#xD800;", "&lt;ref", "a\u0000b", "&#0;"])
def test_a_page_that_is_no_xml_is_broken_and_named(text: str) -> None:
    found = read(bz2.compress(page("Odd &amp; other", text) + PAGES[0]))
    assert found[-1] == ("Page 0", "The text of page 0.", None)
    expected = None if text.startswith("&lt;") else Reason.BROKEN_PAGE
    assert found[0][0] == "Odd & other"
    assert found[0][2] == expected


@pytest.mark.parametrize("error", [KeyError, MemoryError, RecursionError, AssertionError])
def test_an_unforeseen_exception_costs_one_page(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(markup: str, site: Site) -> str:
        if "page 1" in markup:
            raise error(markup)
        return clean(markup, site)

    monkeypatch.setattr(wikipedia, "clean", fail)
    found = read(multistream(PAGES[:3]))
    assert [(title, reason) for title, _, reason in found] == [
        ("Page 0", None),
        ("Page 1", Reason.BROKEN_PAGE),
        ("Page 2", None),
    ]


def test_characters_that_are_no_unicode_do_not_end_a_part() -> None:
    """A numeric entity of a surrogate once made a string that Arrow cannot store."""
    (found,) = read(bz2.compress(page("Odd", "a &amp;#xD800; b &amp;#55296; c &amp;#x110000; d")))
    assert found == ("Odd", "a \ufffd b \ufffd c \ufffd d", None)


def test_pages_that_never_end_take_linear_time() -> None:
    """Each of 50,000 pages begins, and none ends within the maximum size."""
    started = time.process_time()
    found = read(bz2.compress(b"<page>" * 50_000 + b"x" * 9_000_000) + bz2.compress(PAGES[0]))
    assert Counter(reason for *_, reason in found) == {Reason.BROKEN_PAGE: 50_000, None: 1}
    assert time.process_time() - started < 10


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5000), st.integers(0, 40), st.binary(max_size=20), st.booleans())
def test_any_damage_is_rows(position: int, length: int, noise: bytes, is_compressed: bool) -> None:
    """Bytes are replaced, in the XML or in the compressed file; pages behind the damage are read."""
    xml = siteinfo("de") + page("Odd", f"{TEXTS['de']} &amp;#55296; &lt;ref&gt; ") + PAGES[0]
    data = bz2.compress(xml) if is_compressed else xml
    position %= len(data)
    data = data[:position] + noise + data[position + length :]
    found = read((data if is_compressed else bz2.compress(data)) + bz2.compress(PAGES[1]))
    assert found[-1][0] == "Page 1"
    assert all((text is None) == (reason is not None) for _, text, reason in found)


def test_a_page_with_too_many_tags_is_broken_before_it_is_parsed() -> None:
    """Eight MiB of nested tags take a parser 900 MB."""
    nested = page("Odd", "<x>" * 1_000_000)
    assert read(bz2.compress(nested + PAGES[0])) == [
        ("Odd", None, Reason.BROKEN_PAGE),
        ("Page 0", "The text of page 0.", None),
    ]


def test_beginnings_of_streams_without_a_stream_take_linear_time() -> None:
    started = time.process_time()
    found = read(b"BZh91AY&SY" * 20_000 + bz2.compress(PAGES[0]))
    assert found[-1][0] == "Page 0"
    assert {reason for *_, reason in found[:-1]} == {Reason.BROKEN_ARCHIVE}
    assert time.process_time() - started < 10


def test_many_small_streams_are_read_in_linear_time() -> None:
    xml = page("Long", "word " * 20_000)
    started = time.process_time()
    found = read(b"".join(bz2.compress(xml[i : i + 10]) for i in range(0, len(xml), 10)))
    assert [title for title, *_ in found] == ["Long"]
    assert time.process_time() - started < 10


def test_streams_behind_a_broken_one_in_the_same_read_are_kept() -> None:
    """The broken stream has more data than one call of the decompressor returns."""
    long = bz2.compress(random.Random(0).randbytes(3_000_000))
    broken = long[:-2_000_000] + bytes(10) + long[-1_999_990:]
    found = read(multistream(PAGES[:2]) + broken + multistream(PAGES[2:4]))
    assert [title for title, _, reason in found if reason is None] == [f"Page {i}" for i in range(4)]
    assert Reason.BROKEN_ARCHIVE in {reason for *_, reason in found}


SITES = {
    "de": ("Medium", "Datei", "Kategorie"),
    "fr": ("Média", "Fichier", "Catégorie"),
    "sv": ("Media", "Fil", "Kategori"),
    "ja": ("メディア", "ファイル", "Category"),
    "ru": ("Медиа", "Файл", "Категория"),
    "ar": ("ميديا", "ملف", "تصنيف"),
}
"""Names of the namespaces -2, 6 and 14 in <siteinfo> of these Wikipedias."""
TEXTS = {
    "de": """[[Datei:Hund.jpg|mini|hochkant=1.2|Ein [[Hund]] im Garten]]Der [[Haushund|Hund]] bellt.
[[Bild:Alt.png|miniatur]]__KEIN_INHALTSVERZEICHNIS__[[Kategorie:Hund| ]][[en:Dog]]""",
    "fr": """[[Fichier:Chien.jpg|vignette|redresse|Un chien]]Le [[chien]] aboie.
__AUCUNSOMMAIRE__[[Catégorie:Chien]][[de:Hund]]""",
    "sv": """[[Fil:Hund.jpg|miniatyr|höger|En hund]]En [[hund]] skäller.
[[Bild:X.svg|ram]]__INGENINNEHÅLLSFÖRTECKNING__[[Kategori:Hundar]][[no:Hund]]""",
    "ja": """[[ファイル:犬.jpg|サムネイル|右|犬]][[イヌ|犬]]が吠える。
[[画像:犬.png|thumb]]__目次非表示__[[Category:犬]][[zh-yue:狗]]""",
    "ru": """[[Файл:Собака.jpg|мини|справа|Собака]][[Собака]] лает.
[[Изображение:Пёс.jpg|thumb|Пёс]]__БЕЗ_ОГЛАВЛЕНИЯ__[[Категория:Собаки]][[uk:Собака]]""",
    "ar": """[[ملف:كلب.jpg|تصغير|يسار|كلب]][[كلب]] ينبح.
[[صورة:كلب.png|إطار]]__لافهرس__[[تصنيف:كلاب]][[en:Dog]]""",
}
SHOWN = {
    "de": "Der Hund bellt.",
    "fr": "Le chien aboie.",
    "sv": "En hund skäller.",
    "ja": "犬が吠える。",
    "ru": "Собака лает.",
    "ar": "كلب ينبح.",
}


def siteinfo(language: str) -> bytes:
    names = zip((-2, 6, 14), SITES[language], strict=True)
    rows = "".join(f'<namespace key="{key}" case="first-letter">{name}</namespace>\n' for key, name in names)
    return (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="{language}">\n'
        f"<siteinfo><dbname>{language}wiki</dbname><case>first-letter</case><namespaces>{rows}</namespaces></siteinfo>\n"
    ).encode()


@pytest.mark.parametrize("language", SITES)
def test_the_dump_names_its_namespaces(language: str) -> None:
    """Every part of a dump knows them, wherever it begins."""
    pages = [
        page(f"Page {i}", f"{TEXTS[language]} [[File:X.jpg|thumb|English]] [[Category:English]]") for i in range(6)
    ]
    data = b"".join(map(bz2.compress, (siteinfo(language), *pages, TAIL)))
    assert read(data) == [(f"Page {i}", SHOWN[language], None) for i in range(6)]
    cut = len(data) // 2
    assert read(data, 0, cut) + read(data, cut) == read(data)
    site = read_site(io.BytesIO(data))
    assert (site.language, site.named, site.capital_titles) == (language, True, True)
    table = read_articles(io.BytesIO(data), ByteRange("dump", cut, len(data)), site)
    assert [tuple(row.values()) for row in table.to_pylist()] == read(data, cut)


@pytest.mark.parametrize("data", [b"", b"<mediawiki>", bz2.compress(b"<page>")[:20], bz2.compress(PAGES[0])])
def test_a_dump_without_siteinfo_has_the_names_of_all_languages(data: bytes) -> None:
    site = read_site(io.BytesIO(data))
    assert not site.named
    markup = (
        "[[File:A.jpg|thumb|x]] [[Category:B]] [[Datei:C.jpg|mini|x]] [[Kategorie:D]] [[Imagine: John Lennon]] text"
    )
    assert clean(markup, site) == "Imagine: John Lennon text"


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
