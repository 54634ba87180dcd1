from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.diff import NUM_EXAMPLES, diff, num_shards_to_read
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.data.snapshots.takedown import compact, take_down
from tests.pipeline.data.datasets import add_shard, counts, make, pair_id


@settings(max_examples=12, deadline=None)
@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.integers(1, 5), st.integers(1, 5))
def test_the_numbers_equal_those_of_sets(
    tmp_path_factory: pytest.TempPathFactory, old: set[int], new: set[int], old_size: int, new_size: int
) -> None:
    uri = str(tmp_path_factory.mktemp("set"))
    made = []
    for numbers, size in ((old, old_size), (new, new_size)):
        ordered = sorted(numbers)
        make(uri)  # an empty version in between, so that equal contents become two versions
        made.append(make(uri, *(ordered[start : start + size] for start in range(0, len(ordered), size))))
    found = diff(made[0], made[1])
    assert (found.num_added, found.num_removed, found.num_changed) == (len(new - old), len(old - new), 0)
    for name, numbers in (("added", new - old), ("removed", old - new)):
        assert set(found.examples[name]) <= {pair_id(number) for number in numbers}
        assert len(set(found.examples[name])) == min(NUM_EXAMPLES, len(numbers))


def test_shards_in_both_are_not_read(dataset: str) -> None:
    old, new = make(dataset, range(4), [8]), make(dataset, range(4), [9])
    Path(old.shards[0].path).unlink()
    reported: list[int] = []
    found = diff(old, new, reported.append)
    assert (found.num_shards_old, found.num_shards_new, found.num_shards_shared) == (2, 2, 1)
    assert (found.num_added, found.num_removed) == (1, 1)
    assert sum(reported) == num_shards_to_read(old, new) == 2


def test_a_pair_with_another_picture_is_changed(dataset: str) -> None:
    old = make(dataset, range(6))
    shards = [add_shard(dataset, range(2)), add_shard(dataset, range(2, 4), "another"), add_shard(dataset, [4, 5])]
    found = diff(old, commit(dataset, shards, counts([]), {}))
    assert (found.num_added, found.num_removed, found.num_changed) == (0, 0, 2)
    assert set(found.examples["changed"]) == {pair_id(2), pair_id(3)}


def test_removed_pairs_are_counted_by_the_reason_of_their_take_down(dataset: str) -> None:
    make(dataset, range(9))
    take_down(dataset, {"pair_id": [pair_id(1), pair_id(2)]}, "asked for")
    take_down(dataset, {"pair_id": [pair_id(3)]}, "court")
    compact(dataset)
    made = make(dataset, [0, *range(5, 12)])
    found = diff(Snapshot.open(dataset, "v00000001"), made)
    assert (found.num_added, found.num_removed) == (3, 4)
    assert found.removed_by_reason == {"asked for": 2, "court": 1}


def test_a_damaged_shard_is_named(dataset: str) -> None:
    old, new = make(dataset, [1]), make(dataset, [2])
    Path(new.shards[0].path).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=f"{new.shards[0].path}: this shard is damaged"):
        diff(old, new)
