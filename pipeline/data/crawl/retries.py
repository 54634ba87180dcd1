"""Select the rows of a crawl for a later attempt, and merge the results into the crawl."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reasons import PERMANENT, POLICY, TRANSIENT, Reason
from pipeline.schemas import ANSWERS, CANDIDATES, FETCHED, conform

Retry = Literal["transient", "permanent", "policy", "moved"]
"""The rows to retry: those with a reason of this class, or those that have moved to another domain."""


def reasons_to_retry(retry: Retry) -> frozenset[Reason]:
    """The reasons of the rows to retry."""
    return {
        "transient": TRANSIENT,
        "policy": POLICY,
        "permanent": PERMANENT,
        "moved": frozenset({Reason.MOVED}),
    }[retry]


def due(table: pa.Table, retry: Retry) -> pa.Table:
    """Select the rows of FETCHED to retry, as CANDIDATES with the column `redirect_url`."""
    reasons = pa.array(sorted(reason.value for reason in reasons_to_retry(retry)))
    table = table.filter(pc.is_in(table["reason"], reasons))
    redirects = table["redirect_url"]
    columns = {name: table[name] for name in CANDIDATES.names if name in table.column_names and name != "reason"}
    candidates = conform(pa.table(columns), CANDIDATES)
    return candidates.append_column("redirect_url", redirects)


def as_answers(table: pa.Table, *, may_move: bool) -> pa.Table:
    """Convert FETCHED to ANSWERS.

    Args:
        table: FETCHED.
        may_move: whether rows that have moved may be requested at their new URL in another attempt. Otherwise their
            reason becomes TOO_MANY_REDIRECTS.
    """
    return (table if may_move else _end_moves(table)).rename_columns(ANSWERS.names)


def _end_moves(table: pa.Table) -> pa.Table:
    moved = pc.fill_null(pc.equal(table["reason"], Reason.MOVED.value), False)
    reason = Reason.TOO_MANY_REDIRECTS.value
    for name, value in (("reason", reason), ("error_message", reason), ("redirect_url", None)):
        column = table.schema.get_field_index(name)
        table = table.set_column(column, name, pc.if_else(moved, pa.scalar(value, pa.string()), table[name]))
    return table


def merge(before: pa.Table, answers: pa.Table | None) -> pa.Table:
    """Replace each row of FETCHED that was attempted again by its new result; the order is unchanged.

    Args:
        before: FETCHED, including rows with a reason.
        answers: ANSWERS for some of these rows.
    """
    if answers is None:
        return before
    answer_rows = pc.index_in(before["pair_id"], value_set=answers["pair_id"].combine_chunks()).fill_null(-1).to_numpy()
    both = pa.concat_tables([before, answers.rename_columns(FETCHED.names)])
    return both.take(np.where(answer_rows < 0, np.arange(before.num_rows), before.num_rows + answer_rows))
