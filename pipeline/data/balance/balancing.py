"""Balancing: at most so many pairs a query (paper section 2.2), exact, order-free and mergeable.

Every query draws among its pairs by draw(seed, query, pair), a stable 64-bit hash, and a pair stays when any of its
queries draws it. Mode `paper`: a query draws its `max_pairs_per_query` lowest draws, found with bottom-k sketches
(Cohen and Kaplan 2007), which merge in any order. Mode `metaclip` (Xu et al. 2024): a query draws a pair
with probability min(1, t/c), c being its pairs. Both end as a threshold per query, so applying them is one function.

A sketch may be cut short where the counts c of all pairs are known. A query with c <= k needs no draw at all: its
threshold is "everything". Of the others, the k-th lowest of c uniform draws is below  m/c * 2^64  for
m = k + s + sqrt(s^2 + 2ks)  but with probability e^-s (Chernoff's bound on the lower tail of a binomial of mean m), so
draws above that `bound` are left out. s = 40: one run of 500,000 queries in 4e11 finds a query short of draws, and
`thresholds` stops there, because a result that is not exact is none.

Why that is worth a pass of its own, at 1.6 billion pairs with 3.5 matches each, k = 20,000, in 64 parts (paper.md:
16,000 queries reach k and have 94% of the 5.6 billion incidences):
    sketches alone        a part has 25 M pairs, too few for its own queries to reach k often, so nearly all draws are
                          written: 5.6e9 x 8 B = 45 GB, sorted, and read again; 0.7 GB in each of 64 buckets to merge
    counts, then sketches counts: 64 parts x 500,000 queries x 12 B = 0.4 GB; draws: 16,000 queries x m = 21,306 x 8 B
                          = 2.7 GB, 43 MB a bucket; only these 0.34e9 draws are sorted, 6% of all
The counts cost one more look at the column of query ids, and they are all that mode `metaclip` needs.

Memory: the working set of a chunk of pairs, the draws a part or bucket keeps, and 16 bytes a query.
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
from pipeline.hashing import UInt64, draws, words_of_ids
from pipeline.reasons import Reason
from pipeline.schemas import SKETCHES, THRESHOLDS

Integers = npt.NDArray[np.integer[Any]]
MaxPairs = int | npt.NDArray[np.int64]
"""k: one for all queries, or an array by query id."""
ALL = np.uint64(2**64 - 1)
CHUNK_PAIRS = 2**16
"""Pairs that are worked on at once: few enough for the processor's cache."""
BOUND_EXPONENT = 40.0
"""The s of the module's text: a bound is too low with probability e^-s."""
_EMPTY = SKETCHES.empty_table()


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How many pairs a query may have."""

    mode: Literal["paper", "metaclip"] = "paper"
    max_pairs_per_query: int = paper.MAX_PAIRS_PER_QUERY.value
    """The k of mode paper, the t of mode metaclip."""
    early_margin: float = 3.0
    """Before fetching, this many times as many pairs are kept, for those the web has lost and for duplicates."""
    duplicate_margin: float = 1.5
    """Where an earlier crawl tells how many addresses of a query give an image, this many times as many images are
    aimed at, for duplicates, which are found later: a third of a web crawl is a cautious guess."""
    max_early_margin: float = 10.0
    """No query keeps more than this many times as many pairs before fetching, however few of its images survive."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.duplicate_margin <= self.max_early_margin:
            raise ValueError(
                f"balance.duplicate_margin = {self.duplicate_margin}: must be from 1 to balance.max_early_margin = "
                f"{self.max_early_margin}"
            )

    @property
    def max_pairs_before_fetch(self) -> int:
        """Pairs a query may have before fetching."""
        return int(np.ceil(self.max_pairs_per_query * self.early_margin))


def count(table: pa.Table) -> pa.Table:
    """The number of pairs of each query: SKETCHES without draws, ascending by query.

    Args:
        table: column query_ids.
    """
    queries, num_pairs = _counts(table)
    return _bottom(queries, num_pairs, _NO_QUERIES, _NO_DRAWS, 0)


def bounds(counts: pa.Table, max_pairs: MaxPairs) -> UInt64:
    """For each query id a draw that its threshold in mode `paper` does not exceed, 0 where it needs no draws.

    Args:
        counts: SKETCHES (with draws or without) of all pairs.
        max_pairs: k.
    """
    queries, num_pairs = counts["query_id"].to_numpy(), counts["num_pairs"].to_numpy()
    k = _of(max_pairs, queries).astype(np.float64)
    enough = k + BOUND_EXPONENT + np.sqrt(BOUND_EXPONENT**2 + 2 * k * BOUND_EXPONENT)
    bound = np.zeros(int(queries.max(initial=-1)) + 1, np.uint64)
    bound[queries] = np.where((num_pairs > k) & (k > 0), _scaled(enough / np.maximum(num_pairs, 1)), np.uint64(0))
    return bound


def sketch(table: pa.Table, max_pairs: MaxPairs, seed: int, bound: UInt64 | None = None) -> pa.Table:
    """The bottom-k sketch of a table's pairs.

    Args:
        table: columns pair_id (unique) and query_ids.
        max_pairs: k.
        seed: of the draws.
        bound: by query id, from `bounds` over all pairs: higher draws are left out. Without it the sketch is whole,
            and stays mergeable with pairs that nobody has counted yet.

    Returns:
        SKETCHES, one row per query that occurs, ascending by query.
    """
    found = [(_NO_QUERIES, _NO_DRAWS)]
    for chunk in _chunks(table):
        row, query = _incidences(chunk)
        if bound is not None:
            needed = np.flatnonzero(bound[query])
            row, query = row[needed], query[needed]
        draw = _draws(seed, chunk, row, query)
        if bound is not None:
            low = np.flatnonzero(draw <= bound[query])
            query, draw = query[low], draw[low]
        found.append((query, draw))
    query, draw = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return _bottom(*_counts(table), query, draw, max_pairs)


def merge(sketches: Iterable[pa.Table], max_pairs: MaxPairs) -> pa.Table:
    """One sketch of the union of the sketched pairs; associative and commutative.

    Args:
        sketches: SKETCHES of disjoint sets of pairs, each with the same k, seed and bounds.
        max_pairs: k.
    """
    table = pa.concat_tables([_EMPTY, *sketches]).combine_chunks()
    lengths = pc.list_value_length(table["draws"]).to_numpy()
    queries, where = np.unique(table["query_id"].to_numpy(), return_inverse=True)
    num_pairs = np.zeros(len(queries), np.int64)
    np.add.at(num_pairs, where, table["num_pairs"].to_numpy())
    query = np.repeat(table["query_id"].to_numpy(), lengths)
    return _bottom(queries, num_pairs, query, pc.list_flatten(table["draws"]).to_numpy(), max_pairs)


def thresholds(merged: pa.Table, max_pairs: MaxPairs, mode: Literal["paper", "metaclip"]) -> pa.Table:
    """The threshold of each query: THRESHOLDS from the SKETCHES of all pairs; mode metaclip needs counts only."""
    num_pairs = merged["num_pairs"].to_numpy()
    k = _of(max_pairs, merged["query_id"].to_numpy())
    if mode == "metaclip":
        limit = _scaled(k / np.maximum(num_pairs, 1))
    else:
        lengths = pc.list_value_length(merged["draws"]).to_numpy()
        over = num_pairs > k
        assert (lengths[over] >= k[over]).all(), "a query is short of draws: its bound was too low (module's text)"
        has_last = over & (k > 0)
        limit = np.where(over, np.uint64(0), ALL)  # stays so where no draw was asked for
        first = np.cumsum(lengths) - lengths
        limit[has_last] = pc.list_flatten(merged["draws"]).to_numpy()[(first + k - 1)[has_last]]
    return pa.table([merged["query_id"], merged["num_pairs"], pa.array(limit, pa.uint64())], schema=THRESHOLDS)


class Selection:
    """Keeps the pairs that some query draws. Holds 8 bytes a query."""

    def __init__(self, limits: pa.Table, seed: int) -> None:
        query = limits["query_id"].to_numpy()
        self._limit: UInt64 = np.zeros(int(query.max(initial=-1)) + 1, np.uint64)
        self._limit[query] = limits["threshold"].to_numpy()
        self._seed = seed

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with a reason for each pair that no query draws; pairs that are out already stay as they are.

        Args:
            table: columns pair_id, query_ids and reason; every query of a pair that is in must have been sketched.
        """
        stays = pa.chunked_array([self._stays(chunk) for chunk in _chunks(table)], pa.bool_())
        reason = pc.if_else(stays, table["reason"], pa.scalar(Reason.BALANCED_OUT.value, pa.string()))
        return table.set_column(table.schema.get_field_index("reason"), "reason", reason)

    def _stays(self, chunk: pa.Table) -> pa.Array:
        """Whether a query draws the pair, or it is out already; draws are made only where they decide."""
        stays = chunk["reason"].is_valid().to_numpy()
        row, query = _undecided(stays, *_incidences(chunk))
        stays[row[self._limit[query] == ALL]] = True
        row, query = _undecided(stays, row, query)
        stays[row[_draws(self._seed, chunk, row, query) <= self._limit[query]]] = True
        return pa.array(stays)


_NO_QUERIES: Integers = np.zeros(0, np.int32)
_NO_DRAWS: UInt64 = np.zeros(0, np.uint64)


def _chunks(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(start, CHUNK_PAIRS) for start in range(0, table.num_rows, CHUNK_PAIRS))


def _incidences(table: pa.Table) -> tuple[Integers, Integers]:
    """Row number and query id of each (pair, query), in the table's order."""
    lists = table["query_ids"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(table.num_rows), lengths), pc.list_flatten(lists).to_numpy(zero_copy_only=False)


def _undecided(stays: npt.NDArray[np.bool_], row: Integers, query: Integers) -> tuple[Integers, Integers]:
    open_ = np.flatnonzero(~stays[row])
    return row[open_], query[open_]


def _draws(seed: int, table: pa.Table, row: Integers, query: Integers) -> UInt64:
    return draws(seed, query.astype(np.uint64), words_of_ids(table["pair_id"])[row])


def _counts(table: pa.Table) -> tuple[Integers, Integers]:
    """The queries that occur, ascending, and the pairs of each."""
    flat = pc.list_flatten(table["query_ids"])
    size = 1 + pc.max(flat).as_py() if len(flat) else 0
    num_pairs = np.zeros(size, np.int64)
    step = 16 * CHUNK_PAIRS  # bincount makes 8 bytes of each id
    for start in range(0, len(flat), step):
        num_pairs += np.bincount(flat.slice(start, step).to_numpy(), minlength=size)
    queries = np.flatnonzero(num_pairs)
    return queries, num_pairs[queries]


def _of(max_pairs: MaxPairs, queries: Integers) -> npt.NDArray[np.int64]:
    """k of each of these queries."""
    return np.full(len(queries), max_pairs) if isinstance(max_pairs, int) else max_pairs[queries]


def _scaled(share: npt.NDArray[np.float64]) -> UInt64:
    """A share of all draws as the draw up to which it reaches."""
    return np.where(share >= 1.0, ALL, np.minimum(share * 2.0**64, 2.0**64 - 2048).astype(np.uint64))


def _bottom(queries: Integers, num_pairs: Integers, query: Integers, draw: UInt64, max_pairs: MaxPairs) -> pa.Table:
    """SKETCHES of ascending `queries` from (query, draw) in any order."""
    order = _ascending(query, draw)
    query, draw = query[order], draw[order]
    first = np.searchsorted(query, queries)
    occurrences = np.diff(first, append=len(query))
    k = _of(max_pairs, queries)
    within = np.arange(len(query)) - np.repeat(first, occurrences)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(occurrences, k))])
    lowest = draw[within < np.repeat(k, occurrences)]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(lowest, pa.uint64()))
    return pa.table([pa.array(queries, pa.int32()), pa.array(num_pairs, pa.int64()), lists], schema=SKETCHES)


def _ascending(query: Integers, draw: UInt64) -> Integers:
    """The order by query, then draw: by both in one 64-bit key, four times as fast as two sorts, then among ties."""
    bits = np.uint64(max(1, int(query.max(initial=0)).bit_length()))
    key = (query.astype(np.uint64) << (np.uint64(64) - bits)) | (draw >> bits)
    order = np.argsort(key)
    key = key[order]
    same = key[1:] == key[:-1]  # what the key leaves of the draws is the same, their last bits need not be
    tied = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False))
    order[tied] = order[tied][np.lexsort((draw[order[tied]], query[order[tied]]))]
    return order
