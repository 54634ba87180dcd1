"""The query list (paper section 2.2): frequent words, bi-grams that belong together, titles people look for, WordNet.

Mode `paper` repairs what the section leaves open: bi-grams need a minimum count, because the PMI of rare words measures
chance, and are cut by rank; all words and all synsets are in the list, and bi-grams and titles share what is left of
its size. Mode `metaclip` follows the one reconstruction that was published (Xu et al. 2024) to the letter: PMI alone,
no minimum and no cut, synsets and titles with their capitals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import paper
from pipeline.data.queries.counting import sum_counts
from pipeline.data.text.words import normalize
from pipeline.schemas import PAGE_VIEWS, QUERIES

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_QUALIFIER = re.compile(r"\s+\([^()]*\)$")


@dataclass(frozen=True, kw_only=True)
class QueriesConfig:
    """What makes a query. Mode metaclip has its own figures and takes none of these."""

    mode: Literal["paper", "metaclip"] = "paper"
    size: int = paper.NUM_QUERIES.value
    """Queries in the list, at most."""
    min_word_count: int = paper.MIN_WORD_COUNT.value
    min_bigram_count: int = 30
    """Below this, PMI measures chance: the rarest pairs of rare words would lead the list."""
    min_pmi_bits: float = 4.0
    max_bigrams: int = 100_000
    """Bi-grams of the highest PMI that are taken."""
    min_title_views: int = 1000
    """Views of a title in all files together."""
    min_file_views: int = 1
    """Views of a title in one file that count."""

    @property
    def rules(self) -> QueriesConfig:
        """The figures that hold in this mode."""
        if self.mode == "paper":
            return self
        return QueriesConfig(
            mode="metaclip",
            size=2**31 - 1,
            min_word_count=paper.METACLIP_MIN_WORD_COUNT.value,
            min_bigram_count=1,
            min_pmi_bits=paper.METACLIP_MIN_PMI_BITS.value,
            max_bigrams=2**31 - 1,
            min_title_views=paper.METACLIP_MIN_TITLE_VIEWS.value,
            min_file_views=paper.METACLIP_MIN_HOURLY_VIEWS.value,
        )

    @property
    def fold(self) -> Callable[[str], str]:
        """What makes two spellings one word."""
        return normalize if self.mode == "paper" else str.lower


def add_up(counts: pa.Table, config: QueriesConfig) -> pa.Table:
    """SCORED_TERMS that wait for their score, less the bi-grams too rare for one.

    Args:
        counts: TERM_COUNTS of all terms that begin with some words.
        config: thresholds.
    """
    summed = sum_counts(counts)
    is_word = pc.field("length") == 1
    summed = summed.filter(is_word | (pc.field("count") >= config.rules.min_bigram_count))
    summed = summed.append_column("first_count", _count_of(word_of(summed["term"], 0), summed))
    return summed.append_column("pmi_bits", pa.nulls(summed.num_rows, pa.float64()))


def score(terms: pa.Table, total: int, config: QueriesConfig) -> pa.Table:
    """The terms frequent enough, bi-grams with their PMI = log2(c12 N / (c1 c2)).

    Args:
        terms: SCORED_TERMS as `add_up` makes them, all that end with some words.
        total: N, the number of words.
        config: thresholds.
    """
    rules = config.rules
    count, first = (terms[name].to_numpy().astype(np.float64) for name in ("count", "first_count"))
    last = _count_of(word_of(terms["term"], -1), terms).to_numpy(zero_copy_only=False)
    is_word = terms["length"].to_numpy() == 1
    pmi = np.log2(count * total / (first * last))
    is_query = np.where(
        is_word, count >= rules.min_word_count, (count >= rules.min_bigram_count) & (pmi >= rules.min_pmi_bits)
    )
    column = terms.schema.get_field_index("pmi_bits")
    return terms.set_column(column, "pmi_bits", pa.array(pmi, mask=is_word)).filter(pa.array(is_query))


def num_words(terms: pa.Table) -> int:
    """How many words a text has, from the counts of its terms."""
    return pc.sum(terms.filter(pc.field("length") == 1)["count"]).as_py() or 0


def popular_titles(views: pa.Table, titles: pa.Table | None, config: QueriesConfig) -> pa.Table:
    """PAGE_VIEWS added up, of the titles that are looked at enough, by falling views.

    Args:
        views: PAGE_VIEWS of the files.
        titles: ARTICLES whose titles count; None where any title without a namespace's colon does.
        config: thresholds.
    """
    summed = views.group_by("title").aggregate([("views", "sum")]).rename_columns(["title", "views"])
    popular = summed.filter(pc.field("views") >= config.rules.min_title_views)
    if titles is None or config.mode == "metaclip":
        popular = popular.filter(pc.invert(pc.match_substring(popular["title"], ":")))
    else:
        popular = popular.filter(pc.is_in(popular["title"], titles["title"]))
    popular = popular.append_column("reason", pa.nulls(popular.num_rows, pa.string()))
    return popular.cast(PAGE_VIEWS).sort_by([("views", "descending"), ("title", "ascending")])


def select_queries(terms: pa.Table, titles: pa.Table, synsets: Iterable[str], config: QueriesConfig) -> pa.Table:
    """QUERIES: words by falling count, bi-grams by falling PMI, titles by falling views, then the synsets.

    Ties are broken by text, and a text keeps the first source that has it. Words come before all else where they alone
    fill the list, and synsets before bi-grams, and those before titles, so that every synset is in.

    Args:
        terms: SCORED_TERMS as `score` leaves them.
        titles: PAGE_VIEWS as `popular_titles` leaves them.
        synsets: names of WordNet's synsets, as `wordnet_synsets` gives them.
        config: mode and size.
    """
    rules = config.rules
    is_word = pc.field("length") == 1
    by_count = terms.filter(is_word).sort_by([("count", "descending"), ("term", "ascending")])
    by_pmi = terms.filter(~is_word).sort_by([("pmi_bits", "descending"), ("term", "ascending")])
    by_pmi = by_pmi.slice(0, rules.max_bigrams)
    found = {word: ("unigram", float(n)) for word, n in _pairs(by_count.slice(0, rules.size), "term", "count")}
    waiting = {text for synset in synsets if (text := _query(synset, config)) and text not in found}
    others = [
        *(("bigram", term, pmi) for term, pmi in _pairs(by_pmi, "term", "pmi_bits")),
        *(("title", _query(title, config), float(n)) for title, n in _pairs(titles, "title", "views")),
    ]
    for source, text, statistic in others:
        if text and text not in found and (text in waiting or len(found) + len(waiting) < rules.size):
            found[text] = source, statistic
            waiting.discard(text)
    found |= dict.fromkeys(sorted(waiting), ("wordnet", 0.0))
    texts = list(found)[: rules.size]
    sources, statistics = zip(*(found[text] for text in texts), strict=True) if texts else ((), ())
    ids = pa.array(range(len(texts)), pa.int32())
    return pa.table([ids, texts, list(sources), list(statistics), ids], schema=QUERIES)


def _query(text: str, config: QueriesConfig) -> str:
    """A name as a query: no qualifier in brackets, since no caption has one; metaclip leaves it as it is."""
    return text if config.mode == "metaclip" else normalize(_QUALIFIER.sub("", text))


def _pairs(table: pa.Table, key: str, value: str) -> Iterator[tuple[str, float]]:
    return zip(table[key].to_pylist(), table[value].to_pylist(), strict=True)


def word_of(terms: pa.ChunkedArray, place: int) -> pa.StringArray:
    """The first (0) or last (-1) word of each term; bi-grams have one blank."""
    pattern = r"^(?P<word>[^ ]*)" if place == 0 else r"(?P<word>[^ ]*)$"
    return pc.struct_field(pc.extract_regex(terms.combine_chunks(), pattern), "word")


def _count_of(words: pa.Array, terms: pa.Table) -> pa.Array:
    """The counts of words, all of which are among the terms."""
    known = terms.filter(pc.field("length") == 1)
    return known["count"].combine_chunks().take(pc.index_in(words, known["term"].combine_chunks()))


def wordnet_synsets(folder: str) -> Iterator[str]:
    """The first lemma of every synset of WordNet, blanks for underscores, read from Princeton's data files.

    A line of a data file is one synset: offset, file number, type, word count, first word; lines of the licence begin
    with two blanks, and an adjective's marker such as (a) is no part of the word (wndb(5WN)).

    Raises:
        FileNotFoundError: the folder lacks one of the data files.
    """
    files = [Path(folder, name) for name in WORDNET_FILES]
    if missing := [file.name for file in files if not file.exists()]:
        raise FileNotFoundError(f"wordnet={folder}: {missing} are not there (Debian: the package wordnet-base)")
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                yield re.sub(r"\((a|p|ip)\)$", "", line.split(" ", 5)[4]).replace("_", " ")
