import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.match import Matcher, is_word_character, match_captions, normalize
from pipeline.schemas import Reason
from tests.pipeline.data.rows import candidates

# Few characters, so that queries do occur; and such that case folding and NFKC lengthen, shorten and reorder
texts = st.text("ab c-'_.1²éßŉǅﬁİ\u0301\u0327\u0345 \u00a0\u2003\u200d中が😀", max_size=16)


def reference(queries: list[str], text: str) -> list[int]:
    """Every place of every query, one after the other."""

    def in_word(character: str) -> bool:
        return character == "_" or unicodedata.category(character)[0] in {"L", "N", "M"}

    text = normalize(text)
    found = []
    for index, query in enumerate(map(normalize, queries)):
        starts = [i for i in range(len(text)) if text.startswith(query, i)]
        ends = [(i - 1, i + len(query)) for i in starts]
        if any(not (i >= 0 and in_word(text[i])) and not (j < len(text) and in_word(text[j])) for i, j in ends):
            found.append(index)
    return found


@settings(max_examples=500, deadline=None)
@given(st.lists(texts.filter(normalize), unique_by=normalize, max_size=6), st.lists(texts, max_size=4))
@example(["a", "a b", "b"], ["a b", "ab", "a-b", "A  B"])
@example(["ss", "ﬁ"], ["ß FI"])
def test_matches_are_those_of_a_search_one_by_one(queries: list[str], captions: list[str]) -> None:
    captions += [f"{query} {query}" for query in queries] + [f"x{query}." for query in queries]
    found = Matcher(queries)(pa.array(captions, pa.string()))
    assert found.type == pa.list_(pa.int32())
    assert found.to_pylist() == [reference(queries, caption) for caption in captions]


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=12) | texts)
def test_normalising_twice_is_normalising_once(text: str) -> None:
    """Else a query made of a text could miss in that text."""
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
def test_spellings_that_are_the_same(some: str, other: str) -> None:
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
        ("犬dog", False),
        ("dog\u200d", True),  # a joiner alone is no part of a word
    ],
)
def test_a_query_is_whole_words(caption: str, matches: bool) -> None:
    assert Matcher(["dog"]).match(caption) == ([0] if matches else [])


def test_queries_that_other_recipes_can_never_match() -> None:
    queries = ["st. louis", "u.s.", "new york", "c++"]
    assert Matcher(queries).match("St. Louis (U.S.), not New  York; C++!") == [0, 1, 2, 3]


def test_overlapping_queries_all_match_and_each_counts_once() -> None:
    assert Matcher(["york", "new york", "new", "york city"]).match("new york city, new york") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("queries", "message"),
    [(["dog", " \u2003"], "query 1 is empty"), (["Straße", "dog", "STRASSE"], "query 'strasse' stands twice")],
)
def test_query_lists_that_are_refused(queries: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Matcher(queries)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="match mode 'exact' is unknown"):
        Matcher(["dog"], mode="exact")  # type: ignore[arg-type]


def test_no_queries_and_no_texts() -> None:
    assert Matcher([])(pa.array(["a dog", None], pa.string())).to_pylist() == [[], []]
    assert Matcher(["dog"])(pa.array([], pa.string())).to_pylist() == []


def test_is_word_character() -> None:
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
