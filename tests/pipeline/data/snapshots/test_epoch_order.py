from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.data.snapshots.epoch_order import Order, ShardInfo

shards = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5)


def infos_of(shards: list[list[int]]) -> list[ShardInfo]:
    return [ShardInfo(str(index), tuple(rows)) for index, rows in enumerate(shards)]


def rows_of(order: Order, epoch: int) -> list[int]:
    return [int(row) for window in range(order.num_windows) for row in order.rows(epoch, window)]


@settings(deadline=None)
@given(shards, st.integers(1, 6), st.integers(0, 3), st.data())
def test_an_epoch_has_every_row_once_except_rows_taken_down(
    shards: list[list[int]], window: int, seed: int, data: st.DataObject
) -> None:
    infos = infos_of(shards)
    locations = [(s, g, r) for s, info in enumerate(infos) for g, n in enumerate(info.row_groups) for r in range(n)]
    hidden = data.draw(st.sets(st.integers(0, len(locations) - 1)))
    remaining = [
        ShardInfo(
            info.path, info.row_groups, tuple(locations[n][1:] for n in sorted(hidden) if locations[n][0] == index)
        )
        for index, info in enumerate(infos)
    ]
    order, whole = Order(remaining, window=window, seed=seed), Order(infos, window=window, seed=seed)
    assert order.num_rows == len(locations) - len(hidden)
    for epoch in range(2):
        rows = rows_of(order, epoch)
        assert sorted(rows) == sorted(set(range(len(locations))) - hidden)
        assert rows == [row for row in rows_of(whole, epoch) if row not in hidden], "other rows keep their order"
        for position, row in enumerate(rows):
            found = order.window_at(epoch, position)
            assert order.rows(epoch, found)[position - order.start(epoch, found)] == row


@settings(deadline=None)
@given(shards, st.data())
def test_rows_are_found_by_their_numbers(shards: list[list[int]], data: st.DataObject) -> None:
    order = Order(infos_of(shards), window=2, seed=0)
    numbers = np.array(data.draw(st.lists(st.integers(0, order.num_rows - 1), unique=True)), np.int64)
    starts = {}
    for shard, sizes in enumerate(shards):
        for group, size in enumerate(sizes):
            starts[shard, group] = sum(map(sum, shards[:shard])) + sum(sizes[:group])
            assert size > 0
    found = order.locate(numbers)
    for rows in found:
        assert (starts[rows.shard, rows.row_group] + rows.rows).tolist() == rows.numbers.tolist()
        assert (rows.rows < shards[rows.shard][rows.row_group]).all()
        assert rows.numbers.tolist() == [n for n in numbers.tolist() if n in set(rows.numbers.tolist())]
    assert sorted(n for rows in found for n in rows.numbers.tolist()) == sorted(numbers.tolist())


@pytest.mark.parametrize("by", ["seed", "epoch"])
def test_a_window_that_covers_everything_is_a_full_shuffle(by: str) -> None:
    """All 24 orders of four rows are equally frequent, regardless of row groups, but not with a smaller window."""
    infos, num_draws = infos_of([[1, 2], [1]]), 720

    def p_value(window: int) -> float:
        whole = Order(infos, window=window, seed=0)
        orders = Counter(
            tuple(rows_of(Order(infos, window=window, seed=draw), 0) if by == "seed" else rows_of(whole, draw))
            for draw in range(num_draws)
        )
        counts = np.array([orders[each] for each in permutations(range(4))])
        return float(chisquare(counts).pvalue)

    assert p_value(3) > 0.01
    assert p_value(2) < 1e-6
