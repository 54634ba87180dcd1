"""Find the queries that occur in a caption (paper section 2.2).

All 500,000 queries are searched at once, in time linear in the caption's length.

Mode `paper`: queries and captions are normalised and split into words in the same way (words.py). A query occurs where
its words follow one another, with white space between two words exactly where the query has it. A trie over words finds
them; it is walked from all words of all captions at once. Matches begin only at words, so no failure links are needed
(Aho and Corasick 1975 need them because their matches begin anywhere). In scripts that separate words by blanks, only
whole words match, and a query that begins or ends with punctuation must not touch a letter there. In other scripts, any
sequence of characters matches.

Mode `metaclip`: exactly the rule of the only published list (Xu et al. 2024), with its limitations. Matching is
case-sensitive, and a blank is added on either side of , . ; : ? ! ` in the caption, but not in the query.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from ahocorasick_rs import AhoCorasick, MatchKind

from pipeline.data.text import words
from pipeline.data.text.words import Kind, Words
from pipeline.hashing import UInt64, mix
from pipeline.reasons import Reason

MatchMode = Literal["paper", "metaclip"]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_PADDED_MARKS = ",.;:?!`"
_TO_BLANK = "\t\n\r"
_SPACING = str.maketrans({c: f" {c} " for c in _PADDED_MARKS} | dict.fromkeys(_TO_BLANK, " "))


class Matcher:
    """Finds the queries of a list in texts. Built once per actor; calls are pure.

    Raises:
        ValueError: a query is empty once normalised, or two queries are the same.
    """

    def __init__(self, queries: Sequence[str], mode: MatchMode = "paper") -> None:
        check_queries(queries, mode)
        self._rule = _WordTrie(queries) if mode == "paper" else _PaddedStrings(queries)
        self.num_queries = len(queries)

    def __call__(self, texts: pa.Array) -> pa.ListArray:
        """The indices of the queries that occur in each text, sorted and unique.

        Args:
            texts: B strings or bytes of any length; null matches nothing.

        Returns:
            B lists of int32.
        """
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        num_queries = max(self.num_queries, 1)
        matches = [np.zeros(0, np.int64)]
        for text, query in self._rule.occurrences(texts):
            keys = np.sort(text * num_queries + query)
            matches.append(keys[np.diff(keys, prepend=-1) > 0])
        # The stable sort only merges runs that are already sorted
        text, query = np.divmod(np.sort(np.concatenate(matches), kind="stable"), num_queries)
        offsets = np.searchsorted(text, np.arange(len(texts) + 1)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(query.astype(np.int32)))

    def match(self, text: str) -> list[int]:
        """The indices of the queries that occur in one text, sorted and unique."""
        queries: list[int] = self(pa.array([text]))[0].as_py()
        return queries


def check_queries(queries: Sequence[str], mode: MatchMode = "paper") -> None:
    """Check that a list of queries can be matched.

    Raises:
        ValueError: a query is empty once normalised, two queries are the same, or the mode is unknown.
    """
    if mode not in ("paper", "metaclip"):
        raise ValueError(f"match mode {mode!r} is unknown; choose 'paper' or 'metaclip'")
    forms = [words.normalize(query) for query in queries] if mode == "paper" else list(queries)
    if not all(forms):
        raise ValueError(f"query {forms.index('')} is empty once normalised; remove it from the list")
    if len(set(forms)) < len(forms):
        repeated, _ = Counter(forms).most_common(1)[0]
        indices = [index for index, form in enumerate(forms) if form == repeated]
        raise ValueError(f"query {repeated!r} is repeated in the list, at indices {indices[:5]}; keep only one")


def match_captions(table: pa.Table, matcher: Matcher) -> pa.Table:
    """Fill `query_ids` of CANDIDATES, and set a reason if a caption has no query. Dropped rows are not matched."""
    dropped = table["reason"].is_valid().to_numpy()
    captions = pa.array(np.where(dropped, None, table["caption"].to_numpy(zero_copy_only=False)), pa.string())
    query_ids = matcher(captions)
    table = table.set_column(table.schema.get_field_index("query_ids"), "query_ids", query_ids)
    unmatched = ~dropped & (query_ids.value_lengths().to_numpy() == 0)
    reasons = np.where(unmatched, Reason.NO_QUERY.value, table["reason"].to_numpy(zero_copy_only=False))
    return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))


class _WordTrie:
    """Mode `paper`. A node is a prefix of some queries; an edge adds one word, with or without a blank before it."""

    def __init__(self, queries: Sequence[str]) -> None:
        chunks = list(words.split(pa.array([query.encode("utf-8", "replace") for query in queries], pa.binary())))
        text, hashes, kind, after_space = (
            np.concatenate([getattr(chunk, name) for chunk in chunks] or [np.zeros(0, dtype)])
            for name, dtype in (("text", np.int64), ("hash", np.uint64), ("kind", np.uint8), ("after_space", bool))
        )
        order = np.argsort(text, kind="stable")
        length = np.bincount(text, minlength=len(queries))
        first = np.cumsum(length) - length
        vocabulary, word = np.unique(hashes[order], return_inverse=True)
        kind, after_space = kind[order], after_space[order]
        self._vocabulary = _Index(vocabulary)
        self._needs_boundary = np.stack([kind[first] == Kind.OTHER, kind[first + length - 1] == Kind.OTHER])

        roots, node = np.unique(word[first], return_inverse=True)
        self._roots = np.full(len(vocabulary) + 1, -1, np.int32)  # the last entry is for unknown words
        self._roots[roots] = np.arange(len(roots))
        edges, num_nodes = [np.zeros(0, np.uint64)], len(roots)
        for depth in range(1, int(length.max(initial=1))):
            longer = np.flatnonzero(length > depth)
            index = first[longer] + depth
            level, edge = np.unique(_edge(node[longer], after_space[index], word[index]), return_inverse=True)
            node[longer] = num_nodes + edge
            num_nodes += len(level)
            edges.append(level)
        self._edges = _Index(np.concatenate(edges))  # edge i leads to node len(roots) + i
        self._num_roots = len(roots)
        self._query = np.full(num_nodes, -1, np.int32)
        self._query[node] = np.arange(len(queries))

    def occurrences(self, texts: pa.Array) -> Iterator[tuple[Int64, Int64]]:
        """Per chunk of texts, two arrays with one entry per occurrence: the text's index and the query's index."""
        return map(self._walk, words.split(texts))

    def _walk(self, chunk: Words) -> tuple[Int64, Int64]:
        word = self._vocabulary.find(chunk.hash)
        node = self._roots[word]
        last = np.flatnonzero(node >= 0)
        node, first = node[last], last
        matches = []
        while last.size:
            query = self._query[node]
            ends = query >= 0
            matches.append((first[ends], last[ends], query[ends]))
            continues = last + 1 < len(word)
            first, last, node = first[continues], last[continues] + 1, node[continues]
            continues = (chunk.text[last] == chunk.text[first]) & (word[last] >= 0)
            first, last, node = first[continues], last[continues], node[continues]
            edge = self._edges.find(_edge(node, chunk.after_space[last], word[last]))
            continues = edge >= 0
            first, last, node = first[continues], last[continues], edge[continues] + self._num_roots
        if not matches:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        first, last, query = (np.concatenate(parts) for parts in zip(*matches, strict=True))
        touches = (
            (chunk.kind[:-1] == Kind.WORD) & ~chunk.after_space[1:],
            (chunk.kind[1:] == Kind.WORD) & ~chunk.after_space[1:],
        )
        before, after = np.r_[False, touches[0]], np.r_[touches[1], False]
        whole = ~(before[first] & self._needs_boundary[0, query] | after[last] & self._needs_boundary[1, query])
        return chunk.text[first[whole]], query[whole].astype(np.int64)


def _edge(
    node: npt.NDArray[np.integer[Any]], after_space: npt.NDArray[np.bool_], word: npt.NDArray[np.integer[Any]]
) -> UInt64:
    """The 64-bit key of an edge: the node it leaves, whether white space precedes the word, the word."""
    edge = node.astype(np.uint64) << np.uint64(32)
    edge |= after_space.astype(np.uint64) << np.uint64(31)
    edge |= word.astype(np.uint64)
    return edge


class _Index:
    """The index of each of K distinct 64-bit keys, as a hash table sorted by hash; about 20 bytes per key."""

    def __init__(self, keys: UInt64) -> None:
        mixed = mix(keys)  # a bijection, so different keys have different hashes
        self._index = np.argsort(mixed).astype(np.int32)
        self._mixed = mixed[self._index]
        bits = max(1, len(keys).bit_length())
        self._shift = np.uint64(64 - bits)
        bounds = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._first = np.append(np.searchsorted(self._mixed, bounds), len(keys)).astype(np.int32)

    def find(self, keys: UInt64) -> Int32:
        """The index of each key; -1 for unknown keys."""
        mixed = mix(keys)
        bucket = (mixed >> self._shift).astype(np.int64)
        slot, end = self._first[bucket], self._first[bucket + 1]
        index = np.full(len(keys), -1, np.int32)
        pending = np.flatnonzero(slot < end)
        while pending.size:
            slots = slot[pending]
            same = self._mixed[slots] == mixed[pending]
            index[pending[same]] = self._index[slots[same]]
            pending = pending[~same]
            slot[pending] += 1
            pending = pending[slot[pending] < end[pending]]
        return index


class _PaddedStrings:
    """Mode `metaclip`."""

    def __init__(self, queries: Sequence[str]) -> None:
        self._automaton = AhoCorasick([f" {query} " for query in queries], matchkind=MatchKind.Standard)

    def occurrences(self, texts: pa.Array) -> Iterator[tuple[Int64, Int64]]:
        """Per text, two arrays with one entry per occurrence: the text's index and the query's index."""
        for index, text in enumerate(texts.cast(pa.binary(), safe=False).to_pylist()):
            padded = f" {(text or b'').decode('utf-8', 'replace')} ".translate(_SPACING)
            matches = self._automaton.find_matches_as_indexes(padded, overlapping=True)
            yield np.full(len(matches), index), np.array([query for query, _, _ in matches], np.int64)
