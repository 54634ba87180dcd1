import random
import re
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.queries import counting
from pipeline.data.queries.counting import count_letters, count_terms, sum_counts
from pipeline.data.queries.wikitext import clean, decode_entities
from pipeline.data.text.match import Matcher
from pipeline.data.text.words import normalize
from pipeline.schemas import TERM_COUNTS

documents = st.lists(st.text("ab cd.é'-1_A\u0301中ß\n", max_size=24), max_size=8)

UNSPACED = (
    *("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER"),
    *("BOPOMOFO", "YI ", "TANGUT", "KHITAN", "NUSHU", "TAI ", "NEW TAI LUE", "AHOM"),
)
LETTERS = "".join(
    re.escape(chr(code))
    for code in range(0x40000)
    if (chr(code) == "_" or unicodedata.category(chr(code))[0] in "LNM")
    and not unicodedata.name(chr(code), "").startswith(UNSPACED)
)
WORD = re.compile(f"[{LETTERS}]+(?:[-'’][{LETTERS}]+)*")


def reference(texts: list[str]) -> dict[str, int]:
    """Counts from an independent implementation."""
    found: Counter[str] = Counter()
    for line in (normalize(line) for text in texts for line in text.splitlines()):
        words = list(WORD.finditer(line))
        good = [not any(c == "_" or unicodedata.category(c)[0] == "N" for c in word[0]) for word in words]
        found.update(word[0] for word, is_good in zip(words, good, strict=True) if is_good)
        for (a, b), is_good in zip(pairwise(words), map(all, pairwise(good)), strict=True):
            if is_good and line[a.end() : b.start()] == " ":
                found[f"{a[0]} {b[0]}"] += 1
    return dict(found)


def counted(texts: list[str]) -> dict[str, int]:
    table = count_terms(texts)
    return dict(zip(table["term"].to_pylist(), table["count"].to_pylist(), strict=True))


def test_words_and_neighbouring_pairs_are_counted() -> None:
    table = count_terms(["A red star. A red, red star", "the star"])
    assert table.schema == TERM_COUNTS
    assert table.to_pylist() == [
        {"term": term, "length": 1 + (" " in term), "count": count}
        for term, count in [
            *[("a", 2), ("red", 3), ("star", 3), ("the", 1)],
            *[("a red", 2), ("red star", 2), ("the star", 1)],
        ]
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mother-in-law's 3rd café", {"mother-in-law's": 1, "café": 1}),
        ("one two\nthree", {"one": 1, "two": 1, "three": 1, "one two": 1}),
        ("e.g. a_b -x- 'quoted'", {"e": 1, "g": 1, "x": 1, "quoted": 1}),
        ("STRASSE Straße", {"strasse": 2, "strasse strasse": 1}),
        ("dog- cat", {"dog": 1, "cat": 1}),
        ("dog  \t cat", {"dog": 1, "cat": 1, "dog cat": 1}),
        ("中文 and ไทย", {"and": 1}),
        ("iPhoneを買う Tシャツ 3D映像", {"iphone": 1, "t": 1}),
        ("", {}),
    ],
)
def test_text_is_split_into_words(text: str, found: dict[str, int]) -> None:
    assert counted([text]) == found


@pytest.mark.parametrize(
    ("text", "letters", "unspaced"),
    [
        ("one two", 6, 0),
        ("黒い猫", 3, 3),
        ("Tシャツ, 3D", 5, 3),
        ("ภาษาไทย ລາວ ខ្មែរ မြန်မာ བོད", 18, 18),
        ("한국어 हिन्दी русский عربي ไ", 18, 1),
        ("你好，世界", 4, 4),  # michael-lynch/reading-time#35
        ("你 好 世界", 4, 4),  # WheatonCS/Lexos#334
        ("Wikipedia 是自由的百科全书", 17, 8),  # yishn/chinese-tokenizer#2
        ("1, 2! 👍", 0, 0),
        ("", 0, 0),
    ],
)
def test_letters_of_scripts_without_blanks_are_counted(text: str, letters: int, unspaced: int) -> None:
    assert letters == sum(map(str.isalpha, text))
    assert count_letters([text, ""]).to_pylist() == [{"letters": letters, "unspaced": unspaced}]
    assert count_letters([]).to_pylist() == [{"letters": 0, "unspaced": 0}]


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("AT&amp;T&nbsp;Stadium", "AT&T Stadium"),
        ("caf&#233; &#x201C;Noir&#x201D;", "Café “Noir”"),
        ("zero\u200bwidth soft\u00adhyphen", "zero\u200bwidth soft\u00adhyphen"),
        ("Erzsébet \u200bkirályné&#8203; kíséretében", "Erzsébet \u200bkirályné\u200b kíséretében"),  # cc_corpus#18
        ("l’homme &shy;it&rsquo;s don&#39;t", "l’homme \u00adit’s don't"),
        ("LEGO&trade; ﬁsh", "LEGO™ ﬁsh"),
    ],
)
def test_words_of_an_article_are_those_of_a_caption(text: str, caption: str) -> None:
    """Whatever normalisation does to a caption, it does to the text that queries are counted in."""
    assert counted([clean(text)]) == counted([decode_entities(text)]) == counted([caption])
    queries = sorted(counted([clean(text)]))
    assert set(Matcher(queries).match(caption)) == set(range(len(queries)))


def test_fold_may_only_lowercase() -> None:
    table = count_terms(["STRASSE Straße"], str.lower)
    assert table["term"].to_pylist() == ["strasse", "straße", "strasse straße"]


@settings(max_examples=300, deadline=None)
@given(documents)
def test_counts_equal_an_independent_count(texts: list[str]) -> None:
    assert counted(texts) == reference(texts)


@settings(max_examples=100, deadline=None)
@given(documents, st.randoms(use_true_random=False))
def test_counts_of_parts_sum_to_the_counts_of_the_whole(texts: list[str], order: random.Random) -> None:
    shuffled = order.sample(texts, len(texts))
    cut = order.randint(0, len(texts))
    parts = pa.concat_tables([count_terms(shuffled[:cut]), count_terms(shuffled[cut:])])
    assert sum_counts(parts) == count_terms(texts)


def test_summing_counts_early_does_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"word {chr(97 + i % 7)} word {chr(97 + i % 5)}" for i in range(40)]
    whole = count_terms(texts)
    monkeypatch.setattr(counting, "LINES_AT_ONCE", 3)
    monkeypatch.setattr(counting, "ROWS_AT_ONCE", 10)
    assert count_terms(texts) == whole


@pytest.mark.realdata
def test_counts_of_wikipedia_equal_an_independent_count(clip_data: Path) -> None:
    text = (clip_data / "wikitext-valid.txt").read_text(encoding="utf-8")
    assert counted([text]) == reference([text])
