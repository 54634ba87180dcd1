"""No reader of any version shows pairs that are taken down, and their bytes can be deleted."""

import hashlib
import threading

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import parquet, storage
from pipeline.data.snapshots import snapshot as snapshots
from pipeline.data.snapshots import takedown, tombstones
from pipeline.data.snapshots.commit import ConflictError, commit
from pipeline.data.snapshots.snapshot import Snapshot, versions
from pipeline.data.snapshots.takedown import compact, take_down
from pipeline.data.snapshots.tombstones import Kind
from tests.pipeline.data.datasets import add_shard, counts, make, pair_id, readable, sha256, stored


def test_readers_of_every_version_skip_pairs_that_are_taken_down(anywhere: str) -> None:
    make(anywhere, range(10), range(10, 16))
    make(anywhere, range(5, 25))
    requested: dict[Kind, list[str]] = {
        "pair_id": [pair_id(7)],
        "url": ["http://a.example/12.jpg"],
        "sha256": [sha256(2), sha256(99)],
    }
    done = take_down(anywhere, requested, "requested for")
    assert done.num_pairs == 3
    assert done.not_found == (sha256(99),)
    first, second = Snapshot.open(anywhere, "v00000001"), Snapshot.open(anywhere)
    assert readable(first) == [n for n in range(16) if n not in {2, 7, 12}]
    assert readable(second) == [n for n in range(5, 25) if n not in {7, 12}]
    assert [shard.taken_down for shard in first.shards] == [((0, 2), (1, 3)), ((0, 2),)]
    assert [list(shard.remaining_rows(0)) for shard in first.shards] == [[0, 1, 3], [0, 1, 3]]
    assert (first.num_rows, first.num_taken_down) == (13, 3)
    assert first.metadata["num_pairs"] == 16, "a record never changes"
    assert first.verify() == second.verify() == []


@pytest.mark.parametrize(
    "spelling",
    [
        "https://a.example/12.jpg",
        "HTTP://A.example:80/x/../12.jpg#top",
        "http://a.example./%31%32.jpg?utm_source=x",
        "http:\\\\a.example\\12.jpg",
    ],
)
def test_a_url_is_taken_down_in_every_spelling(dataset: str, spelling: str) -> None:
    make(dataset, range(10, 14))
    done = take_down(dataset, {"url": [spelling, "http://a.example/12.jpg", "http://a.example/120.jpg", "no url"]}, "")
    assert (done.num_pairs, done.not_found) == (1, ("http://a.example/120.jpg", "no url"))
    assert readable(make(dataset, range(12, 16))) == [13, 14, 15], "in later versions, too"


def test_remaining_rows_of_a_row_group() -> None:
    taken_down = ((0, 2), (1, 0), (1, 3))
    remaining = [tombstones.remaining_rows(4, group, taken_down).tolist() for group in range(3)]
    assert remaining == [[0, 1, 3], [1, 2], [0, 1, 2, 3]]


def test_the_same_request_again_changes_nothing(dataset: str) -> None:
    make(dataset, range(4))
    for _ in range(2):
        take_down(dataset, {"pair_id": [pair_id(1), pair_id(77)]}, "")
        assert len(tombstones.files(dataset)) == 1
    take_down(dataset, {"pair_id": [pair_id(2)]}, "")
    assert [name.rsplit("/", 1)[1][:10] for name in tombstones.files(dataset)] == ["t00000001-", "t00000002-"]


def test_a_later_commit_of_the_same_names_is_taken_down_again(dataset: str) -> None:
    make(dataset, range(4))
    take_down(dataset, {"pair_id": [pair_id(1)], "url": ["http://a.example/6.jpg"], "sha256": [sha256(8)]}, "")
    made = make(dataset, range(3, 10), range(2))
    assert readable(made) == [3, 4, 5, 7, 9, 0]
    assert readable(Snapshot.open(dataset)) == readable(made)


def test_a_concurrent_take_down_and_commit_see_each_other(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both write before they read. Here the tombstone is put after the commit reads tombstones, before its record."""
    make(dataset, range(4))
    written = add_shard(dataset, range(1, 6))
    put = storage.put_if_absent

    def interrupted(uri: str, data: bytes) -> bool:
        if uri.endswith("v00000002.json"):
            monkeypatch.undo()
            assert take_down(dataset, {"pair_id": [pair_id(1), pair_id(5)]}, "").not_found == (pair_id(5),)
        return put(uri, data)

    monkeypatch.setattr(storage, "put_if_absent", interrupted)
    assert readable(commit(dataset, [written], counts([]), {})) == [2, 3, 4]
    assert readable(Snapshot.open(dataset)) == [2, 3, 4]


def test_a_commit_during_a_take_down_is_searched_too(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(dataset, range(4))
    put = tombstones.put

    def interrupted(uri: str, table: pa.Table) -> None:
        monkeypatch.undo()
        make(dataset, range(1, 6))
        put(uri, table)

    monkeypatch.setattr(tombstones, "put", interrupted)
    done = take_down(dataset, {"pair_id": [pair_id(1), pair_id(5)]}, "")
    assert (done.num_pairs, done.not_found) == (2, ())
    assert readable(Snapshot.open(dataset)) == [2, 3, 4]


def test_many_concurrent_take_downs_all_apply(dataset: str) -> None:
    make(dataset, range(12))
    threads = [
        threading.Thread(target=take_down, args=(dataset, {"pair_id": [pair_id(number)]}, "")) for number in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert readable(Snapshot.open(dataset)) == list(range(6, 12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a letter", "did not write this tombstone"),
        (parquet.encode(pa.table({"a": [1]})), "column 'kind' is missing"),
        (
            parquet.encode(tombstones.TOMBSTONES.empty_table().set_column(6, "row", pa.array([], pa.string()))),
            "'row' has",
        ),
    ],
)
def test_a_tombstone_of_another_program_is_named(dataset: str, content: bytes, message: str) -> None:
    make(dataset, [1])
    file = storage.join(dataset, "tombstones", f"t00000001-{hashlib.sha256(content).hexdigest()}.parquet")
    storage.write_bytes(file, content)
    with pytest.raises(ValueError, match=rf"{file}: .*{message}"):
        Snapshot.open(dataset)


def test_a_damaged_tombstone_stops_every_reader(dataset: str) -> None:
    make(dataset, range(4))
    take_down(dataset, {"pair_id": [pair_id(1)]}, "")
    (name,) = tombstones.files(dataset)
    data = storage.read_bytes(name)
    storage.write_bytes(name, data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(ValueError, match=f"{name}: this tombstone is damaged"):
        Snapshot.open(dataset)


def test_a_compacted_version_does_not_contain_the_bytes(anywhere: str) -> None:
    before = make(anywhere, range(10), range(10, 16), [20, 21], metadata={"run": "abc", "configuration": {"seed": 1}})
    take_down(anywhere, {"pair_id": [pair_id(number) for number in (1, 4, 5, 6, 7, 20, 21)]}, "requested for")
    after = compact(anywhere)
    remaining = [n for n in range(16) if n not in {1, 4, 5, 6, 7}]
    assert readable(after) == stored(after) == remaining
    assert [shard.row_groups for shard in after.shards] == [(3, 2), (4, 2)]
    assert after.shards[1] == before.shards[1], "a shard without such pairs is reused"
    assert after.verify() == []
    assert (after.name, after.metadata["parent"], after.num_taken_down) == ("v00000002", "v00000001", 0)
    assert after.metadata["configuration"] == {"seed": 1}
    assert after.metadata["compacted"] == {"from": "v00000001", "num_pairs": 7}
    assert after.query_counts().sort_by("query_id") == counts(remaining)
    assert readable(Snapshot.open(anywhere, "v00000001")) == remaining
    assert compact(anywhere) == after, "nothing to compact"
    assert after.shards[0].path.endswith(
        f"{hashlib.sha256(storage.read_bytes(after.shards[0].path)).hexdigest()}.parquet"
    )


def test_a_compaction_restarts_after_a_concurrent_commit(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(dataset, range(4))
    take_down(dataset, {"pair_id": [pair_id(1)]}, "")
    reported: list[int] = []

    def progress(count: int) -> None:
        reported.append(count)
        if len(reported) == 1:
            make(dataset, range(6), range(8, 12))

    assert stored(compact(dataset, progress)) == [0, 2, 3, 4, 5, 8, 9, 10, 11]
    assert versions(dataset) == ["v00000001", "v00000002", "v00000003"]
    assert Snapshot.open(dataset).metadata["compacted"]["from"] == "v00000002"

    take_down(dataset, {"pair_id": [pair_id(8)]}, "")
    monkeypatch.setattr(takedown, "commit", _conflicting)
    with pytest.raises(ConflictError, match="10 versions were committed during the compaction"):
        compact(dataset)


def _conflicting(*_: object, **__: object) -> Snapshot:
    raise ConflictError("another was first")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.sets(st.integers(0, 30)), st.data())
def test_any_rows_of_any_groups(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], hidden: set[int], data: st.DataObject
) -> None:
    """The result equals that of the same operations on lists."""
    uri = str(tmp_path_factory.mktemp("set"))
    total = sum(sizes)
    numbers = iter(range(total))
    shards = [[next(numbers) for _ in range(size)] for size in sizes]
    make(uri, *(shard for shard in shards if shard))
    named: Kind = data.draw(st.sampled_from(["pair_id", "url"]))
    values = [pair_id(n) if named == "pair_id" else f"http://a.example/{n}.jpg" for n in sorted(hidden)]
    done = take_down(uri, {named: values}, "")
    expected = [n for n in range(total) if n not in hidden]
    assert readable(Snapshot.open(uri)) == expected
    assert done.num_pairs == total - len(expected)
    assert len(done.not_found) == len(hidden) - done.num_pairs
    assert stored(compact(uri)) == expected
    assert snapshots.Snapshot.open(uri).verify() == []
