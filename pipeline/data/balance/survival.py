"""What an earlier crawl tells the next one: how many of a query's addresses still give an image.

The early balance keeps more pairs than the final one needs, because some addresses are dead, forbidden or no picture.
How many depends on the query: stock photographs and encyclopaedias last, shops and auctions do not. So a crawl leaves
SURVIVAL behind, and the next keeps  max_pairs * duplicate_margin / rate  pairs of a query, `rate` being the query's
share of tried addresses that were kept, drawn to the overall share where few were tried (the posterior mean under a
beta prior that weighs PRIOR_PAIRS pairs). The margin decides what is fetched; the final balance stays exact.
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
"""A rate measured on that many pairs has a standard error of 0.05 at most, and then weighs as much as the overall."""


def outcomes(table: pa.Table) -> pa.Table:
    """OUTCOMES of rows of FETCHED, those that are out among them; what the early balance left out was not tried.

    Args:
        table: columns query_ids and reason.
    """
    tried = pc.fill_null(pc.not_equal(table["reason"], Reason.BALANCED_OUT.value), True)
    table = table.filter(tried)
    lengths = pc.fill_null(pc.list_value_length(table["query_ids"]), 0).to_numpy()
    kept = np.repeat(table["reason"].is_null().to_numpy(), lengths)
    query = pc.list_flatten(table["query_ids"])
    return add(pa.table([query, np.ones(len(kept), np.int64), kept.astype(np.int64)], schema=OUTCOMES))


def add(table: pa.Table) -> pa.Table:
    """One row a query, ascending, from OUTCOMES of disjoint sets of pairs."""
    sums = table.group_by("query_id").aggregate([("tried", "sum"), ("kept", "sum")])
    return sums.rename_columns(OUTCOMES.names).cast(OUTCOMES).sort_by("query_id")


def survival(table: pa.Table, texts: Sequence[str]) -> pa.Table:
    """SURVIVAL of OUTCOMES.

    Args:
        table: OUTCOMES.
        texts: of the queries, by id.
    """
    names = pa.array(texts, pa.string()).take(table["query_id"].combine_chunks())
    return pa.table([names, table["tried"], table["kept"]], schema=SURVIVAL)


def early_limits(texts: Sequence[str], table: pa.Table, config: BalanceConfig) -> npt.NDArray[np.int64]:
    """How many pairs each query may have before fetching.

    Args:
        texts: of the queries, by id; one that the earlier crawl did not have gets the overall rate.
        table: SURVIVAL of the earlier crawl.
        config: margins and the final limit.

    Returns:
        int64 by query id: at least max_pairs_per_query, at most max_early_margin times that.

    Raises:
        ValueError: the earlier crawl tried nothing.
    """
    all_tried, all_kept = (pc.sum(table[name]).as_py() or 0 for name in ("tried", "kept"))
    if all_tried == 0:
        raise ValueError("survival: the earlier crawl tried no address, so there is no rate to go by; leave it out")
    row = pc.index_in(pa.array(texts, pa.string()), value_set=table["text"].combine_chunks())
    tried, kept = (pc.fill_null(table[name].take(row), 0).to_numpy() for name in ("tried", "kept"))
    rate = (kept + PRIOR_PAIRS * (all_kept / all_tried)) / (tried + PRIOR_PAIRS)
    with np.errstate(divide="ignore"):  # nothing survived at all
        margin = np.minimum(config.duplicate_margin / rate, config.max_early_margin)
    limits: npt.NDArray[np.int64] = np.ceil(config.max_pairs_per_query * margin).astype(np.int64)
    return limits
