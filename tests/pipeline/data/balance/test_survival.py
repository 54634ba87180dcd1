import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.balance.balancing import BalanceConfig
from pipeline.data.balance.survival import PRIOR_PAIRS, count_outcomes, early_limits, sum_outcomes, survival
from pipeline.reasons import Reason
from pipeline.schemas import OUTCOMES, SURVIVAL
from tests.pipeline.data.rows import fetched

REASONS = (None, Reason.NOT_FOUND, Reason.TIMEOUT, Reason.CORRUPT_IMAGE, Reason.BALANCED_OUT)
Row = tuple[list[int] | None, Reason | None]

rows_of_a_crawl = st.lists(
    st.tuples(st.none() | st.lists(st.integers(0, 4), unique=True, max_size=3), st.sampled_from(REASONS)), max_size=30
)


def table_of(rows: list[Row]) -> pa.Table:
    query_ids = pa.array([queries for queries, _ in rows], pa.list_(pa.int32()))
    return fetched(query_ids=query_ids, reason=[reason for _, reason in rows])


@settings(max_examples=100, deadline=None)
@given(rows_of_a_crawl, st.integers(0, 30))
def test_outcomes_count_tried_and_kept_pairs(rows: list[Row], cut: int) -> None:
    tried = Counter(q for queries, reason in rows for q in queries or () if reason != Reason.BALANCED_OUT)
    kept = Counter(q for queries, reason in rows for q in queries or () if reason is None)
    expected = [{"query_id": q, "tried": tried[q], "kept": kept[q]} for q in sorted(tried)]
    found = count_outcomes(table_of(rows))
    assert found.schema == OUTCOMES
    assert found.to_pylist() == expected
    parts = [count_outcomes(table_of(part)) for part in (rows[:cut], rows[cut:])]
    random.Random(cut).shuffle(parts)
    assert sum_outcomes(pa.concat_tables(parts)) == found


def test_survival_names_queries_by_text() -> None:
    table = survival(pa.table([[0, 2], [10, 4], [7, 0]], schema=OUTCOMES), ["dog", "cat", "owl"])
    assert table.schema == SURVIVAL
    assert table.to_pylist() == [{"text": "dog", "tried": 10, "kept": 7}, {"text": "owl", "tried": 4, "kept": 0}]


def survived(**counts: tuple[int, int]) -> pa.Table:
    tried, kept = zip(*counts.values(), strict=True)
    return pa.table([list(counts), tried, kept], schema=SURVIVAL)


def test_a_query_gets_the_margin_it_needs() -> None:
    config = BalanceConfig(max_pairs_per_query=1_000, duplicate_margin=1.0, max_early_margin=10.0)
    earlier = survived(lasts=(1_000_000, 900_000), fades=(1_000_000, 300_000), gone=(1_000_000, 0), rare=(2, 0))
    lasts, fades, gone, rare, unknown = early_limits(
        ["lasts", "fades", "gone", "rare", "new"], earlier, config
    ).tolist()
    overall = 1_200_000 / 3_000_002
    assert lasts == np.ceil(1_000 / ((900_000 + PRIOR_PAIRS * overall) / (1_000_000 + PRIOR_PAIRS)))
    assert 1_111 <= lasts <= 1_112
    assert 3_332 <= fades <= 3_334
    assert gone == 10_000  # the margin is capped if nothing survives
    assert unknown == np.ceil(1_000 / overall)
    assert unknown < rare < 1.03 * unknown  # two tries are weak evidence


def test_the_duplicate_margin_applies_if_every_image_survives() -> None:
    config = BalanceConfig(max_pairs_per_query=100, duplicate_margin=1.5)
    assert early_limits(["a"], survived(a=(10**9, 10**9)), config).tolist() == [150]


def test_query_ids_may_differ_between_crawls() -> None:
    earlier = survived(a=(10**6, 10**5), b=(10**6, 10**6))
    config = BalanceConfig(max_pairs_per_query=100)
    assert (
        early_limits(["b", "a"], earlier, config).tolist() == early_limits(["a", "b"], earlier, config).tolist()[::-1]
    )


def test_a_crawl_that_tried_nothing_raises_and_one_that_kept_nothing_is_capped() -> None:
    with pytest.raises(ValueError, match=r"survival: the earlier crawl tried no URL"):
        early_limits(["a"], SURVIVAL.empty_table(), BalanceConfig())
    limits = early_limits(["a", "b"], survived(a=(50, 0)), BalanceConfig(max_pairs_per_query=10, max_early_margin=4.0))
    assert limits.tolist() == [40, 40]
