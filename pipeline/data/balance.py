"""Balancing: at most so many pairs a query (paper section 2.2), exact, order-free and mergeable.

Every query draws among its pairs by draw(seed, query, pair), a stable 64-bit hash, and a pair stays when any of its
queries draws it. Mode `paper`: a query draws its `max_pairs_per_query` lowest draws, found with bottom-k sketches
(Cohen and Kaplan 2007), which merge in any order. Mode `metaclip` (Xu et al. 2024): a query draws a pair
with probability min(1, t/c), c being its pairs. Both end as a threshold per query, so applying them is one function.

Cost: a sketch holds min(c, k) draws of 8 bytes a query and part; merging is by query, in buckets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import paper
from pipeline.hashing import UInt64, draws, words_of_ids
from pipeline.schemas import SKETCHES, THRESHOLDS, Reason

Integers = npt.NDArray[np.integer[Any]]
ALL = np.uint64(2**64 - 1)
_EMPTY = pa.table({name: pa.array([], SKETCHES.field(name).type) for name in SKETCHES.names}, SKETCHES)


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How many pairs a query may have."""

    mode: Literal["paper", "metaclip"] = "paper"
    max_pairs_per_query: int = paper.MAX_PAIRS_PER_QUERY.value
    """The k of mode paper, the t of mode metaclip."""
    early_margin: float = 3.0
    """Before fetching, this many times as many pairs are kept, for those the web has lost and for duplicates."""
    seed: int = 0

    @property
    def max_pairs_before_fetch(self) -> int:
        """Pairs a query may have before fetching."""
        return int(np.ceil(self.max_pairs_per_query * self.early_margin))


def sketch(table: pa.Table, max_pairs: int, seed: int) -> pa.Table:
    """The bottom-k sketch of a table's pairs.

    Args:
        table: columns pair_id and query_ids.
        max_pairs: k.
        seed: of the draws.

    Returns:
        SKETCHES, one row per query that occurs, ascending by query.
    """
    row, query = _incidences(table)
    draw = draws(seed, query.astype(np.uint64), words_of_ids(table["pair_id"].to_pylist())[row])
    order = np.lexsort((draw, query))
    queries, num_pairs = np.unique(query, return_counts=True)
    return _bottom(queries, num_pairs, query[order], draw[order], max_pairs)


def merge(sketches: Iterable[pa.Table], max_pairs: int) -> pa.Table:
    """One sketch of the union of the sketched pairs; associative and commutative.

    Args:
        sketches: SKETCHES of disjoint sets of pairs, each with the same k and seed.
        max_pairs: k.
    """
    table = pa.concat_tables([_EMPTY, *sketches]).combine_chunks()
    lengths = pc.list_value_length(table["draws"]).to_numpy()
    query = np.repeat(table["query_id"].to_numpy(), lengths)
    draw = pc.list_flatten(table["draws"]).to_numpy()
    order = np.lexsort((draw, query))
    queries, where = np.unique(table["query_id"].to_numpy(), return_inverse=True)
    num_pairs = np.zeros(len(queries), np.int64)
    np.add.at(num_pairs, where, table["num_pairs"].to_numpy())
    return _bottom(queries, num_pairs, query[order], draw[order], max_pairs)


def thresholds(merged: pa.Table, max_pairs: int, mode: Literal["paper", "metaclip"]) -> pa.Table:
    """The threshold of each query: THRESHOLDS from the SKETCHES of all pairs."""
    counts = merged["num_pairs"].to_numpy()
    if mode == "metaclip":
        share = np.minimum(1.0, max_pairs / np.maximum(counts, 1))
        limit = np.where(share >= 1.0, ALL, np.minimum(share * 2.0**64, 2.0**64 - 2048).astype(np.uint64))
    else:
        lengths = pc.list_value_length(merged["draws"]).to_numpy()
        flat = pc.list_flatten(merged["draws"]).to_numpy()
        last = np.zeros(len(counts), np.uint64)  # stays so where no draw was asked for
        last[lengths > 0] = flat[np.cumsum(lengths)[lengths > 0] - 1]
        limit = np.where(counts > max_pairs, last, ALL)
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
        is_out = table["reason"].is_valid().to_numpy()
        row, query = _incidences(table)
        row, query = row[~is_out[row]], query[~is_out[row]]
        draw = draws(self._seed, query.astype(np.uint64), words_of_ids(table["pair_id"].to_pylist())[row])
        drawn = np.zeros(table.num_rows, bool)
        drawn[row[draw <= self._limit[query]]] = True
        reasons = table["reason"].to_numpy(zero_copy_only=False)
        out = np.where(drawn | is_out, reasons, Reason.BALANCED_OUT.value)
        return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(out, pa.string()))


def _incidences(table: pa.Table) -> tuple[Integers, Integers]:
    """Row number and query id of each (pair, query), in the table's order."""
    lists = table["query_ids"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(table.num_rows), lengths), pc.list_flatten(lists).to_numpy(zero_copy_only=False)


def _bottom(queries: Integers, num_pairs: Integers, query: Integers, draw: UInt64, max_pairs: int) -> pa.Table:
    """SKETCHES of ascending `queries` from (query, draw) in ascending order."""
    first = np.searchsorted(query, queries)
    occurrences = np.searchsorted(query, queries, side="right") - first
    within = np.arange(len(query)) - np.repeat(first, occurrences)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(occurrences, max_pairs))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(draw[within < max_pairs], pa.uint64()))
    return pa.table([pa.array(queries, pa.int32()), pa.array(num_pairs, pa.int64()), lists], schema=SKETCHES)
