import json
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.snapshots.shard import ShardConfig, arrange, num_shards, positions, shard_of, statistics
from pipeline.schemas import FETCHED, PAIRS, PAIRS_VERSION
from tests.pipeline.data.rows import fetched, ids


def table_of(count: int) -> pa.Table:
    table = fetched(
        pair_id=ids(count),
        url=[f"http://a.example/{i}.jpg" for i in range(count)],
        jpg=[b"%d" % i for i in range(count)],
        query_ids=pa.array([[i, i + 1] for i in range(count)], pa.list_(pa.int32())),
        width=list(range(count)),
    )
    return table.append_column("phash", pa.array(range(count), pa.uint64()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(1, 7), st.integers(-5, 5), st.randoms(use_true_random=False))
def test_the_shuffle_depends_only_on_the_pairs(count: int, shards: int, seed: int, order: random.Random) -> None:
    table = table_of(count)
    rows = order.sample(range(count), count)
    shuffled = table.take(pa.array(rows, pa.int64()))
    made = []
    for given_rows in (table, shuffled):
        assigned = shard_of(given_rows, shards, seed)
        made.append([arrange(given_rows.filter(pa.array(assigned == shard)), seed) for shard in range(shards)])
    assert made[0] == made[1]
    whole = pa.concat_tables(made[0])
    assert whole.schema == PAIRS
    assert sorted(whole["pair_id"].to_pylist()) == sorted(table["pair_id"].to_pylist())
    assert whole == arrange(table, seed), "concatenated shards have the global order, for any number of shards"
    assert (np.diff(positions(whole["pair_id"].to_pylist(), seed).astype(object)) >= 0).all()


def test_arranging_does_not_change_rows() -> None:
    table = table_of(20)
    named = table.rename_columns(["image" if name == "jpg" else name for name in table.column_names])
    rows = {row["pair_id"]: row for row in named.select(PAIRS.names).to_pylist()}
    assert {row["pair_id"]: row for row in arrange(table, 3).to_pylist()} == rows


def test_seeds_give_different_orders_and_shards_of_similar_size() -> None:
    pair_ids = ids(2_000)
    orders = {tuple(np.argsort(positions(pair_ids, seed))) for seed in range(5)}
    assert len(orders) == 5
    counts = np.bincount(shard_of(table_of(2_000), 8, 0), minlength=8)
    assert abs(counts - 250).max() < 5 * 250**0.5


@pytest.mark.parametrize(("total", "shards"), [(0, 1), (1, 1), (100, 1), (101, 2), (1000, 10)])
def test_the_number_of_shards_follows_the_bytes(total: int, shards: int) -> None:
    assert num_shards(total, ShardConfig(target_bytes=100)) == shards


@pytest.mark.parametrize("option", ["target_bytes", "row_group_size", "row_group_bytes"])
def test_sizes_of_zero_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=rf"shard\.{option} = 0: must be positive"):
        ShardConfig(**{option: 0})


def test_a_shard_has_its_schema_version_and_statistics_as_metadata() -> None:
    table = table_of(3).set_column(
        FETCHED.get_field_index("language"), "language", pa.array(["en", None, "en"], pa.string())
    )
    table = table.set_column(FETCHED.get_field_index("caption"), "caption", pa.array(["a", "ab", "abc☆"]))
    metadata = arrange(table, 0).schema.metadata
    assert int(metadata[b"schema_version"]) == PAIRS_VERSION
    assert json.loads(metadata[b"statistics"]) == {
        "num_pairs": 3,
        "image_bytes": 3,
        "mean_caption_characters": 2.333,
        "mean_width": 1.0,
        "mean_height": 0.0,
        "languages": {"en": 2},
    }
    assert statistics(PAIRS.empty_table())["mean_width"] == 0.0
    assert arrange(arrange(table, 0), 0) == arrange(table, 0), "imported pairs already have the columns of PAIRS"
