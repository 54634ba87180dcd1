import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from cluster import storage
from cluster.stores.errors import StorageError
from pipeline.data.snapshots import garbage
from pipeline.data.snapshots.commit import ConflictError, tag
from pipeline.data.snapshots.snapshot import Snapshot, versions
from pipeline.data.snapshots.takedown import compact, take_down
from tests.pipeline.data.datasets import add_shard, make, pair_id, readable
from tests.stores.imitated import ImitatedStore, only
from tests.stores.refusals import access_denied
from tests.stores.removals import no_delete_of_many

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
    with pytest.raises(ConflictError, match="v00000002 was committed meanwhile; 0 of 1 files are deleted, run gc aga"):
        garbage.sweep(found)
    assert made.verify() == []


def test_a_sweep_stops_in_the_middle_for_another_commit(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "DELETE_FILES", 2)
    make(dataset, [1])
    shards = [add_shard(dataset, [number]) for number in range(2, 9)]

    def commit_once(num_deleted: int) -> None:
        assert num_deleted == 2
        storage.put_if_absent(storage.join(dataset, "snapshots", "v00000002.json"), b"{}")

    with pytest.raises(ConflictError, match="v00000002 was committed meanwhile; 2 of 7 files are deleted"):
        garbage.sweep(find(dataset), commit_once)
    assert sum(storage.exists(storage.join(dataset, shard.path)) for shard in shards) == 5


def test_a_sweep_stops_for_a_new_tag(dataset: str) -> None:
    make(dataset, [1])
    make(dataset, [2])
    found = find(dataset, keep_last=1)
    tag(dataset, "kept", "v00000001")
    with pytest.raises(ConflictError, match=r"the tag kept\.json was made meanwhile; 0 of 4 files are deleted"):
        garbage.sweep(found)
    assert Snapshot.open(dataset, "kept").verify() == []


@contextmanager
def undeletable(path: str) -> Iterator[ImitatedStore]:
    """A store that deletes objects one by one, and refuses it for this path."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    quirks = (no_delete_of_many, only(access_denied, "DeleteObject", path))
    with ImitatedStore(endpoint, *quirks) as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store


@pytest.mark.parametrize("locked", ["data/run/part-00000-[0-9a-f]+", "manifests", "part-00007"])
def test_a_file_that_cannot_be_deleted_does_not_keep_the_others(s3: str, tmp_path: Path, locked: str) -> None:
    uri = f"{s3}/{tmp_path.name}"
    made = make(uri, [1])
    lost = [add_shard(uri, [77]).path, f"manifests/{'0' * 64}.parquet", "data/run/_part-00007.json"]
    for path in lost[1:]:
        storage.write_bytes(storage.join(uri, path), b"x")
    cause = f"1 files were not deleted, the first because of: .*{uri}/.*{locked}.*; run gc again once this is mended"
    with undeletable(locked), pytest.raises(StorageError, match=cause):
        garbage.sweep(find(uri))
    assert len(names(find(uri))) == 1
    assert made.verify() == []
    garbage.sweep(find(uri))
    assert names(find(uri)) == []


def test_a_version_whose_record_cannot_be_deleted_stays_whole(s3: str, tmp_path: Path) -> None:
    uri = f"{s3}/{tmp_path.name}"
    for number in range(4):
        make(uri, [number])
    with undeletable("v00000002.json"), pytest.raises(StorageError, match="1 files were not deleted"):
        garbage.sweep(find(uri, keep_last=1))
    assert versions(uri) == ["v00000002", "v00000004"]
    assert [Snapshot.open(uri, name).verify() for name in versions(uri)] == [[], []]
    assert len([entry for entry in storage.entries(uri) if entry.uri.endswith(".parquet")]) == 2 * 3
    garbage.sweep(find(uri, keep_last=1))
    assert versions(uri) == ["v00000004"]


def test_a_part_whose_record_cannot_be_deleted_keeps_its_shard(s3: str, tmp_path: Path) -> None:
    """Otherwise, a repeated curation would treat the part as written."""
    uri = f"{s3}/{tmp_path.name}"
    make(uri, [1])
    parts = [f"data/other/{name}" for name in ("_part-00000.json", "part-00000-ab.parquet", "part-00001-ab.parquet")]
    for path in parts:
        storage.write_bytes(storage.join(uri, path), b"x")
    with undeletable("_part-00000"), pytest.raises(StorageError, match="1 files were not deleted"):
        garbage.sweep(find(uri))
    assert names(find(uri)) == parts[:2]


def test_a_sweep_that_can_delete_nothing_gives_up(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "DELETE_FILES", 2)
    monkeypatch.setattr(garbage, "MAX_FAILURES", 4)
    uri = f"{s3}/{tmp_path.name}"
    make(uri, [0])
    for number in range(1, 10):
        add_shard(uri, [number])
    cause = r"4 files were not deleted.*; the other files were not tried"
    with undeletable("/data/") as store, pytest.raises(StorageError, match=cause):
        garbage.sweep(find(uri))
    assert store.operations.count("DeleteObject") == 4 + 1, "and one lease"


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
