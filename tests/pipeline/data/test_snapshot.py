import hashlib
import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cluster import storage
from pipeline.data.snapshot import QUERY_COUNTS, Shard, Snapshot, commit, versions
from pipeline.schemas import PAIRS

COUNTS = pa.table([[0, 7], [3, 1]], schema=QUERY_COUNTS)


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """An empty data set."""
    return str(tmp_path / "data set")


@pytest.fixture(params=["local", "file", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty data set on each kind of storage."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return str(tmp_path / "data set") if request.param == "local" else (tmp_path / "data-set").as_uri()


def add_shard(dataset: str, content: bytes, num_rows: int = 300) -> Shard:
    digest = hashlib.sha256(content).hexdigest()
    path = f"data/run/part-00000-{digest[:16]}.parquet"
    storage.write_bytes(storage.join(dataset, path), content)
    return Shard(path=path, num_rows=num_rows, num_bytes=len(content), sha256=digest, row_groups=(256, num_rows - 256))


def make(dataset: str, *shards: Shard, metadata: Mapping[str, Any] | None = None) -> Snapshot:
    return commit(dataset, shards, COUNTS, metadata or {"run": "abc"}, storage.put_if_absent)


def test_a_version_is_read_as_it_was_committed(anywhere: str) -> None:
    shards = [add_shard(anywhere, b"first"), add_shard(anywhere, b"second", 257)]
    made = make(anywhere, *shards, metadata={"run": "abc", "configuration": {"seed": 1}})
    for found in (made, Snapshot.open(anywhere), Snapshot.open(anywhere + "/", "v00000001")):
        assert found == made
        assert (found.name, found.num_rows, found.num_bytes) == ("v00000001", 557, 11)
        assert [storage.read_bytes(shard.path) for shard in found.shards] == [b"first", b"second"]
        assert [shard.row_groups for shard in found.shards] == [(256, 44), (256, 1)]
        assert found.query_counts() == COUNTS
        assert found.verify() == []
    assert made.metadata == {
        "run": "abc",
        "configuration": {"seed": 1},
        "name": "v00000001",
        "snapshot_id": made.snapshot_id,
        "parent": None,
        "num_pairs": 557,
        "num_bytes": 11,
        "num_shards": 2,
        "schema": {field.name: str(field.type) for field in PAIRS},
    }
    assert len(made.snapshot_id) == 64


def test_the_same_shards_again_are_the_same_version(dataset: str) -> None:
    shard = add_shard(dataset, b"first")
    first = make(dataset, shard)
    assert make(dataset, shard, metadata={"run": "another"}) == first
    assert make(dataset + "/", shard) == first
    assert versions(dataset) == ["v00000001"]


def test_other_shards_are_the_next_version_and_the_old_one_stays(dataset: str) -> None:
    made = [make(dataset, add_shard(dataset, b"%d" % i)) for i in range(3)]
    assert versions(dataset) == [snapshot.name for snapshot in made] == ["v00000001", "v00000002", "v00000003"]
    assert [snapshot.metadata["parent"] for snapshot in made] == [None, "v00000001", "v00000002"]
    assert len({snapshot.snapshot_id for snapshot in made}) == 3
    assert Snapshot.open(dataset) == made[2]
    assert Snapshot.open(dataset, "v00000001") == made[0]


def test_order_and_place_of_the_shards_are_part_of_a_version_but_not_the_data_sets(
    dataset: str, tmp_path: Path
) -> None:
    shards = [add_shard(dataset, b"first"), add_shard(dataset, b"second")]
    elsewhere = str(tmp_path / "elsewhere")
    assert make(elsewhere, *shards).snapshot_id == make(dataset, *shards).snapshot_id
    assert make(dataset, *reversed(shards)).name == "v00000002"


def test_a_version_without_pairs(dataset: str) -> None:
    assert make(dataset).num_rows == 0
    assert Snapshot.open(dataset).shards == ()
    assert Snapshot.open(dataset).verify() == []


def race(dataset: str, shards: list[Shard]) -> list[Snapshot]:
    """All commits at once."""
    barrier = threading.Barrier(len(shards))

    def one(number: int) -> Snapshot:
        barrier.wait()
        return make(dataset, shards[number], metadata={"run": str(number)})

    with ThreadPoolExecutor(len(shards)) as threads:
        return list(threads.map(one, range(len(shards))))


def test_of_racing_commits_each_gets_a_version_and_none_is_lost(anywhere: str) -> None:
    rounds, writers = 2, 4 if storage.is_s3(anywhere) else 8
    for number in range(rounds):
        made = race(anywhere, [add_shard(anywhere, b"%d %d" % (number, writer)) for writer in range(writers)])
        names = versions(anywhere)
        assert names == [f"v{i:08d}" for i in range(1, (number + 1) * writers + 1)]
        assert sorted(snapshot.name for snapshot in made) == names[-writers:]
        for writer, snapshot in enumerate(made):
            assert storage.read_bytes(snapshot.shards[0].path) == b"%d %d" % (number, writer)
            assert Snapshot.open(anywhere, snapshot.name) == snapshot
    parents = [Snapshot.open(anywhere, name).metadata["parent"] for name in versions(anywhere)]
    assert parents == [None, *versions(anywhere)[:-1]], "each one knows the one before it"


def test_racing_commits_of_the_same_shards_make_one_version(dataset: str) -> None:
    made = race(dataset, [add_shard(dataset, b"the same")] * 8)
    assert {snapshot.name for snapshot in made} == {"v00000001"}
    assert len({snapshot.metadata["run"] for snapshot in made}) == 1
    assert versions(dataset) == ["v00000001"]


def test_verify_names_every_damaged_shard(anywhere: str) -> None:
    contents = [b"whole", b"truncated", b"flipped", b"missing", b"empty"]
    snapshot = make(anywhere, *(add_shard(anywhere, content) for content in contents))
    _, truncated, flipped, missing, empty = (shard.path for shard in snapshot.shards)
    storage.write_bytes(truncated, b"trunc")
    storage.write_bytes(flipped, b"flipqed")
    storage.write_bytes(empty, b"")
    storage.delete(missing)
    digest, found = (hashlib.sha256(content).hexdigest() for content in (b"flipped", b"flipqed"))
    assert snapshot.verify() == [
        f"{truncated}: 9 bytes expected, 5 found",
        f"{flipped}: sha256 {digest} expected, {found} found",
        f"{missing}: is missing",
        f"{empty}: 5 bytes expected, 0 found",
    ]


def test_a_damaged_manifest_is_noticed(dataset: str) -> None:
    snapshot = make(dataset, add_shard(dataset, b"first"))
    manifest = storage.join(dataset, "manifests", f"{snapshot.snapshot_id}.parquet")
    data = storage.read_bytes(manifest)
    storage.write_bytes(manifest, data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(ValueError, match="the manifest of v00000001 is damaged"):
        Snapshot.open(dataset)


@pytest.mark.parametrize("version", ["v00000002", "v1", "latest", "../v00000001"])
def test_an_unknown_version(dataset: str, version: str) -> None:
    make(dataset, add_shard(dataset, b"first"))
    with pytest.raises(FileNotFoundError, match=rf"no snapshot {version}; there are \['v00000001'\]"):
        Snapshot.open(dataset, version)


def test_a_data_set_without_versions(dataset: str) -> None:
    assert versions(dataset) == []
    for version in (None, "v00000001"):
        with pytest.raises(FileNotFoundError, match=f"no snapshot {version or 'yet'}; there are none"):
            Snapshot.open(dataset, version)


def test_other_files_are_no_versions(dataset: str) -> None:
    made = make(dataset, add_shard(dataset, b"first"))
    for name in ("v2.json", "v00000009.json.tmp", ".v00000009.json.1.tmp", "notes.txt", "xv00000009.json"):
        storage.write_bytes(storage.join(dataset, "snapshots", name), json.dumps(made.metadata).encode())
    assert versions(dataset) == ["v00000001"]
