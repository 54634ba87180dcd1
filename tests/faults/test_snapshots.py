"""Interrupt and break changes of a snapshot: the old or the new version is always complete."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from cluster import storage
from cluster.part_file import RowGroups
from cluster.parts import Output, Stage
from cluster.stores.errors import StorageError
from cluster.stores.s3 import client as s3_client
from cluster.stores.s3 import requests
from pipeline.data.snapshots import garbage, leases
from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.snapshot import Shard, Snapshot, versions
from pipeline.data.snapshots.takedown import compact, take_down
from tests.faults.killing import killed_at_file, killed_at_put, num_puts
from tests.faults.racing import race
from tests.faults.stores.races import STORES, opened
from tests.pipeline.data.datasets import add_shard, counts, make, pair_id, pairs, readable
from tests.s3_faults import Fault, FaultyS3, at_random

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = [0, 2, 3], [2, 3, 4, 5]


def prepare(uri: str) -> list[Shard]:
    """Make a version and a take-down, and return shards for the next version; one of their pairs is taken down."""
    make(uri, range(4))
    take_down(uri, {"pair_id": [pair_id(1)]}, "")
    return [add_shard(uri, range(1, 4)), add_shard(uri, range(4, 6))]


def commit_new(uri: str, shards: list[Shard]) -> None:
    commit(uri, shards, counts(range(1, 6)), {"run": "new"})


def compact_old(uri: str, _: list[Shard]) -> None:
    compact(uri)


def sweep(uri: str, _: list[Shard]) -> None:
    garbage.sweep(garbage.find(uri, now=time.time() + 60, grace_seconds=0, keep_last=1))


def age_leases(uri: str) -> None:
    """Let the leases of killed processes become stale (leases.py)."""
    for lease in Path(uri, leases.FOLDER).iterdir():
        os.utime(lease, (time.time() - leases.STALE_SECONDS,) * 2)


def check_whole(uri: str, after: list[int]) -> None:
    """Check that every version is readable and has the expected pairs."""
    for name in versions(uri):
        found = Snapshot.open(uri, name)
        assert readable(found) == (OLD if name == "v00000001" else after)
        assert found.verify() == []


@pytest.mark.parametrize(("work", "after", "stride"), [(commit_new, NEW, 1), (compact_old, OLD, 3)])
def test_killed_before_each_file_access(
    tmp_path: Path, work: Callable[[str, list[Shard]], None], after: list[int], stride: int
) -> None:
    model = tmp_path / "model"
    shards = prepare(str(model))
    step, version_counts = 1 - stride, set()
    killed = True
    while killed:
        step += stride
        uri = str(tmp_path / str(step))
        shutil.copytree(model, uri)
        killed = killed_at_file(step, uri, work, uri, shards)
        assert versions(uri) in (["v00000001"], ["v00000001", "v00000002"])
        version_counts.add(len(versions(uri)))
        check_whole(uri, after)
        work(uri, shards)
        assert versions(uri) == ["v00000001", "v00000002"], step
        check_whole(uri, after)
        age_leases(uri)
        sweep(uri, [])
        assert not list(Path(uri, leases.FOLDER).iterdir())
        assert not [path for path in Path(uri).rglob("*") if path.name.endswith(".tmp")]
        check_whole(uri, after)
    assert step > 30
    assert version_counts == {1, 2}


def test_garbage_collection_killed_at_any_step(tmp_path: Path) -> None:
    model = tmp_path / "model"
    commit_new(str(model), prepare(str(model)))
    add_shard(str(model), [9])
    step, killed = 0, True
    while killed:
        step += 1
        uri = str(tmp_path / str(step))
        shutil.copytree(model, uri)
        killed = killed_at_file(step, uri, sweep, uri, [])
        check_whole(uri, NEW)
        sweep(uri, [])
        assert versions(uri) == ["v00000002"]
        assert len(list(Path(uri).rglob("*.parquet"))) == 2 + 2 + 2, "shards, manifest and counts, tombstones"
    assert step > 10


@pytest.mark.parametrize(
    ("puts_left", "arrives", "num_versions"),
    # The last two puts write tombstones and the record. A version is committed if the put of its record arrives, even
    # if its process is killed then. tests/perf/storage/commits.py tests every put.
    [(1, True, 1), (0, False, 1), (0, True, 2)],
)
def test_killed_at_a_put_to_s3(s3: str, tmp_path: Path, puts_left: int, arrives: bool, num_versions: int) -> None:
    uri = f"{s3}/{tmp_path.name}"
    put = num_puts(commit_new, f"{uri}-other", prepare(f"{uri}-other")) - puts_left
    shards = prepare(uri)
    assert killed_at_put(put, arrives, commit_new, uri, shards)
    assert len(versions(uri)) == num_versions
    check_whole(uri, NEW)
    commit_new(uri, shards)
    assert versions(uri) == ["v00000001", "v00000002"]
    check_whole(uri, NEW)


@pytest.mark.parametrize("number", range(4))
def test_sixteen_processes_commit_at_once(tmp_path: Path, number: int) -> None:
    """Twenty rounds in all."""
    assert len(race(str(tmp_path / f"set-{number}"), num_committers=16, rounds=5)) == 80


@pytest.mark.parametrize("name", STORES)
def test_sixteen_processes_commit_at_once_on_s3(s3: str, tmp_path: Path, name: str) -> None:
    """Three rounds on every store on which commits are promised; tests/perf/storage/commits.py runs twenty."""
    with opened(name) as store:
        assert len(race(f"{s3}/{tmp_path.name}", num_committers=16, rounds=3)) == 48
        assert len(store.seen) > 48 * 11, "the processes ask this store"


def test_one_failing_request_in_ten(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are written, read back, committed and verified despite 500, 503, resets and stalled bodies."""
    uri = f"{s3}/{tmp_path.name}"
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_SECONDS", 0.4)
    kinds = (Fault.ERROR, Fault.UNAVAILABLE, Fault.STALLED, Fault.RESET)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], None, at_random(0.1, kinds, seed=3)) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        stage = Stage(f"{uri}/data/run", 3)
        for index in range(3):
            stage.write(index, pairs(range(10 * index, 10 * index + 10)), row_groups=RowGroups(max_rows=4))
        output = Output.of(stage)
        assert output.table(pairs([0]).schema).equals(pa.concat_tables([pairs(range(30))]))
        shards = [
            Shard(
                path=f"data/run/{part.file}",
                num_rows=part.num_rows,
                num_bytes=part.num_bytes,
                sha256=part.sha256,
                row_groups=(4, 4, 2),
            )
            for part in output.parts
        ]
        found = commit(uri, shards, counts(range(30)), {})
        assert found.verify() == []
        assert readable(found) == list(range(30))
        assert set(faulty.given) == set(kinds), f"{len(faulty.given)} of {faulty.num_requests}"


def test_credentials_are_neither_stored_nor_logged(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri, secret = f"{s3}/{tmp_path.name}", "a-secret-access-key"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setattr(requests, "_DELAY_SECONDS", 0.001)
    commit_new(uri, prepare(uri))
    # The PUTs of the shard, of the lease and of the probe pass
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "PUT", [Fault.NONE] * 4 + [Fault.CONFLICT] * 20) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        with pytest.raises(StorageError) as failed:
            make(uri, range(40, 44))
        assert len(faulty.given) > 1
        contents = [storage.read_bytes(entry.uri) for entry in storage.entries(uri)]
    assert len(contents) > 8
    assert not [content for content in contents if secret.encode() in content]
    assert secret not in caplog.text + str(failed.value)


def test_a_full_disk(tmp_path: Path) -> None:
    """Uses a small tmpfs in a separate mount namespace."""
    command = (
        f"mount -t tmpfs -o size=4m tmpfs {tmp_path} && exec {sys.executable} -m tests.faults.full_disk {tmp_path}"
    )
    namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*namespace, f"mount -t tmpfs tmpfs {tmp_path}"], capture_output=True).returncode:
        pytest.skip("this system does not allow mounting a tmpfs")
    done = subprocess.run([*namespace, command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "the second attempt succeeded"
