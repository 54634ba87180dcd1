import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster import storage
from pipeline.data.snapshots import reading
from pipeline.data.snapshots.epoch_order import Order, ShardInfo
from pipeline.data.snapshots.reading import ShardReader, Shards, pairs
from tests.pipeline.data.shards import opened, pairs_of, write_shards
from tests.s3_faults import Fault, FaultyS3

NUM_ROWS = 70
TABLE = pairs_of(NUM_ROWS)
Pairs = list[tuple[bytes, str]]


@pytest.fixture(scope="module")
def infos(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardInfo, ...]:
    """Three shards with row groups of (10, 10, 5), (10, 10, 3) and (10, 10, 2) rows."""
    return write_shards(tmp_path_factory.mktemp("shards"), [TABLE.slice(0, 25), TABLE.slice(25, 23), TABLE.slice(48)])


def read(infos: Sequence[ShardInfo], *, window: int = 3, epoch: int = 0, **options: int) -> Pairs:
    return list(pairs(opened(infos), Order(infos, window=window, seed=0), epoch, **options))


def row(number: int) -> tuple[bytes, str]:
    return TABLE["image"][number].as_py(), TABLE["caption"][number].as_py()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10), st.integers(0, 2), st.integers(1, 4), st.integers(0, NUM_ROWS))
def test_readers_together_read_the_rest_of_an_epoch_once(
    infos: tuple[ShardInfo, ...], window: int, epoch: int, num_readers: int, start: int
) -> None:
    order = Order(infos, window=window, seed=0)
    expected = [row(int(n)) for w in range(order.num_windows) for n in order.rows(epoch, w)]
    whole = read(infos, window=window, epoch=epoch)
    assert whole == expected
    assert sorted(whole) == [row(n) for n in range(NUM_ROWS)]
    assert read(infos, window=window, epoch=epoch, start=start) == expected[start:]
    shared = [
        read(infos, window=window, epoch=epoch, start=start, reader=reader, num_readers=num_readers)
        for reader in range(num_readers)
    ]
    assert sorted(pair for part in shared for pair in part) == sorted(expected[start:])


def test_pairs_taken_down_are_not_read(infos: tuple[ShardInfo, ...]) -> None:
    taken_down = (infos[0], replace(infos[1], taken_down=((0, 3), (2, 0), (2, 1), (2, 2))), infos[2])
    hidden = {28, 45, 46, 47}
    assert sorted(read(taken_down)) == [row(n) for n in range(NUM_ROWS) if n not in hidden]
    shards = opened(taken_down)
    assert list(shards.captions(1000)) == [f"caption {n}" for n in range(NUM_ROWS) if n not in hidden]
    assert list(shards.captions(26)) == [f"caption {n}" for n in range(26)]
    reader = ShardReader(shards)
    assert reader.read_remaining(1, 2).num_rows == 0
    assert reader.read_remaining(1, 0)["caption"].to_pylist() == [f"caption {n}" for n in range(25, 35) if n != 28]


def test_row_groups_are_cached_up_to_a_number_of_bytes(
    infos: tuple[ShardInfo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = opened(infos)
    reader, order = ShardReader(shards), Order(infos, window=9, seed=0)
    requested = []
    original = reader.read

    def recorded(shard: int, row_group: int) -> pa.Table:
        requested.append((shard, row_group))
        return original(shard, row_group)

    monkeypatch.setattr(reader, "read", recorded)
    for _ in range(3):
        for rows in order.locate(order.rows(0, 0)):
            assert reader.take(rows)["caption"].to_pylist() == [f"caption {n}" for n in rows.numbers]
    assert len(requested) == len(set(requested)) == 9
    monkeypatch.setattr(reading, "CACHE_BYTES", 1)
    for rows in order.locate(order.rows(0, 0)):
        reader.take(rows)
    assert len(reader._cache) == 1


@pytest.fixture(scope="module")
def remote(s3: str) -> tuple[ShardInfo, ...]:
    """Shards of different sizes on S3."""
    table = pairs_of(800, image_bytes=20_000)
    return write_shards(f"{s3}/shards", [table.slice(0, 600), table.slice(600, 190), table.slice(790)], max_rows=40)


def test_every_position_takes_equally_few_requests(
    remote: tuple[ShardInfo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request for the footer, and at most two for a row group, because its two columns are not adjacent."""
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "GET", []) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        order = Order(remote, window=1, seed=0)
        counts = []
        for position in (0, 1, 333, 600, 797, 799):
            before = proxy.num_requests
            window = order.window_at(0, position)
            (located,) = order.locate(order.rows(0, window))
            found = ShardReader(opened(remote)).read(located.shard, located.row_group)
            assert found.num_rows == len(located.rows)
            counts.append(proxy.num_requests - before)
        assert max(counts) <= 3, counts
        before = proxy.num_requests
        reader = ShardReader(opened(remote))
        for group in range(15):
            reader.read(0, group)
        assert proxy.num_requests - before <= 1 + 2 * 15, "a footer is read once"


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.RESET, Fault.DROPPED_BYTES])
def test_temporary_faults_of_s3_are_retried(
    remote: tuple[ShardInfo, ...], fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = [Fault.NONE, fault, Fault.NONE, Fault.NONE, fault]
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "GET", faults) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        found = read(remote, window=7)
    table = pairs_of(800, 20_000)
    assert sorted(found) == list(zip(table["image"].to_pylist(), table["caption"].to_pylist(), strict=True))


class TestDamage:
    """A reader returns the pairs that were written, or raises an error that names the shard."""

    @pytest.fixture
    def shards(self, tmp_path: Path) -> Shards:
        return opened(write_shards(tmp_path, [TABLE.slice(0, 12), TABLE.slice(12, 8)]))

    def test_any_flipped_bit(self, shards: Shards) -> None:
        file = Path(shards.paths[0])
        data = file.read_bytes()
        whole = [ShardReader(shards).read(0, group) for group in range(2)]
        noticed = 0
        for offset in range(0, len(data), 7):
            file.write_bytes(data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :])
            for group in range(2):
                try:
                    found = ShardReader(shards).read(0, group)
                except ValueError as error:
                    noticed += str(file) in str(error)
                else:
                    assert found.equals(whole[group]), f"byte {offset}"
        assert noticed > len(data) / 7 / 4

    @pytest.mark.parametrize("size", [0, 1, 100, -1, -100])
    def test_a_short_file(self, shards: Shards, size: int) -> None:
        file = Path(shards.paths[0])
        file.write_bytes(file.read_bytes()[:size])
        with pytest.raises(ValueError, match=rf"{file.name}: this shard of the snapshot is damaged"):
            list(pairs(shards, Order(shards.infos, window=1, seed=0), 0))

    def test_a_missing_shard(self, shards: Shards) -> None:
        Path(shards.paths[1]).unlink()
        with pytest.raises(
            FileNotFoundError, match=rf"{Path(shards.paths[1]).name}: this shard of the snapshot is gone"
        ):
            list(pairs(shards, Order(shards.infos, window=3, seed=0), 0))

    def test_another_shard_in_its_place(self, shards: Shards) -> None:
        storage.write_bytes(shards.paths[1], storage.read_bytes(shards.paths[0]))
        with pytest.raises(ValueError, match="row group 0 has 10 rows, the snapshot expects 8"):
            ShardReader(shards).read(1, 0)

    def test_a_later_schema(self, shards: Shards) -> None:
        table = TABLE.slice(0, 12).replace_schema_metadata({"schema_version": "2"})
        pq.write_table(table, shards.paths[0], row_group_size=10)
        with pytest.raises(ValueError, match=r"schema version 2, this program reads up to 1; use a newer program"):
            ShardReader(shards).read(0, 0)
