"""The query list (paper section 2.2): frequent words, bi-grams that belong together, and WordNet's synsets.

Counting is distributed: every part counts its documents (`count_terms`), and the counts are summed by hash partition
(`sum_counts`). What is left fits one process: words and bi-grams above their minimum counts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import paper
from pipeline.data.match import normalize
from pipeline.schemas import QUERIES, TERM_COUNTS

WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"[.!?;:]\s|\n")


@dataclass(frozen=True, kw_only=True)
class QueriesConfig:
    """What makes a query."""

    size: int = paper.NUM_QUERIES.value
    """Queries in the list, at most."""
    min_word_count: int = paper.MIN_WORD_COUNT.value
    min_bigram_count: int = 30
    """Below this, PMI measures chance: the rarest pairs of rare words would lead the list."""
    min_pmi_bits: float = 4.0
    max_bigrams: int = 100_000
    """Bi-grams of the highest PMI that are taken."""


def words(text: str) -> Iterator[list[str]]:
    """The normalised words of each sentence of a text: letters, with hyphens and apostrophes inside, no digits."""
    for sentence in _SENTENCE_END.split(text):
        yield _WORD.findall(normalize(sentence))


def count_terms(documents: Iterable[str]) -> pa.Table:
    """TERM_COUNTS of the words and bi-grams of some documents, in ascending order of (length, term)."""
    unigrams: Counter[str] = Counter()
    bigrams: Counter[str] = Counter()
    for document in documents:
        for sentence in words(document):
            unigrams.update(sentence)
            bigrams.update(f"{first} {second}" for first, second in pairwise(sentence))
    rows = [(term, length, n) for length, found in ((1, unigrams), (2, bigrams)) for term, n in sorted(found.items())]
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], []], schema=TERM_COUNTS)


def sum_counts(table: pa.Table) -> pa.Table:
    """TERM_COUNTS with the counts of each term added up, in ascending order of (length, term)."""
    summed = table.group_by(["term", "length"]).aggregate([("count", "sum")])
    return summed.rename_columns(TERM_COUNTS.names).sort_by([("length", "ascending"), ("term", "ascending")])


def select_queries(counts: pa.Table, synsets: Iterable[str], config: QueriesConfig) -> pa.Table:
    """QUERIES: words by falling count, bi-grams by falling PMI, then the synsets not there yet, cut at `size`.

    PMI = log2(c12 N / (c1 c2)) with N the number of words. Ties are broken by text, so nothing else matters.

    Args:
        counts: summed TERM_COUNTS of the whole text.
        synsets: names of WordNet's synsets, as `wordnet_synsets` gives them.
        config: thresholds.
    """
    unigrams = counts.filter(pc.field("length") == 1)
    bigrams = counts.filter((pc.field("length") == 2) & (pc.field("count") >= config.min_bigram_count))
    count_of = dict(zip(unigrams["term"].to_pylist(), unigrams["count"].to_pylist(), strict=True))
    total = sum(count_of.values())
    frequent = [(-float(n), term) for term, n in count_of.items() if n >= config.min_word_count]
    bound = []
    for term, n in zip(bigrams["term"].to_pylist(), bigrams["count"].to_pylist(), strict=True):
        first, second = term.split(" ")
        pmi = float(np.log2(n * total / (count_of[first] * count_of[second])))
        if pmi >= config.min_pmi_bits:
            bound.append((-pmi, term))
    found: dict[str, tuple[str, float]] = {}
    for source, ranked in (("unigram", sorted(frequent)), ("bigram", sorted(bound)[: config.max_bigrams])):
        for negative, term in ranked:
            found.setdefault(term, (source, -negative))
    for synset in synsets:
        found.setdefault(normalize(synset), ("wordnet", 0.0))
    texts = list(found)[: config.size]
    sources, statistics = zip(*(found[text] for text in texts), strict=True) if texts else ((), ())
    ids = pa.array(range(len(texts)), pa.int32())
    return pa.table([ids, texts, list(sources), list(statistics), ids], schema=QUERIES)


def wordnet_synsets(folder: str) -> Iterator[str]:
    """The first lemma of every synset of WordNet, blanks for underscores, read from Princeton's data files.

    A line of a data file is one synset: offset, file number, type, word count, first word; lines of the licence begin
    with two blanks, and an adjective's marker such as (a) is no part of the word (wndb(5WN)).

    Raises:
        FileNotFoundError: the folder has none of the data files.
    """
    files = [Path(folder, name) for name in WORDNET_FILES]
    if not any(file.exists() for file in files):
        raise FileNotFoundError(f"wordnet={folder}: none of {list(WORDNET_FILES)} is there (Debian: wordnet-base)")
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                yield re.sub(r"\((a|p|ip)\)$", "", line.split(" ", 5)[4]).replace("_", " ")
