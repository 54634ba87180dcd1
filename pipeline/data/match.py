"""Which queries occur in a caption: Aho-Corasick over all of them at once (Aho and Corasick 1975; paper section 2.2).

Query and caption are normalised alike (NFKC, case folding, one blank for any white space), and a query counts only
where neither neighbour of the match is part of a word. Time is linear in the caption, whatever the number of queries.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
from ahocorasick_rs import AhoCorasick, MatchKind

from pipeline.schemas import Reason

MatchMode = Literal["paper"]


def normalize(text: str) -> str:
    """NFKC, case-folded, every run of white space one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def is_word_character(character: str) -> bool:
    """Whether a character can be part of a word: a letter, a digit, a combining mark, or the underscore."""
    return character == "_" or unicodedata.category(character)[0] in "LNM"


class Matcher:
    """An automaton over a list of queries. Built once per actor; calls are pure.

    Raises:
        ValueError: a query is empty once normalised, or two are the same.
    """

    def __init__(self, queries: Sequence[str], mode: MatchMode = "paper") -> None:
        if mode != "paper":
            raise ValueError(f"match mode {mode!r} is unknown; choose 'paper'")
        patterns = [normalize(query) for query in queries]
        if not all(patterns):
            raise ValueError(f"query {patterns.index('')} is empty")
        if len(set(patterns)) < len(patterns):
            twice = next(p for i, p in enumerate(patterns) if p in patterns[:i])
            raise ValueError(f"query {twice!r} stands twice in the list")
        self._automaton = AhoCorasick(patterns, matchkind=MatchKind.Standard)

    def __call__(self, texts: pa.Array) -> pa.ListArray:
        """The positions of the queries that occur in each text, sorted and unique.

        Args:
            texts: strings, B of them; null matches nothing.

        Returns:
            B lists of int32.
        """
        offsets, positions = [0], []
        for text in texts.to_pylist():
            positions += self.match(text) if text else []
            offsets.append(len(positions))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(positions, pa.int32()))

    def match(self, text: str) -> list[int]:
        """The positions of the queries that occur in one text, sorted and unique."""
        text = normalize(text)
        inside = [is_word_character(character) for character in text]
        found = self._automaton.find_matches_as_indexes(text, overlapping=True)
        return sorted(
            {
                index
                for index, start, end in found
                if not (start > 0 and inside[start - 1]) and not (end < len(text) and inside[end])
            }
        )


def match_captions(table: pa.Table, matcher: Matcher) -> pa.Table:
    """CANDIDATES with `query_ids` filled, and a reason where a caption holds no query; dropped rows are not matched."""
    out = table["reason"].is_valid().to_numpy()
    captions = pa.array(np.where(out, None, table["caption"].to_numpy(zero_copy_only=False)), pa.string())
    query_ids = matcher(captions)
    table = table.set_column(table.schema.get_field_index("query_ids"), "query_ids", query_ids)
    unmatched = ~out & (query_ids.value_lengths().to_numpy() == 0)
    reasons = np.where(unmatched, Reason.NO_QUERY.value, table["reason"].to_numpy(zero_copy_only=False))
    return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))
