"""Commits and garbage collections at the same time, in every order of their accesses to storage."""

import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from cluster.stores.errors import AccessDeniedError, StorageError, UnsupportedError
from pipeline.data.snapshots import commit as commit_module
from pipeline.data.snapshots import garbage, leases, tombstones
from pipeline.data.snapshots.commit import ConflictError, commit, tag
from pipeline.data.snapshots.leases import Lease, storage_time
from pipeline.data.snapshots.snapshot import Snapshot, tags, versions
from tests.pipeline.data.datasets import add_shard, counts, make
from tests.pipeline.data.snapshots.interleaving import Side, hook, orders
from tests.stores.imitated import ImitatedStore, only
from tests.stores.listings import stale
from tests.stores.refusals import access_denied

COMMIT_STEPS = ("write leases", "list leases", "list data", "put manifests", "put snapshots", "delete leases")
TAG_STEPS = ("write leases", "list leases", "read snapshots", "put refs", "delete leases")
SWEEP_STEPS = ("write leases", "list leases", "list snapshots", "list refs", "delete data", "delete leases")


def step_of(steps: Sequence[str], access: str, uri: str) -> str | None:
    """The step that an access is, such as "put manifests", if it is one of these."""
    verb = {"read_bytes": "read", "write_bytes": "write", "put_if_absent": "put", "entries": "list"}
    step = f"{verb.get(access, 'delete')} {uri.split('/copy/')[1].split('/')[0]}"
    return step if step in steps else None


def find(uri: str, keep_last: int | None = None) -> garbage.Garbage:
    return garbage.find(uri, now=time.time() + 60, grace_seconds=0, keep_last=keep_last)


@pytest.fixture
def race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[tuple[Side, Side]]]:
    """Run a change of a data set and a sweep in every order of their steps, each time in a new copy."""
    sides: tuple[Side, ...] = ()
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.0)
    hook(monkeypatch, lambda: sides)

    def begin(change: Callable[[str], Any], steps: Sequence[str], keep_last: int | None) -> tuple[Side, Side]:
        nonlocal sides
        sides = ()
        uri = str(tmp_path / "copy")
        shutil.rmtree(uri, ignore_errors=True)
        shutil.copytree(tmp_path / "model", uri)
        found = find(uri, keep_last)
        made = (
            Side("change", lambda: change(uri), partial(step_of, steps), "write leases"),
            Side("sweep", lambda: garbage.sweep(found), partial(step_of, SWEEP_STEPS), "write leases"),
        )
        sides = made
        return made

    def run(
        change: Callable[[str], Any], steps: Sequence[str], keep_last: int | None = None
    ) -> Iterator[tuple[Side, Side]]:
        return orders(
            lambda: begin(change, steps, keep_last), lambda side: side.steps[-1:] == [side.next_step] == ["list leases"]
        )

    return run


@pytest.fixture
def commit_old(tmp_path: Path) -> Callable[[str], Snapshot]:
    """Commits content whose files are garbage: a commit of it was killed before its record."""
    model = tmp_path / "model"
    make(str(model), [0])
    shard = add_shard(str(model), [5])
    killed = make(str(tmp_path / "other"), [5])
    for folder in ("manifests", "query_counts"):
        shutil.copy(tmp_path / "other" / folder / f"{killed.snapshot_id}.parquet", model / folder)
    return lambda uri: commit(uri, [shard], counts([5]), {})


def is_lost(change: Side) -> bool:
    """Whether a commit returned although its version is not whole."""
    try:
        return change.error is None and change.result.verify() != []
    except (OSError, ValueError):
        return True


def outcome(change: Side, sweep: Side) -> tuple[str, str]:
    return type(change.error).__name__, type(sweep.error).__name__


def test_a_commit_that_returns_loses_no_file_to_a_sweep(
    commit_old: Callable[[str], Snapshot],
    race: Callable[..., Iterator[tuple[Side, Side]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(garbage, "DELETE_FILES", 1)
    outcomes = Counter[tuple[str, str]]()
    for change, sweep in race(commit_old, COMMIT_STEPS):
        assert not is_lost(change), (change.steps, sweep.steps)
        assert not list(tmp_path.glob("copy/leases/*"))
        outcomes[outcome(change, sweep)] += 1
    assert outcomes.pop(("NoneType", "ConflictError")) > 20, "the sweep sees the commit before it deletes the shard"
    assert outcomes.pop(("FileNotFoundError", "NoneType")) > 10, "the commit sees that the shard is gone"
    assert outcomes.pop(("FileNotFoundError", "ConflictError")) > 20, "the sweep stops after the shard"
    assert not outcomes


def _versions_before_leases(sweep: garbage._Sweep) -> None:
    if set(versions(sweep._garbage.uri)) - set(sweep._garbage.versions) or sweep._lease.others("commit"):
        raise ConflictError("")


_others = Lease.others


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (Lease, "others", lambda lease, kind: [] if kind == "commit" else _others(lease, kind)),
        (Lease, "wait_for_sweeps", lambda _: None),
        (garbage._Sweep, "_check_unchanged", _versions_before_leases),
        (commit_module, "_check_files", lambda *_: None),
    ],
    ids=[
        "the sweep does not look for commits", "the commit does not wait", "the sweep lists the versions first",
        "the commit does not check its files",
    ],
)  # fmt: skip
def test_without_any_of_the_steps_some_order_loses_a_file(
    commit_old: Callable[[str], Snapshot],
    race: Callable[..., Iterator[tuple[Side, Side]]],
    owner: Any,
    name: str,
    replacement: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, replacement)
    assert any(is_lost(change) for change, _ in race(commit_old, COMMIT_STEPS))


def test_a_tag_that_is_made_never_loses_its_version(
    race: Callable[..., Iterator[tuple[Side, Side]]], tmp_path: Path
) -> None:
    make(str(tmp_path / "model"), [1])
    make(str(tmp_path / "model"), [2])
    outcomes = Counter[tuple[str, str]]()
    for change, sweep in race(lambda uri: tag(uri, "kept", "v00000001"), TAG_STEPS, keep_last=1):
        outcomes[outcome(change, sweep)] += 1
        uri = str(tmp_path / "copy")
        assert (change.error is None) == (tags(uri) == {"kept": "v00000001"})
        assert change.error is not None or Snapshot.open(uri, "kept").verify() == [], (change.steps, sweep.steps)
    assert outcomes[("NoneType", "ConflictError")] > 20
    assert outcomes[("FileNotFoundError", "NoneType")] > 20


def test_a_commit_waits_for_a_sweep_and_says_so(
    anywhere: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(leases, "WAIT_LOG_SECONDS", 0.1)
    make(anywhere, [1])
    committing = threading.Thread(target=make, args=(anywhere, [2]))
    with Lease(anywhere, "sweep"):
        committing.start()
        committing.join(0.6)
        assert committing.is_alive()
        assert versions(anywhere) == ["v00000001"]
    committing.join(10)
    assert versions(anywhere) == ["v00000001", "v00000002"]
    lines = [record.getMessage() for record in caplog.records if record.name == "clip"]
    assert len(lines) == 1, "the next line comes after six times as long"
    assert lines[0].startswith("waiting since 0 s for the garbage collection of ")
    assert storage.entries(storage.join(anywhere, "leases")) == []


def abandon(uri: str, kind: leases.Kind, age_seconds: float) -> Path:
    """Leave a lease as a process that was killed so long ago."""
    lease = Path(uri, "leases", f"{kind}-{'0' * 32}.json")
    lease.parent.mkdir(exist_ok=True)
    lease.touch()
    os.utime(lease, (time.time() - age_seconds,) * 2)
    return lease


@pytest.mark.parametrize("age_seconds", [leases.STALE_SECONDS + 10, -leases.STALE_SECONDS - 10])
def test_leases_of_killed_processes_are_ignored_and_then_deleted(dataset: str, age_seconds: float) -> None:
    """Also one from the future, which a clock that was set back leaves."""
    make(dataset, [1])
    left = [abandon(dataset, kind, age_seconds) for kind in ("sweep", "commit", "clock")]
    garbage.sweep(garbage.find(dataset, now=time.time(), grace_seconds=1e6))
    make(dataset, [2])
    assert [lease.exists() for lease in left] == [age_seconds < 0] * 3


def test_a_sweep_does_not_begin_during_a_commit(dataset: str) -> None:
    make(dataset, [1])
    add_shard(dataset, [2])
    abandon(dataset, "commit", leases.STALE_SECONDS - 120)
    with pytest.raises(ConflictError, match=r"a version or a tag is being made \(.*; 0 of 1 files are deleted"):
        garbage.sweep(find(dataset))


def test_a_lease_is_written_again_until_it_ends(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(leases, "STALE_SECONDS", 0.5)
    with Lease(dataset, "sweep"), Lease(dataset, "commit") as other:
        time.sleep(1)
        assert len(other.others("sweep")) == 1
        other.check()
    assert not list(Path(dataset, "leases").iterdir())


def test_a_holder_that_was_suspended_stops(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its lease was written again since: others may have ignored it meanwhile."""
    shard = add_shard(dataset, [1])
    now, moments = leases._now, [0.0]
    monkeypatch.setattr(leases, "_now", lambda: now() + moments[0])
    with Lease(dataset, "sweep") as lease:
        moments[0] = leases.MAX_AGE_SECONDS - 5
        lease.check()
        moments[0] = leases.MAX_AGE_SECONDS + 5
        lease._write()
        with pytest.raises(StorageError, match=r"could not be written for more than 240 s \(this process was suspend"):
            lease.check()

    def suspended(*_: object) -> list[str]:
        moments[0] += leases.MAX_AGE_SECONDS + 5
        return []

    monkeypatch.setattr(tombstones, "files", suspended)
    with pytest.raises(StorageError, match="run the same command again"):
        commit(dataset, [shard], counts([1]), {})
    assert versions(dataset) == []


def test_a_commit_whose_put_took_too_long_checks_its_files_again(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = add_shard(dataset, [1])
    now, put = leases._now, storage.put_if_absent
    moments = [0.0]
    monkeypatch.setattr(leases, "_now", lambda: now() + moments[0])

    def slow_put(uri: str, data: bytes) -> bool:
        if "snapshots" in uri:
            moments[0] += leases.STALE_SECONDS
            storage.delete(storage.join(dataset, shard.path))  # as a sweep that no longer respects the lease
        return put(uri, data)

    monkeypatch.setattr(storage, "put_if_absent", slow_put)
    with pytest.raises(FileNotFoundError, match="this shard does not exist; run the job that writes it again"):
        commit(dataset, [shard], counts([1]), {})


def test_the_clock_of_the_storage(anywhere: str) -> None:
    assert abs(storage_time(anywhere) - time.time()) < 5
    assert storage.entries(storage.join(anywhere, "leases")) == []


def test_a_lease_that_cannot_be_removed_is_a_warning(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"{s3}/{tmp_path.name}"
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], only(access_denied, "Delete.*")) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        assert make(uri, [1]).name == "v00000001"
        assert make(uri, [2]).name == "v00000002"
    (first, second) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    for line in (first, second):
        assert "/leases/commit-" in line
        assert "is left (" in line
        assert "it counts as under way for 15 more minutes, and the next gc deletes it" in line


def test_a_lease_that_cannot_be_written_ends_the_commit(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{s3}/{tmp_path.name}"
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], only(access_denied, "PutObject", "leases")) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        with pytest.raises(AccessDeniedError):
            make(uri, [1])


@pytest.mark.parametrize(
    ("stale_folder", "message"), [("leases", "the listing does not show commit-"), ("snapshots", "8 listings of its")]
)
def test_a_store_with_stale_listings_is_refused(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stale_folder: str, message: str
) -> None:
    uri = f"{s3}/{tmp_path.name}"
    make(uri, [1])
    monkeypatch.setattr(commit_module, "_STALE_LISTING_SECONDS", 0.001)
    quirk = only(stale(3600), path=f"/{stale_folder}/|^/{s3.removeprefix('s3://')}/?$")
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], quirk) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        storage.write_bytes(storage.join(uri, "snapshots", "v00000002.json"), b"{}")
        with pytest.raises(UnsupportedError, match=rf"{uri}/{stale_folder}.*{message}.*listings show every file"):
            make(uri, [2])
