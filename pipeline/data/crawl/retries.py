"""Later attempts: which rows of a crawl are worth one, and how their answers become part of it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reasons import PERMANENT, POLICY, TRANSIENT, Reason
from pipeline.schemas import ANSWERS, CANDIDATES, FETCHED, conform

Retry = Literal["transient", "permanent", "policy", "moved"]
"""Which rows: those with reasons of a class, or those that have moved to another domain."""


def reasons_of(retry: Retry) -> frozenset[Reason]:
    """The reasons of rows that are asked for again."""
    return {
        "transient": TRANSIENT,
        "policy": POLICY,
        "permanent": PERMANENT,
        "moved": frozenset({Reason.MOVED}),
    }[retry]


def due(table: pa.Table, retry: Retry) -> pa.Table:
    """CANDIDATES and `redirect_url` of the rows of FETCHED that another attempt is due to."""
    wanted = pa.array(sorted(reason.value for reason in reasons_of(retry)))
    table = table.filter(pc.is_in(table["reason"], wanted))
    redirects = table["redirect_url"]
    columns = {name: table[name] for name in CANDIDATES.names if name in table.column_names and name != "reason"}
    candidates = conform(pa.table(columns), CANDIDATES)
    return candidates.append_column("redirect_url", redirects)


def as_answers(table: pa.Table, *, may_move: bool) -> pa.Table:
    """ANSWERS of FETCHED.

    Args:
        may_move: whether a row may be asked for elsewhere once more. Otherwise one that has moved again has been
            redirected too often.
    """
    return (table if may_move else _end_moves(table)).rename_columns(ANSWERS.names)


def _end_moves(table: pa.Table) -> pa.Table:
    moved = pc.fill_null(pc.equal(table["reason"], Reason.MOVED.value), False)
    reason = Reason.TOO_MANY_REDIRECTS.value
    for name, value in (("reason", reason), ("error_message", reason), ("redirect_url", None)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pc.if_else(moved, pa.scalar(value, pa.string()), table[name]))
    return table


def merge(before: pa.Table, answers: pa.Table | None) -> pa.Table:
    """FETCHED in which each row that was attempted again is what became of it then; the order stays.

    Args:
        before: FETCHED, rows that are out among them.
        answers: ANSWERS of some of its rows.
    """
    if answers is None:
        return before
    place = pc.index_in(before["pair_id"], value_set=answers["pair_id"].combine_chunks()).fill_null(-1).to_numpy()
    both = pa.concat_tables([before, answers.rename_columns(FETCHED.names)])
    return both.take(np.where(place < 0, np.arange(before.num_rows), before.num_rows + place))
