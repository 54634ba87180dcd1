"""Which queries occur in a caption (paper section 2.2): all of 500,000 at once, in time linear in the caption.

Mode `paper`: query and caption are normalised and cut into words alike (words.py), and a query occurs where its words
do, with white space between them where it has some, and none where it has none. A trie over words finds them, walked
from all words of all captions at once: a match begins at a word, so no failure links are needed (Aho and Corasick 1975
need them to begin anywhere). Of a script that parts its words by blanks only whole words match: a query that begins or
ends with punctuation has no letter beside it either. Where there are no blanks, any characters match.

Mode `metaclip`: the rule of the one list that was published (Xu et al. 2024), to the letter, with what it misses:
case-sensitive; a blank on either side of , . ; : ? ! ` in the caption, but not in the query.
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

_SET_APART = ",.;:?!`"
_TO_BLANK = "\t\n\r"
_SPACING = str.maketrans({c: f" {c} " for c in _SET_APART} | dict.fromkeys(_TO_BLANK, " "))


class Matcher:
    """Finds a list of queries. Built once per actor; calls are pure.

    Raises:
        ValueError: a query is empty once normalised, or two are the same.
    """

    def __init__(self, queries: Sequence[str], mode: MatchMode = "paper") -> None:
        check_queries(queries, mode)
        self._rule = _WordTrie(queries) if mode == "paper" else _PaddedStrings(queries)
        self.num_queries = len(queries)

    def __call__(self, texts: pa.Array) -> pa.ListArray:
        """The positions of the queries that occur in each text, sorted and unique.

        Args:
            texts: strings or bytes, B of them, of any length; null matches nothing.

        Returns:
            B lists of int32.
        """
        if isinstance(texts, pa.ChunkedArray):
            texts = texts.combine_chunks()
        num_queries = max(self.num_queries, 1)
        found = [np.zeros(0, np.int64)]
        for text, query in self._rule.occurrences(texts):
            keys = np.sort(text * num_queries + query)
            found.append(keys[np.diff(keys, prepend=-1) > 0])
        text, query = np.divmod(np.sort(np.concatenate(found), kind="stable"), num_queries)  # runs, all but merged
        offsets = np.searchsorted(text, np.arange(len(texts) + 1)).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(query.astype(np.int32)))

    def match(self, text: str) -> list[int]:
        """The positions of the queries that occur in one text, sorted and unique."""
        found: list[int] = self(pa.array([text]))[0].as_py()
        return found


def check_queries(queries: Sequence[str], mode: MatchMode = "paper") -> None:
    """Raises ValueError where a query is empty once normalised, or two are the same, or the mode is unknown."""
    if mode not in ("paper", "metaclip"):
        raise ValueError(f"match mode {mode!r} is unknown; choose 'paper' or 'metaclip'")
    forms = [words.normalize(query) for query in queries] if mode == "paper" else list(queries)
    if not all(forms):
        raise ValueError(f"query {forms.index('')} is empty once normalised; take it out of the list")
    if len(set(forms)) < len(forms):
        twice, _ = Counter(forms).most_common(1)[0]
        places = [place for place, form in enumerate(forms) if form == twice]
        raise ValueError(f"query {twice!r} stands twice in the list, as {places[:5]}; keep one of them")


def match_captions(table: pa.Table, matcher: Matcher) -> pa.Table:
    """CANDIDATES with `query_ids` filled, and a reason where a caption holds no query; dropped rows are not matched."""
    out = table["reason"].is_valid().to_numpy()
    captions = pa.array(np.where(out, None, table["caption"].to_numpy(zero_copy_only=False)), pa.string())
    query_ids = matcher(captions)
    table = table.set_column(table.schema.get_field_index("query_ids"), "query_ids", query_ids)
    unmatched = ~out & (query_ids.value_lengths().to_numpy() == 0)
    reasons = np.where(unmatched, Reason.NO_QUERY.value, table["reason"].to_numpy(zero_copy_only=False))
    return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))


class _WordTrie:
    """Mode `paper`. A node is a beginning of some queries; an edge leads on by one word, with or without a blank."""

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
        self._roots = np.full(len(vocabulary) + 1, -1, np.int32)  # the last is for words of no query
        self._roots[roots] = np.arange(len(roots))
        edges, num_nodes = [np.zeros(0, np.uint64)], len(roots)
        for depth in range(1, int(length.max(initial=1))):
            deep = np.flatnonzero(length > depth)
            place = first[deep] + depth
            level, where = np.unique(_edge(node[deep], after_space[place], word[place]), return_inverse=True)
            node[deep] = num_nodes + where
            num_nodes += len(level)
            edges.append(level)
        self._edges = _Index(np.concatenate(edges))  # edge i leads to node len(roots) + i
        self._num_roots = len(roots)
        self._query = np.full(num_nodes, -1, np.int32)
        self._query[node] = np.arange(len(queries))

    def occurrences(self, texts: pa.Array) -> Iterator[tuple[Int64, Int64]]:
        """Number of the text and position of the query of each occurrence, some texts at a time."""
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
            goes_on = last + 1 < len(word)
            first, last, node = first[goes_on], last[goes_on] + 1, node[goes_on]
            goes_on = (chunk.text[last] == chunk.text[first]) & (word[last] >= 0)
            first, last, node = first[goes_on], last[goes_on], node[goes_on]
            edge = self._edges.find(_edge(node, chunk.after_space[last], word[last]))
            goes_on = edge >= 0
            first, last, node = first[goes_on], last[goes_on], edge[goes_on] + self._num_roots
        if not matches:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        first, last, query = (np.concatenate(parts) for parts in zip(*matches, strict=True))
        touches = (
            (chunk.kind[:-1] == Kind.WORD) & ~chunk.after_space[1:],
            (chunk.kind[1:] == Kind.WORD) & ~chunk.after_space[1:],
        )
        before, behind = np.r_[False, touches[0]], np.r_[touches[1], False]
        whole = ~(before[first] & self._needs_boundary[0, query] | behind[last] & self._needs_boundary[1, query])
        return chunk.text[first[whole]], query[whole].astype(np.int64)


def _edge(
    node: npt.NDArray[np.integer[Any]], after_space: npt.NDArray[np.bool_], word: npt.NDArray[np.integer[Any]]
) -> UInt64:
    """64 bits for an edge: the node it leaves, whether white space lies between, the word."""
    edge = node.astype(np.uint64) << np.uint64(32)
    edge |= after_space.astype(np.uint64) << np.uint64(31)
    edge |= word.astype(np.uint64)
    return edge


class _Index:
    """Position of each of K different 64-bit keys: a hash table in order of its hashes, some 20 bytes a key."""

    def __init__(self, keys: UInt64) -> None:
        mixed = mix(keys)  # a bijection, so that equal means equal
        self._position = np.argsort(mixed).astype(np.int32)
        self._mixed = mixed[self._position]
        bits = max(1, len(keys).bit_length())
        self._shift = np.uint64(64 - bits)
        bounds = np.arange(2**bits, dtype=np.uint64) << self._shift
        self._first = np.append(np.searchsorted(self._mixed, bounds), len(keys)).astype(np.int32)

    def find(self, keys: UInt64) -> Int32:
        """The position of each key, -1 where it is none of ours."""
        mixed = mix(keys)
        bucket = (mixed >> self._shift).astype(np.int64)
        place, end = self._first[bucket], self._first[bucket + 1]
        found = np.full(len(keys), -1, np.int32)
        left = np.flatnonzero(place < end)
        while left.size:
            at = place[left]
            same = self._mixed[at] == mixed[left]
            found[left[same]] = self._position[at[same]]
            left = left[~same]
            place[left] += 1
            left = left[place[left] < end[left]]
        return found


class _PaddedStrings:
    """Mode `metaclip`."""

    def __init__(self, queries: Sequence[str]) -> None:
        self._automaton = AhoCorasick([f" {query} " for query in queries], matchkind=MatchKind.Standard)

    def occurrences(self, texts: pa.Array) -> Iterator[tuple[Int64, Int64]]:
        """Number of the text and position of the query of each occurrence, a text at a time."""
        for number, text in enumerate(texts.cast(pa.binary(), safe=False).to_pylist()):
            spaced = f" {(text or b'').decode('utf-8', 'replace')} ".translate(_SPACING)
            found = self._automaton.find_matches_as_indexes(spaced, overlapping=True)
            yield np.full(len(found), number), np.array([query for query, _, _ in found], np.int64)
