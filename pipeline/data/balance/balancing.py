"""Balancing: limit the number of pairs per query (paper section 2.2). Exact, independent of order, and mergeable.

Each pair of a query has a draw(seed, query, pair), a stable 64-bit hash. A query selects pairs by their draws, and a
pair is kept if any of its queries selects it. Mode `paper`: a query selects the `max_pairs_per_query` pairs of the
lowest draws. They are found with bottom-k sketches (Cohen and Kaplan 2007), which merge in any order. Mode `metaclip`
(Xu et al. 2024): a query with c pairs selects each with probability min(1, t/c). Both modes result in a threshold per
query, so one function applies them.

If the counts c of all pairs are known, sketches can be shorter. A query with c <= k needs no draws, because it selects
all its pairs. For any other query, the k-th lowest of c uniform draws is below  m/c * 2^64  for
m = k + s + sqrt(s^2 + 2ks)  except with probability e^-s (Chernoff's bound on the lower tail of a binomial of mean m).
So draws above this `bound` are omitted. With s = 40, one run of 500,000 queries in 4e11 has a query with too few draws;
`thresholds` then raises, because an inexact result is of no use.

This justifies an extra pass for the counts. At 1.6 billion pairs with 3.5 matches each, k = 20,000, in 64 parts
(paper.md: 16,000 queries reach k and have 94% of the 5.6 billion incidences):
    sketches only         few queries reach k within a part of 25 M pairs, so nearly all draws are written:
                          5.6e9 x 8 B = 45 GB, sorted, and read again; each of 64 buckets merges 0.7 GB
    counts, then sketches counts: 64 parts x 500,000 queries x 12 B = 0.4 GB; draws: 16,000 queries x m = 21,306 x 8 B
                          = 2.7 GB, 43 MB per bucket; only these 0.34e9 draws are sorted, 6% of all
Counting reads the column of query ids once more. Mode `metaclip` needs only the counts.

Memory: the working set of a chunk of pairs, the draws that a part or bucket keeps, and 16 bytes per query.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import paper
from pipeline.hashing import UInt64, draws, id_words
from pipeline.reasons import Reason
from pipeline.schemas import SKETCHES, THRESHOLDS

Integers = npt.NDArray[np.integer[Any]]
MaxPairs = int | npt.NDArray[np.int64]
"""k: one limit for all queries, or an array of limits by query id."""
ALL = np.uint64(2**64 - 1)
CHUNK_PAIRS = 2**16
"""Pairs that are processed at once: few enough for the processor's cache."""
BOUND_EXPONENT = 40.0
"""The s of the module docstring: a bound is too low with probability e^-s."""
_EMPTY = SKETCHES.empty_table()


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """Limits on the number of pairs per query."""

    mode: Literal["paper", "metaclip"] = "paper"
    max_pairs_per_query: int = paper.MAX_PAIRS_PER_QUERY.value
    """Maximum number of pairs per query: k in mode paper; in mode metaclip t, which is the expected number."""
    early_margin: float = 3.0
    """Before fetching, the limit is multiplied by this, because images are later lost to dead URLs and duplicates."""
    duplicate_margin: float = 1.5
    """Replaces early_margin if an earlier crawl has measured how many URLs of each query give an image: this many times
    the limit is the number of images to fetch. It allows for a third of them to be duplicates, a cautious guess."""
    max_early_margin: float = 10.0
    """Maximum multiple of the limit that a query keeps before fetching, however few of its images survive."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.duplicate_margin <= self.max_early_margin:
            raise ValueError(
                f"balance.duplicate_margin = {self.duplicate_margin}: must be from 1 to balance.max_early_margin = "
                f"{self.max_early_margin}"
            )

    @property
    def max_pairs_before_fetch(self) -> int:
        """Maximum number of pairs per query before fetching."""
        return int(np.ceil(self.max_pairs_per_query * self.early_margin))


def count(table: pa.Table) -> pa.Table:
    """Count the pairs of each query.

    Args:
        table: column query_ids.

    Returns:
        SKETCHES without draws, ascending by query.
    """
    queries, num_pairs = _counts(table)
    return _bottom(queries, num_pairs, _NO_QUERIES, _NO_DRAWS, 0)


def bounds(counts: pa.Table, max_pairs: MaxPairs) -> UInt64:
    """For each query id, an upper bound of its threshold in mode `paper`; 0 for a query that needs no draws.

    Args:
        counts: SKETCHES of all pairs, with or without draws.
        max_pairs: k.
    """
    queries, num_pairs = counts["query_id"].to_numpy(), counts["num_pairs"].to_numpy()
    k = _limits_of(max_pairs, queries).astype(np.float64)
    enough = k + BOUND_EXPONENT + np.sqrt(BOUND_EXPONENT**2 + 2 * k * BOUND_EXPONENT)
    bound = np.zeros(int(queries.max(initial=-1)) + 1, np.uint64)
    bound[queries] = np.where((num_pairs > k) & (k > 0), _scaled(enough / np.maximum(num_pairs, 1)), np.uint64(0))
    return bound


def sketch(table: pa.Table, max_pairs: MaxPairs, seed: int, bound: UInt64 | None = None) -> pa.Table:
    """Build the bottom-k sketch of a table's pairs.

    Args:
        table: columns pair_id (unique) and query_ids.
        max_pairs: k.
        seed: seed of the draws.
        bound: bounds by query id, from `bounds` over all pairs; higher draws are omitted. Without it, the sketch is
            complete and can be merged with pairs that are not counted yet.

    Returns:
        SKETCHES, one row per query that occurs, ascending by query.
    """
    chunks = [(_NO_QUERIES, _NO_DRAWS)]
    for chunk in _chunks(table):
        row, query = _incidences(chunk)
        if bound is not None:
            needed = np.flatnonzero(bound[query])
            row, query = row[needed], query[needed]
        draw = _draws(seed, chunk, row, query)
        if bound is not None:
            low = np.flatnonzero(draw <= bound[query])
            query, draw = query[low], draw[low]
        chunks.append((query, draw))
    query, draw = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    return _bottom(*_counts(table), query, draw, max_pairs)


def merge(sketches: Iterable[pa.Table], max_pairs: MaxPairs) -> pa.Table:
    """Merge sketches into one sketch of all their pairs; associative and commutative.

    Args:
        sketches: SKETCHES of disjoint sets of pairs, each with the same k, seed and bounds.
        max_pairs: k.
    """
    table = pa.concat_tables([_EMPTY, *sketches]).combine_chunks()
    lengths = pc.list_value_length(table["draws"]).to_numpy()
    queries, index = np.unique(table["query_id"].to_numpy(), return_inverse=True)
    num_pairs = np.zeros(len(queries), np.int64)
    np.add.at(num_pairs, index, table["num_pairs"].to_numpy())
    query = np.repeat(table["query_id"].to_numpy(), lengths)
    return _bottom(queries, num_pairs, query, pc.list_flatten(table["draws"]).to_numpy(), max_pairs)


def thresholds(merged: pa.Table, max_pairs: MaxPairs, mode: Literal["paper", "metaclip"]) -> pa.Table:
    """THRESHOLDS of each query, from the SKETCHES of all pairs; mode metaclip needs only their counts."""
    num_pairs = merged["num_pairs"].to_numpy()
    k = _limits_of(max_pairs, merged["query_id"].to_numpy())
    if mode == "metaclip":
        limit = _scaled(k / np.maximum(num_pairs, 1))
    else:
        lengths = pc.list_value_length(merged["draws"]).to_numpy()
        over = num_pairs > k
        assert (lengths[over] >= k[over]).all(), "a query is short of draws: its bound was too low (module docstring)"
        has_last = over & (k > 0)
        limit = np.where(over, np.uint64(0), ALL)  # remains 0 where k is 0
        first = np.cumsum(lengths) - lengths
        limit[has_last] = pc.list_flatten(merged["draws"]).to_numpy()[(first + k - 1)[has_last]]
    return pa.table([merged["query_id"], merged["num_pairs"], pa.array(limit, pa.uint64())], schema=THRESHOLDS)


class Selection:
    """Keeps the pairs that at least one query selects. Takes 8 bytes per query."""

    def __init__(self, limits: pa.Table, seed: int) -> None:
        query = limits["query_id"].to_numpy()
        self._limit: UInt64 = np.zeros(int(query.max(initial=-1)) + 1, np.uint64)
        self._limit[query] = limits["threshold"].to_numpy()
        self._seed = seed

    def __call__(self, table: pa.Table) -> pa.Table:
        """Set a reason for each pair that no query selects; pairs that are already dropped keep their reason.

        Args:
            table: columns pair_id, query_ids and reason; each query of a remaining pair must have a threshold.
        """
        unchanged = pa.chunked_array([self._unchanged(chunk) for chunk in _chunks(table)], pa.bool_())
        reason = pc.if_else(unchanged, table["reason"], pa.scalar(Reason.BALANCED_OUT.value, pa.string()))
        return table.set_column(table.schema.get_field_index("reason"), "reason", reason)

    def _unchanged(self, chunk: pa.Table) -> pa.Array:
        """Whether a query selects the pair or it is already dropped; draws are computed only where they decide."""
        unchanged = chunk["reason"].is_valid().to_numpy()
        row, query = _undecided(unchanged, *_incidences(chunk))
        unchanged[row[self._limit[query] == ALL]] = True
        row, query = _undecided(unchanged, row, query)
        unchanged[row[_draws(self._seed, chunk, row, query) <= self._limit[query]]] = True
        return pa.array(unchanged)


_NO_QUERIES: Integers = np.zeros(0, np.int32)
_NO_DRAWS: UInt64 = np.zeros(0, np.uint64)


def _chunks(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, CHUNK_PAIRS) for start in range(0, table.num_rows, CHUNK_PAIRS))


def _incidences(table: pa.Table) -> tuple[Integers, Integers]:
    """Row index and query id of each (pair, query), in the table's order."""
    lists = table["query_ids"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(table.num_rows), lengths), pc.list_flatten(lists).to_numpy(zero_copy_only=False)


def _undecided(unchanged: npt.NDArray[np.bool_], row: Integers, query: Integers) -> tuple[Integers, Integers]:
    undecided = np.flatnonzero(~unchanged[row])
    return row[undecided], query[undecided]


def _draws(seed: int, table: pa.Table, row: Integers, query: Integers) -> UInt64:
    return draws(seed, query.astype(np.uint64), id_words(table["pair_id"])[row])


def _counts(table: pa.Table) -> tuple[Integers, Integers]:
    """The queries that occur, ascending, and the number of pairs of each."""
    flat = pc.list_flatten(table["query_ids"])
    size = 1 + pc.max(flat).as_py() if len(flat) else 0
    num_pairs = np.zeros(size, np.int64)
    step = 16 * CHUNK_PAIRS  # bincount converts each id to 8 bytes
    for start in range(0, len(flat), step):
        num_pairs += np.bincount(flat.slice(start, step).to_numpy(), minlength=size)
    queries = np.flatnonzero(num_pairs)
    return queries, num_pairs[queries]


def _limits_of(max_pairs: MaxPairs, queries: Integers) -> npt.NDArray[np.int64]:
    """The limit k of each query."""
    return np.full(len(queries), max_pairs) if isinstance(max_pairs, int) else max_pairs[queries]


def _scaled(share: npt.NDArray[np.float64]) -> UInt64:
    """The upper limit of the lowest `share` of all possible draws."""
    return np.where(share >= 1.0, ALL, np.minimum(share * 2.0**64, 2.0**64 - 2048).astype(np.uint64))


def _bottom(queries: Integers, num_pairs: Integers, query: Integers, draw: UInt64, max_pairs: MaxPairs) -> pa.Table:
    """SKETCHES of the ascending `queries`, from (query, draw) in any order."""
    order = _ascending(query, draw)
    query, draw = query[order], draw[order]
    first = np.searchsorted(query, queries)
    occurrences = np.diff(first, append=len(query))
    k = _limits_of(max_pairs, queries)
    within = np.arange(len(query)) - np.repeat(first, occurrences)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(occurrences, k))])
    lowest = draw[within < np.repeat(k, occurrences)]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(lowest, pa.uint64()))
    return pa.table([pa.array(queries, pa.int32()), pa.array(num_pairs, pa.int64()), lists], schema=SKETCHES)


def _ascending(query: Integers, draw: UInt64) -> Integers:
    """The sort order by query, then draw.

    The query and the leading bits of the draw are sorted as one 64-bit key, four times as fast as two sorts. Rows with
    equal keys are sorted again.
    """
    bits = np.uint64(max(1, int(query.max(initial=0)).bit_length()))
    key = (query.astype(np.uint64) << (np.uint64(64) - bits)) | (draw >> bits)
    order = np.argsort(key)
    key = key[order]
    same = key[1:] == key[:-1]  # the draws may still differ in their last bits
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    order[tied] = order[tied][np.lexsort((draw[order[tied]], query[order[tied]]))]
    return order
