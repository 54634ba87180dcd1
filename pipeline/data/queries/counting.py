"""Count how often words, and pairs of neighbouring words, occur in a large amount of text.

Each part of the text is counted separately (`count_terms`). The counts are then summed by hash partition
(`sum_counts`), so memory is bounded by one part or one partition, never by the whole text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.text import words
from pipeline.data.text.words import Kind, Words
from pipeline.schemas import TERM_COUNTS

JOINERS = "-'’"
"""Characters that belong to a word if they are between two letters."""
LETTERS = pa.schema([("letters", pa.int64()), ("unspaced", pa.int64())])
LINES_AT_ONCE = 50_000
ROWS_AT_ONCE = 4_000_000
"""Maximum rows of counts before they are summed: about 200 MB."""


def count_terms(documents: Iterable[str], fold: Callable[[str], str] = words.normalize) -> pa.Table:
    """Count the words and the pairs of neighbouring words of some documents.

    A word consists of letters and marks, with hyphens and apostrophes inside. Words with a number or an underscore are
    not counted, nor are scripts without blanks between words; a word of another script beside them is, as it is matched
    there ("iPhoneを" has the word "iphone"). Neighbouring words are on one line, with only white space between them.

    Args:
        documents: the texts.
        fold: normalises a text, as in `words.split`.

    Returns:
        TERM_COUNTS, ordered by (length, term).
    """
    lines = (line for document in documents for line in document.splitlines())
    counts = [TERM_COUNTS.empty_table()]
    while batch := list(islice(lines, LINES_AT_ONCE)):
        texts = pa.array([line.encode("utf-8", "replace") for line in batch], pa.binary())
        counts += [table for chunk in words.split(texts, JOINERS, fold) for table in _count(chunk)]
        if sum(table.num_rows for table in counts) > ROWS_AT_ONCE:
            counts = [sum_counts(pa.concat_tables(counts))]
    return sum_counts(pa.concat_tables(counts))


def sum_counts(table: pa.Table) -> pa.Table:
    """TERM_COUNTS with the counts of each term summed, ordered by (length, term)."""
    summed = table.group_by(["term", "length"]).aggregate([("count", "sum")])
    return summed.rename_columns(TERM_COUNTS.names).sort_by([("length", "ascending"), ("term", "ascending")])


def count_letters(documents: Iterable[str]) -> pa.Table:
    """Count the letters of some documents, and those of scripts without blanks between words, which form no words here.

    Returns:
        One row: `letters` and `unspaced`.
    """
    kinds = _letter_kinds()
    counts = np.zeros(3, np.int64)
    for document in documents:
        codes = np.frombuffer(document.encode("utf-32-le", "replace"), "<u4")
        counts += np.bincount(kinds[codes], minlength=3)
    return pa.table({"letters": [int(counts[1:].sum())], "unspaced": [int(counts[2])]}, schema=LETTERS)


def _count(chunk: Words) -> list[pa.Table]:
    """TERM_COUNTS of the words of a chunk, and of its pairs of neighbouring words."""
    if not len(chunk.hash):
        return []
    excluded = np.add.reduceat(_excluded_characters()[chunk.characters].astype(np.int32), chunk.start) > 0
    counted = (chunk.kind == Kind.WORD) & ~excluded
    word = np.flatnonzero(counted)
    if not len(word):
        return []
    _, first, term, count = np.unique(chunk.hash[word], return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    spelled = chunk.spell(word[first[order]]).cast(pa.string()).take(pa.array(np.argsort(order)))
    pair = np.flatnonzero(counted[:-1] & counted[1:] & chunk.after_space[1:] & (chunk.text[:-1] == chunk.text[1:]))
    term_of_word = np.zeros(len(counted), np.int64)
    term_of_word[word] = term
    pairs, pair_count = np.unique(term_of_word[pair] << 32 | term_of_word[pair + 1], return_counts=True)
    left, right = spelled.take(pa.array(pairs >> 32)), spelled.take(pa.array(pairs & 0xFFFFFFFF))
    return [
        _table(spelled, 1, count),
        _table(pc.binary_join_element_wise(left, right, " "), 2, pair_count),
    ]


def _table(term: pa.StringArray, length: int, count: npt.NDArray[np.int64]) -> pa.Table:
    lengths = pa.array(np.full(len(term), length, np.int8))
    return pa.table([term, lengths, pa.array(count.astype(np.int64))], schema=TERM_COUNTS)


@cache
def _excluded_characters() -> npt.NDArray[np.bool_]:
    """For each code point whether it is a number or the underscore; words that contain one are not counted."""
    table = np.zeros(0x110000, bool)
    table[[code for code in words.ASSIGNED if chr(code).isnumeric() or chr(code) == "_"]] = True
    return table


@cache
def _letter_kinds() -> npt.NDArray[np.uint8]:
    """For each code point: 0 no letter, 1 a letter of a script with blanks, 2 a letter of a script without."""
    table = np.zeros(0x110000, np.uint8)
    letters = np.array([code for code in words.ASSIGNED if chr(code).isalpha()])
    table[letters] = 1
    for chunk in words.split(pa.array([chr(code) for code in letters])):
        table[letters[chunk.text[chunk.kind == Kind.UNSPACED]]] = 2
    return table
