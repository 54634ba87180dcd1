import math
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import paper
from pipeline.data.match import Matcher
from pipeline.data.queries import QueriesConfig, count_terms, select_queries, sum_counts, wordnet_synsets, words
from pipeline.schemas import QUERIES, TERM_COUNTS

EVERYTHING = QueriesConfig(min_word_count=1, min_bigram_count=1, min_pmi_bits=-100.0)
documents = st.lists(st.text("ab cd.é'-1A\n", max_size=20), max_size=8)


def counted(text: str) -> dict[str, int]:
    return {row["term"]: row["count"] for row in count_terms([text]).to_pylist()}


def test_words_and_pairs_of_neighbours_are_counted() -> None:
    table = count_terms(["A red star. A red, red star", "the star"])
    assert table.schema == TERM_COUNTS
    assert table.to_pylist() == [
        {"term": term, "length": 1 + (" " in term), "count": count}
        for term, count in [
            *[("a", 2), ("red", 3), ("star", 3), ("the", 1)],
            *[("a red", 2), ("red red", 1), ("red star", 2), ("the star", 1)],
        ]
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Mother-in-law's 3rd café", [["mother-in-law's", "rd", "café"]]),
        (
            "one. Two! three? four; five: six\nseven",
            [["one"], ["two"], ["three"], ["four"], ["five"], ["six"], ["seven"]],
        ),
        ("e.g. 5.5 a_b -x- 'quoted'", [["e", "g"], ["a", "b", "x", "quoted"]]),
        ("STRASSE Straße", [["strasse", "strasse"]]),
        ("", [[]]),
    ],
)
def test_words_of_each_sentence(text: str, found: list[list[str]]) -> None:
    assert list(words(text)) == found


def test_no_pair_spans_two_sentences_or_documents() -> None:
    assert set(counted("red. star")) == {"red", "star"}
    assert count_terms(["red", "star"]).filter(pa.compute.field("length") == 2).num_rows == 0


@settings(max_examples=100, deadline=None)
@given(documents, st.randoms(use_true_random=False))
def test_counts_of_parts_add_up_to_the_counts_of_all(texts: list[str], order: random.Random) -> None:
    shuffled = order.sample(texts, len(texts))
    cut = order.randint(0, len(texts))
    parts = pa.concat_tables([count_terms(shuffled[:cut]), count_terms(shuffled[cut:])])
    assert sum_counts(parts).cast(TERM_COUNTS) == count_terms(texts)


def reference(text: str, synsets: list[str], config: QueriesConfig) -> list[tuple[str, str]]:
    """Section 2.2, one step after the other, on counts made anew."""
    sentences = list(words(text))
    unigrams = Counter(word for sentence in sentences for word in sentence)
    bigrams = Counter(f"{a} {b}" for sentence in sentences for a, b in pairwise(sentence))
    total = sum(unigrams.values())

    def pmi(bigram: str) -> float:
        first, second = bigram.split()
        return math.log2(bigrams[bigram] * total / (unigrams[first] * unigrams[second]))

    frequent = sorted((w for w in unigrams if unigrams[w] >= config.min_word_count), key=lambda w: (-unigrams[w], w))
    bound = [b for b in bigrams if bigrams[b] >= config.min_bigram_count and pmi(b) >= config.min_pmi_bits]
    bound = sorted(bound, key=lambda b: (-pmi(b), b))[: config.max_bigrams]
    found = [(w, "unigram") for w in frequent] + [(b, "bigram") for b in bound]
    for synset in synsets:
        if synset.casefold() not in {text for text, _ in found}:
            found.append((synset.casefold(), "wordnet"))
    return found[: config.size]


@settings(max_examples=100, deadline=None)
@given(
    st.text("ab cd.", max_size=60),
    st.lists(st.sampled_from(["a", "Ab cd", "zebra", "ab"]), max_size=4),
    st.builds(
        QueriesConfig,
        size=st.integers(0, 12),
        min_word_count=st.integers(1, 3),
        min_bigram_count=st.integers(1, 3),
        min_pmi_bits=st.sampled_from([-2.0, 0.0, 1.0]),
        max_bigrams=st.integers(0, 4),
    ),
)
def test_the_list_is_words_then_pairs_then_synsets(text: str, synsets: list[str], config: QueriesConfig) -> None:
    table = select_queries(sum_counts(count_terms([text])), synsets, config)
    assert table.schema == QUERIES
    assert list(zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True)) == reference(
        text, synsets, config
    )
    assert table["query_id"].to_pylist() == table["rank"].to_pylist() == list(range(table.num_rows))


def test_statistics_are_counts_and_bits() -> None:
    table = select_queries(count_terms(["new york new york big apple"]), ["pear"], EVERYTHING)
    statistic = dict(zip(table["text"].to_pylist(), table["statistic"].to_pylist(), strict=True))
    assert statistic["new"] == 2
    assert statistic["new york"] == pytest.approx(math.log2(2 * 6 / (2 * 2)))
    assert statistic["big apple"] == pytest.approx(math.log2(1 * 6 / (1 * 1)))
    assert statistic["pear"] == 0


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_the_matcher_takes_every_list(text: str) -> None:
    """Queries are normalised once more there; none may become empty or the same as another."""
    queries = select_queries(count_terms([text]), [text] if text.strip() else [], EVERYTHING)["text"].to_pylist()
    assert set(Matcher(queries).match(" ".join(queries))) == set(range(len(queries)))


def test_the_defaults_are_those_of_the_paper() -> None:
    config = QueriesConfig()
    assert (config.size, config.min_word_count) == (paper.NUM_QUERIES.value, paper.MIN_WORD_COUNT.value)


NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE, by
  2 Princeton University under the following license.
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived
02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a member of the genus Canis
09189157 15 n 02 Milky_Way 0 Milky_Way_Galaxy 0 000 | the galaxy
"""
ADJECTIVES = (
    "00001740 00 a 01 able 0 000 | having the means\n00002098 00 s 01 galore(ip) 0 000 | existing in abundance\n"
)


def test_synsets_are_the_first_words_of_the_data_files(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "data.adj").write_text(ADJECTIVES)
    for name in ("data.verb", "data.adv"):
        (tmp_path / name).write_text("  1 no synset\n")
    assert list(wordnet_synsets(str(tmp_path))) == ["entity", "dog", "Milky Way", "able", "galore"]


def test_a_folder_without_wordnet(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"wordnet={tmp_path}: none of .*data.noun"):
        list(wordnet_synsets(str(tmp_path)))


@pytest.mark.skipif(not Path("/usr/share/wordnet/data.noun").exists(), reason="Debian's wordnet-base is not there")
def test_the_installed_wordnet() -> None:
    synsets = list(wordnet_synsets("/usr/share/wordnet"))
    assert len(synsets) == 117_659
    assert {"dog", "Milky Way", "galore"} <= set(synsets)
    assert not [synset for synset in synsets if "_" in synset or not synset.strip()]
