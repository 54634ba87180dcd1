import random
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import paper
from pipeline.data.balance import ALL, BalanceConfig, Selection, merge, sketch, thresholds
from pipeline.hashing import draws, words_of_ids
from pipeline.schemas import SKETCHES, THRESHOLDS, Reason
from tests.pipeline.data.rows import candidates, ids

Corpus = dict[str, list[int]]
"""Queries of each pair."""

corpora = st.lists(st.lists(st.integers(0, 6), unique=True, max_size=4).map(sorted), max_size=40).map(
    lambda lists: dict(zip(ids(len(lists)), lists, strict=True))
)


def table_of(corpus: Corpus) -> pa.Table:
    return candidates(pair_id=list(corpus), query_ids=pa.array(list(corpus.values()), pa.list_(pa.int32())))


def draw(seed: int, query: int, pair_id: str) -> int:
    return int(draws(seed, np.array([query], np.uint64), words_of_ids([pair_id]))[0])


def pairs_of(corpus: Corpus) -> dict[int, list[str]]:
    queries = sorted({query for queries in corpus.values() for query in queries})
    return {query: [pair for pair in corpus if query in corpus[pair]] for query in queries}


def lowest(corpus: Corpus, k: int, seed: int) -> set[str]:
    """Mode paper as its definition says: for each query, the k pairs of lowest draw."""
    chosen = [sorted(pairs, key=lambda p: draw(seed, q, p))[:k] for q, pairs in pairs_of(corpus).items()]
    return {pair for pairs in chosen for pair in pairs}


def by_chance(corpus: Corpus, t: int, seed: int) -> set[str]:
    """Mode metaclip as its definition says: a query of c pairs draws each with probability min(1, t / c)."""
    return {
        pair
        for query, pairs in pairs_of(corpus).items()
        for pair in pairs
        if Fraction(draw(seed, query, pair), 2**64) < min(Fraction(1), Fraction(t, len(pairs)))
    }


def in_parts(corpus: Corpus, order: random.Random) -> list[Corpus]:
    """The pairs in any order and cut anywhere, empty parts among them."""
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


@settings(max_examples=150, deadline=None)
@given(corpora, st.integers(0, 5), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_paper_is_exact_however_the_pairs_are_partitioned(
    corpus: Corpus, k: int, seed: int, order: random.Random
) -> None:
    parts = in_parts(corpus, order)
    sketches = [sketch(table_of(part), k, seed) for part in parts]
    order.shuffle(sketches)
    middle = order.randint(0, len(sketches))
    merged = merge([merge(sketches[:middle], k), merge(sketches[middle:], k)], k)  # any tree gives the same
    assert merged == merge(sketches, k) == sketch(table_of(corpus), k, seed)
    limits = thresholds(merged, k, "paper")
    assert dict(zip(limits["query_id"].to_pylist(), limits["num_pairs"].to_pylist(), strict=True)) == {
        query: len(pairs) for query, pairs in pairs_of(corpus).items()
    }
    assert kept(parts, limits, seed) == lowest(corpus, k, seed)


@settings(max_examples=100, deadline=None)
@given(corpora, st.integers(1, 5), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_metaclip_is_its_formula(corpus: Corpus, t: int, seed: int, order: random.Random) -> None:
    parts = in_parts(corpus, order)
    limits = thresholds(merge([sketch(table_of(part), t, seed) for part in parts], t), t, "metaclip")
    assert kept(parts, limits, seed) == by_chance(corpus, t, seed)


def test_a_sketch_holds_the_lowest_draws_ascending() -> None:
    corpus = {pair: [3] if i % 2 else [3, 9] for i, pair in enumerate(ids(50))}
    table = sketch(table_of(corpus), 4, 1)
    assert table.schema == SKETCHES
    assert table.to_pydict() == {
        "query_id": [3, 9],
        "num_pairs": [50, 25],
        "draws": [sorted(draw(1, q, p) for p in pairs)[:4] for q, pairs in pairs_of(corpus).items()],
    }


def test_thresholds_let_small_queries_keep_everything() -> None:
    corpus = {pair: [0] for pair in ids(10)} | {pair: [1] for pair in ids(11, "more")}
    limits = thresholds(sketch(table_of(corpus), 10, 0), 10, "paper")
    assert limits.schema == THRESHOLDS
    low, high = limits["threshold"].to_pylist()
    assert low == ALL > high
    shares = thresholds(sketch(table_of(corpus), 10, 0), 10, "metaclip")["threshold"].to_pylist()
    assert shares[0] == ALL
    assert abs(shares[1] / 2**64 - 10 / 11) < 1e-12


def test_metaclip_keeps_about_t_pairs_of_a_query() -> None:
    corpus = {pair: [5] for pair in ids(20_000)}
    limits = thresholds(sketch(table_of(corpus), 2_000, 0), 2_000, "metaclip")
    assert abs(len(kept([corpus], limits, 0)) - 2_000) < 5 * (2_000 * 0.9) ** 0.5


def test_a_margin_only_adds_pairs() -> None:
    """The early balance must keep whatever the final one would, had the web lost nothing."""
    corpus = {pair: [i % 3, 3 + i % 5] for i, pair in enumerate(ids(300))}
    few, many = (kept([corpus], thresholds(sketch(table_of(corpus), k, 0), k, "paper"), 0) for k in (10, 30))
    assert few < many


def test_the_seed_decides() -> None:
    corpus = {pair: [0] for pair in ids(100)}
    found = [
        frozenset(kept([corpus], thresholds(sketch(table_of(corpus), 20, seed), 20, "paper"), seed))
        for seed in (0, 1, -1)
    ]
    assert len(set(found)) == 3
    assert {len(pairs) for pairs in found} == {20}


def test_pairs_that_are_out_stay_out_and_need_no_sketch() -> None:
    """A duplicate may be the only pair of a query, which then no pair that is left has."""
    table = candidates(
        query_ids=pa.array([[0], [99], None, [0]], pa.list_(pa.int32())),
        reason=[None, Reason.DUPLICATE_SHA256, Reason.NO_IMAGE, Reason.NOT_FOUND],
    )
    limits = pa.table([[0], [1], [int(ALL)]], schema=THRESHOLDS)
    done = Selection(limits, 0)(table)
    assert done == table
    nothing = Selection(THRESHOLDS.empty_table(), 0)(table.slice(1, 2))
    assert nothing["reason"].to_pylist() == [Reason.DUPLICATE_SHA256, Reason.NO_IMAGE]


def test_no_pairs_at_all() -> None:
    empty = sketch(table_of({}), 5, 0)
    assert merge([], 5) == empty == SKETCHES.empty_table()
    assert thresholds(empty, 5, "paper").num_rows == thresholds(empty, 5, "metaclip").num_rows == 0


@pytest.mark.parametrize(("margin", "before"), [(1.0, 7), (3.0, 21), (1.5, 11)])
def test_pairs_before_the_fetch(margin: float, before: int) -> None:
    assert BalanceConfig(max_pairs_per_query=7, early_margin=margin).max_pairs_before_fetch == before
    assert BalanceConfig().max_pairs_per_query == paper.MAX_PAIRS_PER_QUERY.value
