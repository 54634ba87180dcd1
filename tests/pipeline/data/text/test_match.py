import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.text import words
from pipeline.data.text.match import Matcher, match_captions
from pipeline.data.text.words import is_word_character, normalize
from pipeline.reasons import Reason
from tests.pipeline.data.rows import candidates

# Few characters, so that queries occur; case folding and NFKC lengthen, shorten and reorder texts of them
texts = st.text("ab c-'_.1²éßŉǅﬁİ\u0301\u0327\u0345 \u00a0\u2003\u200d中กがあཀㄅꀀᥐ😀", max_size=16)


UNSPACED = (
    *("CJK", "BOPOMOFO", "HIRAGANA", "KATAKANA", "HENTAIGANA", "YI ", "TANGUT", "NUSHU"),
    *("THAI", "LAO", "TIBETAN", "MYANMAR", "KHMER", "TAI LE", "NEW TAI LUE", "TAI THAM", "TAI VIET", "AHOM"),
)


def reference(queries: list[str], text: str) -> list[int]:
    """The queries that occur, found by a search at every position for each query."""

    def is_unspaced(character: str) -> bool:
        return unicodedata.name(character, "").startswith(UNSPACED) and unicodedata.category(character)[0] in "LNM"

    def continues_word(edge: str, beside: str) -> bool:
        in_word = beside == "_" or unicodedata.category(beside)[0] in {"L", "N", "M"}
        return in_word and not is_unspaced(beside) and not is_unspaced(edge)

    text = normalize(text)
    found = []
    for index, query in enumerate(map(normalize, queries)):
        starts = [i for i in range(len(text)) if text.startswith(query, i)]
        ends = [(i - 1, i + len(query)) for i in starts]
        if any(
            not (i >= 0 and continues_word(query[0], text[i]))
            and not (j < len(text) and continues_word(query[-1], text[j]))
            for i, j in ends
        ):
            found.append(index)
    return found


@settings(max_examples=500, deadline=None)
@given(st.lists(texts.filter(normalize), unique_by=normalize, max_size=6), st.lists(texts, max_size=4))
@example(["a", "a b", "b"], ["a b", "ab", "a-b", "A  B"])
@example(["ss", "ﬁ"], ["ß FI"])
def test_matches_equal_a_search_query_by_query(queries: list[str], captions: list[str]) -> None:
    captions += [f"{query} {query}" for query in queries] + [f"x{query}." for query in queries]
    found = Matcher(queries)(pa.array(captions, pa.string()))
    assert found.type == pa.list_(pa.int32())
    assert found.to_pylist() == [reference(queries, caption) for caption in captions]


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=12) | texts)
def test_normalising_is_idempotent(text: str) -> None:
    """Otherwise a query made from a text might not match that text."""
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize(
    ("some", "other"),
    [
        ("New  York", "new york"),
        (" tab\tand\nline ", "tab and line"),
        ("ＦＵＬＬ ｗｉｄｔｈ", "full width"),
        ("Straße", "STRASSE"),
        ("cafe\u0301", "CAFÉ"),
        ("oﬃce", "office"),
        ("no\u00a0break", "no break"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ],
)
def test_equivalent_spellings_are_normalised_to_one(some: str, other: str) -> None:
    assert normalize(some) == normalize(other)


@pytest.mark.parametrize(
    ("caption", "matches"),
    [
        ("A dog.", True),
        ('"dog"', True),
        ("(dog)", True),
        ("dog/cat", True),
        ("hot-dog!", True),
        ("dog's", True),
        ("DOG", True),
        ("dogs", False),
        ("bulldog", False),
        ("dog_1", False),
        ("dog2", False),
        ("dog\u0301", False),
        ("犬dog", True),
        ("dog\u200d", True),  # a joiner at the end is not part of the word
    ],
)
def test_a_query_matches_whole_words(caption: str, matches: bool) -> None:
    assert Matcher(["dog"]).match(caption) == ([0] if matches else [])


def test_queries_with_punctuation_match() -> None:
    queries = ["st. louis", "u.s.", "new york", "c++"]
    assert Matcher(queries).match("St. Louis (U.S.), not New  York; C++!") == [0, 1, 2, 3]


def test_all_overlapping_queries_match_once_each() -> None:
    assert Matcher(["york", "new york", "new", "york city"]).match("new york city, new york") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (["dog", " \u2003"], "query 1 is empty once normalised"),
        (["Straße", "dog", "STRASSE"], r"query 'strasse' is repeated in the list, at indices \[0, 2\]"),
    ],
)
def test_invalid_query_lists_raise(queries: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matcher(queries)


def test_an_unknown_mode_raises() -> None:
    with pytest.raises(ValueError, match="match mode 'exact' is unknown"):
        Matcher(["dog"], mode="exact")  # type: ignore[arg-type]


SPACED = [",", ".", ";", ":", "?", "!", "`"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.text("abB .,'`", min_size=1, max_size=5), unique=True, max_size=6),
    st.lists(st.text("abB .,'`(\t\n", max_size=16), max_size=4),
)
@example(["St. Louis", "dog", "York"], ["St. Louis", "(dog)", "dog, york", "New\tYork"])
def test_mode_metaclip_follows_its_documented_rule(queries: list[str], captions: list[str]) -> None:
    """Blanks are added around the text and around seven marks; then each query is searched between blanks."""
    expected = []
    for caption in captions:
        text = f" {caption} "
        for mark in SPACED:
            text = text.replace(mark, f" {mark} ")
        for white in "\t\n\r":
            text = text.replace(white, " ")
        expected.append([i for i, query in enumerate(queries) if f" {query} " in text])
    assert Matcher(queries, "metaclip")(pa.array(captions, pa.string())).to_pylist() == expected


def test_queries_in_scripts_without_blanks_match_anywhere() -> None:
    queries = ["犬", "黒い犬", "iphone", "กา", "ខ្មែរ", "ལྷ་ས", "မြန်မာ", "ລາວ", "中国 美食"]
    found = Matcher(queries)(
        pa.array(
            [
                "これは黒い犬です",
                "我爱iPhone手机",
                "iphones",
                "นกกาบิน",
                "ភាសាខ្មែរល្អ",
                "ལྷ་སར་",
                "မြန်မာနိုင်ငံ",
                "ພາສາລາວ",
                "中国  美食",
                "中国美食",
            ]
        )
    )
    assert found.to_pylist() == [[0, 1], [2], [], [3], [4], [5], [6], [7], [8], []]


def test_texts_may_have_any_length_and_any_bytes() -> None:
    matcher = Matcher(["dog", "new york", "a" * 1000, "\ufffd"])
    long = b"x " * 700_000 + b"New" + b" " * 700_000 + b"York dog"
    texts = pa.array(
        [long, b"\xff dog \x00\xf0", b"a" * 1000, b"a" * 2_000_000, b"", None, b"new\x00york"], pa.binary()
    )
    expected = [[0, 1], [0, 3], [2], [], [], [], []]
    assert matcher(texts).to_pylist() == expected
    assert matcher(texts.cast(pa.large_binary()).cast(pa.large_string(), safe=False)).to_pylist() == expected
    assert matcher(pa.chunked_array([texts, texts.slice(1, 2)])).to_pylist() == expected + expected[1:3]


def test_scripts_without_blanks_are_known_by_their_names() -> None:
    characters = [chr(code) for code in words.ASSIGNED if is_word_character(chr(code)) and not 0xD800 <= code < 0xE000]
    unspaced = set()
    for chunk in words.split(pa.array(characters), fold=str):
        unspaced |= {characters[text] for text in chunk.text[chunk.kind == words.Kind.UNSPACED].tolist()}
    named = {character for character in characters if unicodedata.name(character, "").startswith(UNSPACED)}
    assert named <= unspaced
    others = ("IDEOGRAPHIC", "COMBINING KATAKANA", "KHITAN", "OLD CHINESE", "VIETNAMESE ALTERNATE READING MARK")
    names = {unicodedata.name(character, "") for character in unspaced - named} - {""}  # Python names no Tangut
    assert all(name.startswith(others) for name in names)


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=12), st.integers(1, 20))
def test_the_size_of_chunks_does_not_change_the_matches(captions: list[str], size: int) -> None:
    matcher = Matcher(["a", "a b", "ss", "中", "c-"])
    whole = matcher(pa.array(captions, pa.string()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "CHUNK_CHARACTERS", size)
        assert matcher(pa.array(captions, pa.string())) == whole


def test_empty_lists_of_queries_and_texts_match_nothing() -> None:
    assert Matcher([])(pa.array(["a dog", None], pa.string())).to_pylist() == [[], []]
    assert Matcher(["dog"])(pa.array([], pa.string())).to_pylist() == []


def test_word_characters_are_letters_digits_marks_and_the_underscore() -> None:
    assert [c for c in "aé中1²_\u0301- .'\u200d😀" if is_word_character(c)] == ["a", "é", "中", "1", "²", "_", "\u0301"]


def test_rows_get_their_queries_or_a_reason() -> None:
    table = candidates(
        caption=["a dog and a cat", "a bird", None, "a dog"], reason=[None, None, None, Reason.CAPTION_SHORT]
    )
    done = match_captions(table, Matcher(["cat", "dog"]))
    assert done["query_ids"].to_pylist() == [[0, 1], [], [], []]
    assert done["reason"].to_pylist() == [None, Reason.NO_QUERY, Reason.NO_QUERY, Reason.CAPTION_SHORT]
    assert done.schema == table.schema
    assert match_captions(table.slice(0, 0), Matcher(["cat"])).num_rows == 0
