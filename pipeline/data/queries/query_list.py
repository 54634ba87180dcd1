"""Build the query list (paper section 2.2): frequent words, bi-grams of high PMI, popular titles, WordNet synsets.

Mode `paper` decides what the section leaves open. Bi-grams need a minimum count, because the PMI of rare words measures
chance, and only the highest-ranked bi-grams are taken. Words come first and synsets second; bi-grams and titles share
the rest of the size. Mode `metaclip` follows the only published reconstruction (Xu et al. 2024) exactly: bi-grams are
selected by PMI alone, without a minimum count or a maximum number, and synsets and titles keep their capitals.
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
_QUALIFIER = re.compile(r"(?<!\s)\s++\([^()]*+\)$")


@dataclass(frozen=True, kw_only=True)
class QueriesConfig:
    """Thresholds of the query list. Mode metaclip ignores these options and uses its own thresholds."""

    mode: Literal["paper", "metaclip"] = "paper"
    size: int = paper.NUM_QUERIES.value
    """Maximum number of queries in the list."""
    min_word_count: int = paper.MIN_WORD_COUNT.value
    """Minimum count of a word."""
    min_bigram_count: int = 30
    """Minimum count of a bi-gram. Below it, PMI measures chance: the rarest pairs of rare words would lead the list."""
    min_pmi_bits: float = 4.0
    """Minimum PMI of a bi-gram."""
    max_bigrams: int = 100_000
    """Maximum number of bi-grams; those of the highest PMI are taken."""
    min_title_views: int = 1000
    """Minimum views of a title, summed over all files."""
    min_file_views: int = 1
    """Minimum views of a title in one file; fewer views are not counted."""

    @property
    def rules(self) -> QueriesConfig:
        """The thresholds that apply in this mode."""
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
        """The function that maps different spellings of a word to one."""
        return normalize if self.mode == "paper" else str.lower


def sum_terms(counts: pa.Table, config: QueriesConfig) -> pa.Table:
    """Sum the counts of terms, and drop the bi-grams that are too rare to be scored.

    Args:
        counts: TERM_COUNTS of all terms whose first word is in this partition.
        config: thresholds.

    Returns:
        SCORED_TERMS without PMI, which `score` adds.
    """
    summed = sum_counts(counts)
    is_word = pc.field("length") == 1
    summed = summed.filter(is_word | (pc.field("count") >= config.rules.min_bigram_count))
    summed = summed.append_column("first_count", _count_of(word_of(summed["term"], 0), summed))
    return summed.append_column("pmi_bits", pa.nulls(summed.num_rows, pa.float64()))


def score(terms: pa.Table, total: int, config: QueriesConfig) -> pa.Table:
    """Compute the PMI of bi-grams, log2(c12 N / (c1 c2)), and keep the terms that reach the thresholds.

    Args:
        terms: SCORED_TERMS from `sum_terms`, all terms whose last word is in this partition.
        total: N, the number of words in all texts.
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
    """The number of words in a text, from the counts of its terms."""
    return pc.sum(terms.filter(pc.field("length") == 1)["count"]).as_py() or 0


def popular_titles(views: pa.Table, titles: pa.Table | None, config: QueriesConfig) -> pa.Table:
    """Sum the views of each title, and keep the titles with enough views.

    Args:
        views: PAGE_VIEWS of the files.
        titles: ARTICLES whose titles are accepted. None accepts every title without a colon, which marks a namespace.
        config: thresholds.

    Returns:
        PAGE_VIEWS by descending views.
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
    """Select the queries: words by descending count, bi-grams by PMI, titles by views, then the synsets.

    Ties are broken by text, and a text of several sources keeps the first of them. If not all candidates fit, words
    have the highest priority, then synsets, bi-grams and titles. So words can leave room for only some synsets: first
    those that are bi-grams or titles too, in the order above, and then the others by text.

    Args:
        terms: SCORED_TERMS from `score`.
        titles: PAGE_VIEWS from `popular_titles`.
        synsets: names of WordNet's synsets, from `wordnet_synsets`.
        config: mode and size.

    Returns:
        QUERIES.
    """
    rules = config.rules
    is_word = pc.field("length") == 1
    by_count = terms.filter(is_word).sort_by([("count", "descending"), ("term", "ascending")])
    by_pmi = terms.filter(~is_word).sort_by([("pmi_bits", "descending"), ("term", "ascending")])
    by_pmi = by_pmi.slice(0, rules.max_bigrams)
    selected = {word: ("unigram", float(n)) for word, n in _pairs(by_count.slice(0, rules.size), "term", "count")}
    reserved = {text for synset in synsets if (text := _query(synset, config)) and text not in selected}
    candidates = [
        *(("bigram", term, pmi) for term, pmi in _pairs(by_pmi, "term", "pmi_bits")),
        *(("title", _query(title, config), float(n)) for title, n in _pairs(titles, "title", "views")),
    ]
    for source, text, statistic in candidates:
        if text and text not in selected and (text in reserved or len(selected) + len(reserved) < rules.size):
            selected[text] = source, statistic
            reserved.discard(text)
    selected |= dict.fromkeys(sorted(reserved), ("wordnet", 0.0))
    texts = list(selected)[: rules.size]
    sources, statistics = zip(*(selected[text] for text in texts), strict=True) if texts else ((), ())
    ids = pa.array(range(len(texts)), pa.int32())
    return pa.table([ids, texts, list(sources), list(statistics), ids], schema=QUERIES)


def _query(text: str, config: QueriesConfig) -> str:
    """A name as a query: without a qualifier in brackets, since captions have none; unchanged in mode metaclip."""
    return text if config.mode == "metaclip" else normalize(_QUALIFIER.sub("", text))


def _pairs(table: pa.Table, key: str, value: str) -> Iterator[tuple[str, float]]:
    return zip(table[key].to_pylist(), table[value].to_pylist(), strict=True)


def word_of(terms: pa.ChunkedArray, index: int) -> pa.StringArray:
    """The first (0) or last (-1) word of each term; bi-grams have one blank."""
    pattern = r"^(?P<word>[^ ]*)" if index == 0 else r"(?P<word>[^ ]*)$"
    return pc.struct_field(pc.extract_regex(terms.combine_chunks(), pattern), "word")


def _count_of(words: pa.Array, terms: pa.Table) -> pa.Array:
    """The count of each word; all words must be among the terms."""
    unigrams = terms.filter(pc.field("length") == 1)
    return unigrams["count"].combine_chunks().take(pc.index_in(words, unigrams["term"].combine_chunks()))


def wordnet_synsets(folder: str) -> Iterator[str]:
    """The first lemma of every WordNet synset, with blanks for underscores, from Princeton's data files.

    A line of a data file is one synset: offset, file number, type, word count, first word. Lines of the licence begin
    with two blanks. An adjective's marker such as (a) is not part of the word (wndb(5WN)).

    Raises:
        FileNotFoundError: the folder lacks one of the data files.
        ValueError: a line is not a synset, or not UTF-8. The message names the file and the line.
    """
    files = [Path(folder, name) for name in WORDNET_FILES]
    if missing := [file.name for file in files if not file.exists()]:
        raise FileNotFoundError(f"wordnet={folder}: {missing} are missing (on Debian, install wordnet-base)")
    for file in files:
        for number, line in enumerate(file.read_bytes().split(b"\n"), 1):
            if not line.strip() or line.startswith(b"  "):
                continue
            try:
                word = line.decode().split(" ", 5)[4]
            except (UnicodeDecodeError, IndexError) as error:
                raise ValueError(
                    f"wordnet={folder}: line {number} of {file.name} is not a synset ({error}); install it again"
                ) from error
            yield re.sub(r"\((a|p|ip)\)$", "", word).replace("_", " ")
