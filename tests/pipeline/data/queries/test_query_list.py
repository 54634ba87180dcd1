import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import paper
from pipeline.data.queries.counting import count_terms
from pipeline.data.queries.query_list import (
    QueriesConfig,
    num_words,
    popular_titles,
    score,
    select_queries,
    sum_terms,
    wordnet_synsets,
)
from pipeline.data.text.match import Matcher
from pipeline.schemas import PAGE_VIEWS, QUERIES, TERM_COUNTS

EVERYTHING = QueriesConfig(min_word_count=1, min_bigram_count=1, min_pmi_bits=-100.0, min_title_views=1)
NO_TITLES = PAGE_VIEWS.empty_table()


def scored(text: str, config: QueriesConfig) -> pa.Table:
    """The terms of a text, as crawl_flow.py scores them, in one partition."""
    terms = sum_terms(count_terms([text]), config)
    return score(terms, num_words(terms), config)


def chosen(table: pa.Table) -> list[tuple[str, str]]:
    return list(zip(table["text"].to_pylist(), table["source"].to_pylist(), strict=True))


def views(**titles: int) -> pa.Table:
    columns = [list(titles), list(titles.values()), [None] * len(titles)]
    return pa.table(columns, schema=PAGE_VIEWS)


def reference(text: str, titles: list[str], synsets: list[str], config: QueriesConfig) -> list[tuple[str, str]]:
    """The query list by section 2.2, step by step, from independent counts."""
    lines = [line.split() for line in text.splitlines()]
    unigrams = Counter(word for line in lines for word in line)
    bigrams = Counter(f"{a} {b}" for line in lines for a, b in pairwise(line))
    total = sum(unigrams.values())

    def pmi(bigram: str) -> float:
        first, second = bigram.split()
        return math.log2(bigrams[bigram] * total / (unigrams[first] * unigrams[second]))

    frequent = sorted((w for w in unigrams if unigrams[w] >= config.min_word_count), key=lambda w: (-unigrams[w], w))
    bound = [b for b in bigrams if bigrams[b] >= config.min_bigram_count and pmi(b) >= config.min_pmi_bits]
    bound = sorted(bound, key=lambda b: (-pmi(b), b))[: config.max_bigrams]
    found = [(w, "unigram") for w in frequent[: config.size]]
    for text, source in [*((b, "bigram") for b in bound), *((t, "title") for t in titles)]:
        known = {t for t, _ in found}
        if text not in known and (text in synsets or len(known | set(synsets) | {text}) <= config.size):
            found.append((text, source))
    found += [(s, "wordnet") for s in sorted(set(synsets) - {t for t, _ in found})]
    return found[: config.size]


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab cd\n", max_size=60),
    st.lists(st.sampled_from(["a", "ab cd", "zebra", "gnu"]), max_size=3, unique=True),
    st.lists(st.sampled_from(["a", "ab cd", "zebra", "ab"]), max_size=4),
    st.builds(
        QueriesConfig,
        size=st.integers(0, 12),
        min_word_count=st.integers(1, 3),
        min_bigram_count=st.integers(1, 3),
        min_pmi_bits=st.sampled_from([-2.0, 0.0, 1.0]),
        max_bigrams=st.integers(0, 4),
    ),
)
def test_the_list_has_words_bigrams_titles_and_synsets(
    text: str, titles: list[str], synsets: list[str], config: QueriesConfig
) -> None:
    table = select_queries(scored(text, config), views(**dict.fromkeys(titles, 5)), synsets, config)
    assert table.schema == QUERIES
    assert chosen(table) == reference(text, titles, synsets, config)
    assert table["query_id"].to_pylist() == table["rank"].to_pylist() == list(range(table.num_rows))


def test_words_may_leave_room_for_only_some_synsets() -> None:
    """Those that are bi-grams too come first, then the others by text; words alone may fill the list."""
    terms = scored("blue whale blue", EVERYTHING)
    synsets = ["zebra", "gnu", "blue whale", "cow"]
    lists = {size: select_queries(terms, views(Yale=7), synsets, replace(EVERYTHING, size=size)) for size in range(7)}
    whole = ["blue", "whale", "blue whale", "cow", "gnu", "zebra"]
    assert {size: table["text"].to_pylist() for size, table in lists.items()} == {n: whole[:n] for n in range(7)}


def test_statistics_are_counts_bits_and_views() -> None:
    terms = scored("new york new york big apple", EVERYTHING)
    table = select_queries(terms, views(Yale=7), ["pear"], EVERYTHING)
    statistic = dict(zip(table["text"].to_pylist(), table["statistic"].to_pylist(), strict=True))
    assert statistic["new"] == 2
    assert statistic["new york"] == pytest.approx(math.log2(2 * 6 / (2 * 2)))
    assert statistic["big apple"] == pytest.approx(math.log2(1 * 6 / (1 * 1)))
    assert statistic["yale"] == 7
    assert statistic["pear"] == 0


def test_partitioning_the_terms_does_not_change_the_list() -> None:
    text = "new york new york big apple york big\nbig york apple"

    def split(terms: pa.Table, index: int, group: str) -> pa.Table:
        return terms.filter(pa.array([term.split()[index] in group for term in terms["term"].to_pylist()]))

    counts = count_terms([text])
    parts = [sum_terms(split(counts, 0, group), EVERYTHING) for group in ("new big", "york apple")]
    total, terms = sum(map(num_words, parts)), pa.concat_tables(parts)
    parts = [score(split(terms, -1, group), total, EVERYTHING) for group in ("apple new", "york big")]
    found = select_queries(pa.concat_tables(parts), NO_TITLES, [], EVERYTHING)
    assert found == select_queries(scored(text, EVERYTHING), NO_TITLES, [], EVERYTHING)


def test_popular_titles_are_articles_with_enough_views() -> None:
    config = QueriesConfig(min_title_views=10)
    viewed = pa.concat_tables([views(Dog=6, Cat=9), views(Dog=4, Zebra=30, Special=99)])
    titles = popular_titles(viewed, pa.table({"title": ["Dog", "Zebra", "Cat", None]}), config)
    assert titles.select(["title", "views"]).to_pylist() == [
        {"title": "Zebra", "views": 30},
        {"title": "Dog", "views": 10},
    ]
    some = pa.table([["Special:Search", "Dog"], [50, 50], [None, None]], schema=PAGE_VIEWS)
    assert popular_titles(some, None, config)["title"].to_pylist() == ["Dog"]


def test_a_title_loses_its_qualifier_and_its_capitals() -> None:
    titles = pa.table(
        [["Mercury (planet)", "Mercury (element)", "(G)I-dle", "??"], [9, 8, 7, 6], [None] * 4], schema=PAGE_VIEWS
    )
    table = select_queries(scored("", EVERYTHING), titles, ["Milky Way"], EVERYTHING)
    assert chosen(table) == [("mercury", "title"), ("(g)i-dle", "title"), ("??", "title"), ("milky way", "wordnet")]


def test_mode_metaclip_uses_its_own_thresholds() -> None:
    """A bi-gram that occurs once in 2^31 words reaches a PMI of 30 bits; names keep their capitals and qualifiers."""
    config = QueriesConfig(mode="metaclip", size=1, min_word_count=1)
    counts = [("common", 1, 2**31), ("rare", 1, 1), ("pair", 1, 1), ("rare pair", 2, 1), ("common rare", 2, 1)]
    terms = sum_terms(pa.table([list(column) for column in zip(*counts, strict=True)], schema=TERM_COUNTS), config)
    titles = popular_titles(views(**{"Mercury (planet)": 70, "Talk:Dog": 99, "Cat": 69}), None, config)
    table = select_queries(score(terms, num_words(terms), config), titles, ["Milky Way", "common"], config)
    assert chosen(table) == [
        ("common", "unigram"),
        ("rare pair", "bigram"),
        ("Mercury (planet)", "title"),
        ("Milky Way", "wordnet"),
    ]
    assert config.rules.min_file_views == 50


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_the_matcher_accepts_every_list(text: str) -> None:
    """The matcher normalises queries again; no query may become empty or equal to another."""
    table = select_queries(scored(text, EVERYTHING), NO_TITLES, [text] if text.strip() else [], EVERYTHING)
    queries = table["text"].to_pylist()
    assert set(Matcher(queries).match(" ".join(queries))) == set(range(len(queries)))


def test_the_defaults_equal_the_paper() -> None:
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


@pytest.mark.parametrize("line", [b"00001740 03 n 01", b"00001740 03 n 01 caf\xe9 0 000 | a house", b"\x1f\x8b\x08"])
def test_a_line_that_is_no_synset_is_named(tmp_path: Path, line: bytes) -> None:
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        (tmp_path / name).write_bytes(b"  1 This software\n" + (line if name == "data.verb" else b"") + b"\n")
    with pytest.raises(ValueError, match=rf"wordnet={tmp_path}: line 2 of data\.verb is not a synset"):
        list(wordnet_synsets(str(tmp_path)))


def test_synsets_are_the_first_words_of_lines_in_the_data_files(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(NOUNS)
    (tmp_path / "data.adj").write_text(ADJECTIVES)
    for name in ("data.verb", "data.adv"):
        (tmp_path / name).write_text("  1 no synset\n")
    assert list(wordnet_synsets(str(tmp_path))) == ["entity", "dog", "Milky Way", "able", "galore"]


def test_a_folder_without_wordnet_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"wordnet={tmp_path}: .*data.noun.* are missing"):
        list(wordnet_synsets(str(tmp_path)))


@pytest.mark.skipif(not Path("/usr/share/wordnet/data.noun").exists(), reason="Debian's wordnet-base is not installed")
def test_the_installed_wordnet_has_all_synsets() -> None:
    synsets = list(wordnet_synsets("/usr/share/wordnet"))
    assert len(synsets) == 117_659
    assert {"dog", "Milky Way", "galore"} <= set(synsets)
    assert not [synset for synset in synsets if "_" in synset or not synset.strip()]
