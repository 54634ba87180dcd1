"""Estimate from an earlier crawl how many pairs of each query to fetch.

The early balance keeps more pairs than the final one needs, because some URLs are dead, forbidden or not images. How
many depends on the query: stock photographs and encyclopaedias last, shops and auctions do not. So a crawl writes
SURVIVAL, and the next crawl keeps  max_pairs * duplicate_margin / rate  pairs of a query. `rate` is the share of the
query's tried URLs that were kept, shrunk towards the overall share if few were tried (the posterior mean under a beta
prior that weighs as much as PRIOR_PAIRS pairs). The margin only decides what is fetched; the final balance stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.balance.balancing import BalanceConfig
from pipeline.reasons import Reason
from pipeline.schemas import OUTCOMES, SURVIVAL

PRIOR_PAIRS = 100
"""A rate measured on this many pairs has a standard error of at most 0.05 and weighs as much as the overall rate."""


def count_outcomes(table: pa.Table) -> pa.Table:
    """Count how many pairs of each query were tried and kept; pairs dropped by the early balance were not tried.

    Args:
        table: columns query_ids and reason of FETCHED, dropped rows included.

    Returns:
        OUTCOMES.
    """
    tried = pc.fill_null(pc.not_equal(table["reason"], Reason.BALANCED_OUT.value), True)
    table = table.filter(tried)
    lengths = pc.fill_null(pc.list_value_length(table["query_ids"]), 0).to_numpy()
    kept = np.repeat(table["reason"].is_null().to_numpy(), lengths)
    query = pc.list_flatten(table["query_ids"])
    return sum_outcomes(pa.table([query, np.ones(len(kept), np.int64), kept.astype(np.int64)], schema=OUTCOMES))


def sum_outcomes(table: pa.Table) -> pa.Table:
    """Sum OUTCOMES of disjoint sets of pairs: one row per query, ascending."""
    sums = table.group_by("query_id").aggregate([("tried", "sum"), ("kept", "sum")])
    return sums.rename_columns(OUTCOMES.names).cast(OUTCOMES).sort_by("query_id")


def survival(table: pa.Table, texts: Sequence[str]) -> pa.Table:
    """SURVIVAL, which names queries by their texts, from OUTCOMES, which names them by their ids.

    Args:
        table: OUTCOMES.
        texts: texts of the queries, by id.
    """
    names = pa.array(texts, pa.string()).take(table["query_id"].combine_chunks())
    return pa.table([names, table["tried"], table["kept"]], schema=SURVIVAL)


def early_limits(texts: Sequence[str], table: pa.Table, config: BalanceConfig) -> npt.NDArray[np.int64]:
    """The maximum number of pairs of each query before fetching.

    Args:
        texts: texts of the queries, by id; a query that the earlier crawl did not have gets the overall rate.
        table: SURVIVAL of the earlier crawl.
        config: margins and the final limit.

    Returns:
        int64 by query id: at least max_pairs_per_query, at most max_early_margin times that.

    Raises:
        ValueError: the earlier crawl tried no URL.
    """
    all_tried, all_kept = (pc.sum(table[name]).as_py() or 0 for name in ("tried", "kept"))
    if all_tried == 0:
        raise ValueError("survival: the earlier crawl tried no URL, so it measured no rate; remove this option")
    row = pc.index_in(pa.array(texts, pa.string()), value_set=table["text"].combine_chunks())
    tried, kept = (pc.fill_null(table[name].take(row), 0).to_numpy() for name in ("tried", "kept"))
    rate = (kept + PRIOR_PAIRS * (all_kept / all_tried)) / (tried + PRIOR_PAIRS)
    with np.errstate(divide="ignore"):  # the rate is 0 if nothing survived
        margin = np.minimum(config.duplicate_margin / rate, config.max_early_margin)
    limits: npt.NDArray[np.int64] = np.ceil(config.max_pairs_per_query * margin).astype(np.int64)
    return limits
