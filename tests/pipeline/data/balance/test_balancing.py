import random
from fractions import Fraction
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import paper
from pipeline.data.balance import balancing
from pipeline.data.balance.balancing import (
    ALL,
    BalanceConfig,
    MaxPairs,
    Selection,
    bounds,
    count,
    merge,
    sketch,
    thresholds,
)
from pipeline.hashing import draws, id_words
from pipeline.reasons import Reason
from pipeline.schemas import SKETCHES, THRESHOLDS
from tests.pipeline.data.rows import candidates, ids

Corpus = dict[str, list[int]]
"""Queries of each pair."""

corpora = st.lists(st.lists(st.integers(0, 6), unique=True, max_size=4).map(sorted), max_size=40).map(
    lambda lists: dict(zip(ids(len(lists)), lists, strict=True))
)


def table_of(corpus: Corpus) -> pa.Table:
    return candidates(pair_id=list(corpus), query_ids=pa.array(list(corpus.values()), pa.list_(pa.int32())))


def draw(seed: int, query: int, pair_id: str) -> int:
    return int(draws(seed, np.array([query], np.uint64), id_words([pair_id]))[0])


def pairs_of(corpus: Corpus) -> dict[int, list[str]]:
    queries = sorted({query for queries in corpus.values() for query in queries})
    return {query: [pair for pair in corpus if query in corpus[pair]] for query in queries}


def of(k: MaxPairs, query: int) -> int:
    return k if isinstance(k, int) else int(k[query])


def lowest_of(corpus: Corpus, k: MaxPairs, seed: int) -> dict[int, list[str]]:
    """Mode paper by its definition: for each query, the k pairs of the lowest draws."""
    return {q: sorted(pairs, key=lambda p: draw(seed, q, p))[: of(k, q)] for q, pairs in pairs_of(corpus).items()}


def lowest(corpus: Corpus, k: MaxPairs, seed: int) -> set[str]:
    return {pair for pairs in lowest_of(corpus, k, seed).values() for pair in pairs}


def by_chance(corpus: Corpus, t: int, seed: int) -> set[str]:
    """Mode metaclip by its definition: a query of c pairs selects each with probability min(1, t / c)."""
    return {
        pair
        for query, pairs in pairs_of(corpus).items()
        for pair in pairs
        if Fraction(draw(seed, query, pair), 2**64) < min(Fraction(1), Fraction(t, len(pairs)))
    }


def in_parts(corpus: Corpus, order: random.Random) -> list[Corpus]:
    """The pairs in random order, cut into parts at random; parts may be empty."""
    pairs = list(corpus)
    order.shuffle(pairs)
    cuts = sorted(order.randint(0, len(pairs)) for _ in range(order.randint(0, 4)))
    bounds = zip([0, *cuts], [*cuts, len(pairs)], strict=True)
    return [{pair: corpus[pair] for pair in pairs[start:end]} for start, end in bounds]


def kept(parts: list[Corpus], limits: pa.Table, seed: int) -> set[str]:
    selection = Selection(limits, seed)
    done = [selection(table_of(part)) for part in parts]
    assert all(set(part["reason"].to_pylist()) <= {None, Reason.BALANCED_OUT} for part in done)
    rows = pa.concat_tables(done).to_pylist()
    return {row["pair_id"] for row in rows if row["reason"] is None}


limits_of_queries = st.integers(0, 5) | st.lists(st.integers(0, 6), min_size=7, max_size=7).map(np.array)
"""One k for all queries, or one k per query."""


def in_any_tree(sketches: list[pa.Table], k: MaxPairs, order: random.Random) -> pa.Table:
    """All sketches merged, in random order and grouping."""
    while len(sketches) > 1:
        order.shuffle(sketches)
        taken = order.randint(2, len(sketches))
        sketches = [merge(sketches[:taken], k), *sketches[taken:]]
    return merge(sketches, k)


@settings(max_examples=150, deadline=None)
@given(corpora, limits_of_queries, st.integers(0, 2**32), st.integers(1, 9), st.randoms(use_true_random=False))
def test_mode_paper_is_exact_for_any_partition_of_the_pairs(
    corpus: Corpus, k: MaxPairs, seed: int, chunk: int, order: random.Random
) -> None:
    with patch.object(balancing, "CHUNK_PAIRS", chunk):
        parts = in_parts(corpus, order)
        merged = in_any_tree([sketch(table_of(part), k, seed) for part in parts], k, order)
        assert merged == sketch(table_of(corpus), k, seed)
        limits = thresholds(merged, k, "paper")
        assert dict(zip(limits["query_id"].to_pylist(), limits["num_pairs"].to_pylist(), strict=True)) == {
            query: len(pairs) for query, pairs in pairs_of(corpus).items()
        }
        assert kept(parts, limits, seed) == lowest(corpus, k, seed)


@settings(max_examples=100, deadline=None)
@given(corpora, limits_of_queries, st.randoms(use_true_random=False))
def test_sketches_of_new_crawls_merge_with_stored_sketches(corpus: Corpus, k: MaxPairs, order: random.Random) -> None:
    """One stored sketch; later parts are merged into it in several rounds."""
    before = merge([], k)
    for part in in_parts(corpus, order):
        new = [sketch(table_of(piece), k, 0) for piece in in_parts(part, order)]
        before = in_any_tree([before, *new], k, order)
    assert before == sketch(table_of(corpus), k, 0)


@settings(max_examples=100, deadline=None)
@given(corpora, limits_of_queries, st.randoms(use_true_random=False))
def test_bounds_from_counts_do_not_change_the_thresholds(corpus: Corpus, k: MaxPairs, order: random.Random) -> None:
    parts = in_parts(corpus, order)
    counts = in_any_tree([count(table_of(part)) for part in parts], 0, order)
    assert counts == merge([sketch(table_of(part), k, 0) for part in parts], 0)
    bound = bounds(counts, k)
    bounded = in_any_tree([sketch(table_of(part), k, 0, bound) for part in parts], k, order)
    whole = sketch(table_of(corpus), k, 0)
    assert thresholds(bounded, k, "paper") == thresholds(whole, k, "paper")
    assert thresholds(counts, k, "metaclip") == thresholds(whole, k, "metaclip")


@pytest.mark.parametrize("seed", range(5))
def test_bounded_sketches_are_small_and_give_the_exact_result(seed: int) -> None:
    corpus = {pair: [0, 1, 2] if i < 30 else [0, 1] if i % 2 else [0] for i, pair in enumerate(ids(6_000))}
    k = np.array([100, 10, 40])
    bound = bounds(count(table_of(corpus)), k)
    assert bound[2] == 0  # query 2 is below its limit and needs no draws
    assert abs(bound[0] / 2**64 - (140 + (40**2 + 2 * 100 * 40) ** 0.5) / 6_000) < 1e-12
    parts = [sketch(table_of(part), k, seed, bound) for part in in_parts(corpus, random.Random(seed))]
    num_draws = sum(len(draws) for part in parts for draws in part["draws"].to_pylist())
    assert 110 <= num_draws < 450 < sum(map(len, corpus.values())) / 20
    limits = thresholds(merge(parts, k), k, "paper")
    assert limits == thresholds(sketch(table_of(corpus), k, seed), k, "paper")
    assert kept([corpus], limits, seed) == lowest(corpus, k, seed)


def test_a_bound_that_is_too_low_raises() -> None:
    corpus = {pair: [0] for pair in ids(2_000)}
    bound = bounds(count(table_of(corpus)), 50) // np.uint64(10)
    with pytest.raises(AssertionError, match="short of draws"):
        thresholds(sketch(table_of(corpus), 50, 0, bound), 50, "paper")


@settings(max_examples=60, deadline=None)
@given(corpora, limits_of_queries, st.integers(0, 2**32))
def test_no_query_selects_more_than_its_limit(corpus: Corpus, k: MaxPairs, seed: int) -> None:
    limits = thresholds(sketch(table_of(corpus), k, seed), k, "paper").to_pylist()
    pairs = pairs_of(corpus)
    for row in limits:
        drawn = [pair for pair in pairs[row["query_id"]] if draw(seed, row["query_id"], pair) <= row["threshold"]]
        assert len(drawn) == min(of(k, row["query_id"]), row["num_pairs"])


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=30), st.integers(1, 8))
def test_draws_that_differ_only_in_their_last_bits_are_sorted(rows: list[tuple[int, int]], k: int) -> None:
    sketches = [pa.table([[query], [1], [[2**40 + last]]], schema=SKETCHES) for query, last in rows]
    merged = merge(sketches, k).to_pylist()
    for row in merged:
        assert row["draws"] == sorted(2**40 + last for query, last in rows if query == row["query_id"])[:k]
    assert [row["query_id"] for row in merged] == sorted({query for query, _ in rows})


@settings(max_examples=100, deadline=None)
@given(corpora, st.integers(1, 5), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_mode_metaclip_follows_its_formula(corpus: Corpus, t: int, seed: int, order: random.Random) -> None:
    parts = in_parts(corpus, order)
    limits = thresholds(merge([sketch(table_of(part), t, seed) for part in parts], t), t, "metaclip")
    assert kept(parts, limits, seed) == by_chance(corpus, t, seed)


def test_a_sketch_has_the_lowest_draws_in_ascending_order() -> None:
    corpus = {pair: [3] if i % 2 else [3, 9] for i, pair in enumerate(ids(50))}
    table = sketch(table_of(corpus), 4, 1)
    assert table.schema == SKETCHES
    assert table.to_pydict() == {
        "query_id": [3, 9],
        "num_pairs": [50, 25],
        "draws": [sorted(draw(1, q, p) for p in pairs)[:4] for q, pairs in pairs_of(corpus).items()],
    }


def test_queries_below_the_limit_keep_all_pairs() -> None:
    corpus = {pair: [0] for pair in ids(10)} | {pair: [1] for pair in ids(11, "more")}
    limits = thresholds(sketch(table_of(corpus), 10, 0), 10, "paper")
    assert limits.schema == THRESHOLDS
    low, high = limits["threshold"].to_pylist()
    assert low == ALL > high
    shares = thresholds(sketch(table_of(corpus), 10, 0), 10, "metaclip")["threshold"].to_pylist()
    assert shares[0] == ALL
    assert abs(shares[1] / 2**64 - 10 / 11) < 1e-12


def test_mode_metaclip_keeps_about_t_pairs_of_a_query() -> None:
    corpus = {pair: [5] for pair in ids(20_000)}
    limits = thresholds(sketch(table_of(corpus), 2_000, 0), 2_000, "metaclip")
    assert abs(len(kept([corpus], limits, 0)) - 2_000) < 5 * (2_000 * 0.9) ** 0.5


def test_a_larger_limit_only_adds_pairs() -> None:
    """The early balance must keep every pair that the final balance would keep if no image were lost."""
    corpus = {pair: [i % 3, 3 + i % 5] for i, pair in enumerate(ids(300))}
    few, many = (kept([corpus], thresholds(sketch(table_of(corpus), k, 0), k, "paper"), 0) for k in (10, 30))
    assert few < many


def test_the_selection_depends_on_the_seed() -> None:
    corpus = {pair: [0] for pair in ids(100)}
    found = [
        frozenset(kept([corpus], thresholds(sketch(table_of(corpus), 20, seed), 20, "paper"), seed))
        for seed in (0, 1, -1)
    ]
    assert len(set(found)) == 3
    assert {len(pairs) for pairs in found} == {20}


def test_dropped_pairs_keep_their_reason_and_need_no_threshold() -> None:
    """If the only pair of a query is a duplicate, no remaining pair has the query, so it has no threshold."""
    table = candidates(
        query_ids=pa.array([[0], [99], None, [0]], pa.list_(pa.int32())),
        reason=[None, Reason.DUPLICATE_SHA256, Reason.NO_IMAGE, Reason.NOT_FOUND],
    )
    limits = pa.table([[0], [1], [int(ALL)]], schema=THRESHOLDS)
    done = Selection(limits, 0)(table)
    assert done == table
    nothing = Selection(THRESHOLDS.empty_table(), 0)(table.slice(1, 2))
    assert nothing["reason"].to_pylist() == [Reason.DUPLICATE_SHA256, Reason.NO_IMAGE]


def test_tables_without_pairs_have_empty_sketches() -> None:
    empty = sketch(table_of({}), 5, 0)
    assert merge([], 5) == empty == SKETCHES.empty_table()
    assert thresholds(empty, 5, "paper").num_rows == thresholds(empty, 5, "metaclip").num_rows == 0


@pytest.mark.parametrize(("duplicate_margin", "max_early_margin"), [(0.5, 10.0), (3.0, 2.0)])
def test_invalid_margins_raise(duplicate_margin: float, max_early_margin: float) -> None:
    with pytest.raises(ValueError, match=r"balance\.duplicate_margin"):
        BalanceConfig(duplicate_margin=duplicate_margin, max_early_margin=max_early_margin)


@pytest.mark.parametrize(("margin", "before"), [(1.0, 7), (3.0, 21), (1.5, 11)])
def test_the_limit_before_fetching_includes_the_early_margin(margin: float, before: int) -> None:
    assert BalanceConfig(max_pairs_per_query=7, early_margin=margin).max_pairs_before_fetch == before
    assert BalanceConfig().max_pairs_per_query == paper.MAX_PAIRS_PER_QUERY.value
