import time
from pathlib import Path

import boto3
import pytest

from cluster import storage
from pipeline.data.snapshots import garbage
from pipeline.data.snapshots.commit import ConflictError, tag
from pipeline.data.snapshots.snapshot import Snapshot, versions
from pipeline.data.snapshots.takedown import compact, take_down
from tests.pipeline.data.datasets import add_shard, make, pair_id, readable

HOUR = 3600.0


def find(uri: str, *, hours: float = 0.0, keep_last: int | None = None) -> garbage.Garbage:
    """The garbage one day from now, with this grace period."""
    return garbage.find(uri, now=time.time() + 24 * HOUR, grace_seconds=hours * HOUR, keep_last=keep_last)


def names(found: garbage.Garbage) -> list[str]:
    return [entry.uri.removeprefix(found.uri + "/") for entry in found.files]


def test_files_that_a_version_refers_to_are_not_garbage(anywhere: str) -> None:
    made = [make(anywhere, range(number, number + 6), [9]) for number in range(3)]
    take_down(anywhere, {"pair_id": [pair_id(1)]}, "")
    tag(anywhere, "first", "v00000001")
    assert names(find(anywhere)) == []
    garbage.sweep(find(anywhere))
    for snapshot in made:
        assert Snapshot.open(anywhere, snapshot.name).verify() == []


def test_old_leftovers_are_deleted(anywhere: str) -> None:
    """Files of a curation without a commit, of a commit killed before its record, and of killed writers."""
    made = make(anywhere, range(6))
    lost = [
        add_shard(anywhere, [77]).path,
        *("data/run/_part-00007.json", "data/run/_part-00007.2.json"),
        *(f"{folder}/{'0' * 64}.parquet" for folder in ("manifests", "query_counts")),
        *(f"{folder}/.x.parquet.{'0' * 32}.tmp" for folder in ("data/run", "snapshots", "tombstones", "refs/tags")),
    ]
    kept = ["data/run/_part-00000.json", "notes.txt", "snapshots/notes.txt", "exports/part.tar"]
    for path in [*lost[1:], *kept]:
        storage.write_bytes(storage.join(anywhere, path), b"x")
    assert names(find(anywhere, hours=25)) == []
    found = find(anywhere, hours=23)
    assert sorted(names(found)) == sorted(lost)
    assert found.num_bytes == sum(len(storage.read_bytes(storage.join(anywhere, path))) for path in lost)
    assert names(found)[:2] == ["data/run/_part-00007.2.json", "data/run/_part-00007.json"], "records of parts first"
    reported: list[int] = []
    garbage.sweep(found, reported.append)
    assert sum(reported) == len(lost)
    assert names(find(anywhere)) == []
    assert Snapshot.open(anywhere) == made
    assert made.verify() == []
    assert all(storage.exists(storage.join(anywhere, path)) for path in kept)


def test_retired_versions_are_deleted_but_shared_shards_are_kept(anywhere: str) -> None:
    for number in range(4):
        make(anywhere, [100], [number])
    tag(anywhere, "kept", "v00000001")
    assert find(anywhere, hours=25, keep_last=1).retired == (), "younger than the grace period"
    found = find(anywhere, hours=23, keep_last=1)
    assert found.retired == ("v00000002", "v00000003")
    assert names(found)[:2] == ["snapshots/v00000002.json", "snapshots/v00000003.json"], "records first"
    assert len(found.files) == 2 * 4, "record, manifest, counts and one shard of each version"
    garbage.sweep(found)
    assert versions(anywhere) == ["v00000001", "v00000004"]
    assert [readable(Snapshot.open(anywhere, name)) for name in versions(anywhere)] == [[100, 0], [100, 3]]
    assert [Snapshot.open(anywhere, name).verify() for name in versions(anywhere)] == [[], []]
    assert make(anywhere, [5]).name == "v00000005"


def test_the_latest_version_is_always_kept(dataset: str) -> None:
    make(dataset, [1])
    assert find(dataset, keep_last=1).retired == ()
    with pytest.raises(ValueError, match="keep_last=0: the latest version is always kept"):
        find(dataset, keep_last=0)


def test_bytes_taken_down_are_deleted_after_compaction_and_retirement(dataset: str) -> None:
    shard = make(dataset, range(4), range(4, 8)).shards[0]
    take_down(dataset, {"pair_id": [pair_id(1)]}, "")
    compact(dataset)
    garbage.sweep(find(dataset))
    assert Path(shard.path).exists(), "v00000001 refers to this shard"
    garbage.sweep(find(dataset, keep_last=1))
    assert not Path(shard.path).exists()
    secret = b"image of 1 "
    assert not [path for path in Path(dataset).rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert readable(Snapshot.open(dataset)) == [0, 2, 3, 4, 5, 6, 7]


def test_the_record_of_a_part_is_deleted_with_its_shard(dataset: str) -> None:
    """Otherwise, a repeated curation would treat the part as written."""
    make(dataset, range(4))
    storage.write_bytes(storage.join(dataset, "data/run/_part-00000.json"), b"{}")
    take_down(dataset, {"pair_id": [pair_id(1)]}, "")
    compact(dataset)
    assert "data/run/_part-00000.json" in names(find(dataset, keep_last=1))
    assert names(find(dataset)) == []


def test_nothing_is_swept_after_another_commit(dataset: str) -> None:
    make(dataset, [1])
    add_shard(dataset, [2])
    found = find(dataset)
    assert len(found.files) == 1
    made = make(dataset, [2])
    with pytest.raises(ConflictError, match="v00000002 was committed meanwhile and nothing is deleted"):
        garbage.sweep(found)
    assert made.verify() == []


def test_a_damaged_manifest_raises(dataset: str) -> None:
    made = make(dataset, [1])
    storage.write_bytes(storage.join(dataset, "manifests", f"{made.snapshot_id}.parquet"), b"")
    with pytest.raises(ValueError, match="is damaged"):
        find(dataset)


def test_a_folder_without_versions_raises(dataset: str) -> None:
    add_shard(dataset, [1])
    with pytest.raises(FileNotFoundError, match="no snapshot yet"):
        find(dataset)


def test_unfinished_uploads_are_aborted(s3: str, tmp_path: Path) -> None:
    uri = f"{s3}/{tmp_path.name}"
    make(uri, [1])
    client = boto3.client("s3")
    target = {"Bucket": s3.removeprefix("s3://"), "Key": f"{tmp_path.name}/data/run/large.parquet"}
    upload = client.create_multipart_upload(**target)["UploadId"]
    ((_, _, begun),) = storage.unfinished_uploads(uri)
    assert garbage.find(uri, now=begun + 10, grace_seconds=11).uploads == ()
    found = find(uri)
    assert found.uploads == ((f"{uri}/data/run/large.parquet", upload),)
    garbage.sweep(found)
    assert find(uri).uploads == ()
