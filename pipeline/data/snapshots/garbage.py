"""Delete retired versions, and files that no version refers to.

Mark: the latest version, the versions to keep and the versions with a tag are alive, and so are their manifests, counts
and shards. Sweep: everything else is deleted if it is older than the grace period by the storage's own clock. The grace
period must be longer than the longest job, because no version refers to a job's shards until the job commits.
Tombstones and tags are never deleted.

Files are listed before versions, so files of a commit between the two listings are marked as alive. A sweep may take
hours. It holds a lease, and before each request that deletes files it looks for commits and tags that began or ended
since, and stops if there are any (leases.py). The records of retired versions are deleted first, so no version exists
without its shards. The records of parts come next; otherwise a repeated curation would treat a deleted part as written.
All other files come last. A file that cannot be deleted keeps the files that it refers to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster import storage
from cluster.storage import Entry
from cluster.stores.errors import StorageError
from pipeline.data.snapshots import leases
from pipeline.data.snapshots.commit import ConflictError
from pipeline.data.snapshots.leases import Lease
from pipeline.data.snapshots.snapshot import Snapshot, tags, versions

DELETE_FILES = 1000
"""Number of files between two looks for new versions; one request to S3 deletes as many."""
MAX_FAILURES = 1000
"""A sweep that could delete none of this many files does not try the others."""
_CONTENT = ("data", "manifests", "query_counts", "overlaps", "cards")
"""Folders of files that versions refer to."""
_HIDDEN = ("snapshots", "refs", "tombstones")
"""Folders in which only temporary files of killed writers are garbage."""
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_PART_RECORD = re.compile(r"(.+/)_(part-\d+)\.(?:\d+\.)?json")
_PART_FILE = re.compile(r"(.+/)(part-\d+)-[0-9a-f]+\.parquet")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """The versions, files and uploads that a sweep would delete."""

    uri: str
    versions: tuple[str, ...]
    """All versions that existed when the garbage was listed."""
    tags: tuple[str, ...]
    """The files of all tags that existed then."""
    retired: tuple[str, ...]
    """Versions to delete."""
    files: tuple[Entry, ...]
    """Files to delete, in this order."""
    uploads: tuple[tuple[str, str], ...]
    """Unfinished multipart uploads to S3: URI and upload id."""

    @property
    def num_bytes(self) -> int:
        """Total bytes of the files."""
        return sum(entry.num_bytes for entry in self.files)


def find(uri: str, *, now: float, grace_seconds: float, keep_last: int | None = None) -> Garbage:
    """List the garbage of a data set.

    Args:
        uri: the data set.
        now: current time in seconds since 1970, by the clock of the storage (leases.storage_time).
        grace_seconds: files younger than this are kept.
        keep_last: number of latest versions to keep, in addition to those with a tag; if None, all versions are kept.

    Raises:
        FileNotFoundError: the data set has no version.
        ValueError: keep_last is not positive, or a version to keep is damaged.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last={keep_last}: the latest version is always kept; give 1 or more")
    uri = storage.absolute(uri)
    base = storage.join(uri, "")
    entries = [
        entry for folder in (*_CONTENT, *_HIDDEN, leases.FOLDER) for entry in storage.entries(storage.join(uri, folder))
    ]
    uploads = storage.unfinished_uploads(uri)
    names = versions(uri)
    if not names:
        raise FileNotFoundError(f"{uri}: no snapshot yet, so every file would be garbage; remove the folder by hand")
    old = {
        path: entry
        for path, entry in ((entry.uri[len(base) :], entry) for entry in entries)
        if entry.modified <= now - (leases.STALE_SECONDS if _is_lease(path) else grace_seconds)
    }
    tag_names = _tag_names(uri)
    kept = {*names[-(keep_last or len(names)) :], *tags(uri).values()}
    retired = [name for name in names if name not in kept and f"snapshots/{name}.json" in old]
    alive = _alive(uri, [name for name in names if name not in retired])
    records = [f"snapshots/{name}.json" for name in retired]
    other_files = sorted(
        (path for path in old if _is_garbage(path, alive)), key=lambda path: (not _is_part_record(path), path)
    )
    return Garbage(
        uri=uri,
        versions=tuple(names),
        tags=tuple(tag_names),
        retired=tuple(retired),
        files=tuple(old[path] for path in [*records, *other_files]),
        uploads=tuple(
            (upload_uri, upload_id) for upload_uri, upload_id, begun in uploads if begun <= now - grace_seconds
        ),
    )


def sweep(garbage: Garbage, progress: Callable[[int], None] = lambda _: None) -> None:
    """Delete the garbage. If the process is killed or this raises, the next sweep deletes the rest.

    Costs three listings for every DELETE_FILES files, besides their deletion.

    Args:
        garbage: a recent result of find().
        progress: called with the number of files deleted since the previous call.

    Raises:
        ConflictError: a version or a tag was made since find(), or is being made; nothing more is deleted.
        StorageError: files could not be deleted, all others were; or the versions could not be listed.
    """
    with Lease(garbage.uri, "sweep") as lease:
        _Sweep(garbage, lease, progress).run()


class _Sweep:
    """A sweep that is under way: what was deleted, and what could not be deleted."""

    def __init__(self, garbage: Garbage, lease: Lease, progress: Callable[[int], None]) -> None:
        self._garbage, self._lease, self._progress = garbage, lease, progress
        self._base = storage.join(garbage.uri, "")
        self._num_deleted = 0
        self._errors: dict[str, OSError] = {}

    def run(self) -> None:
        """Delete everything, and raise at the end for what could not be deleted."""
        files = [entry.uri[len(self._base) :] for entry in self._garbage.files]
        undeleted = self._delete(files[: len(self._garbage.retired)])
        alive = _alive(self._garbage.uri, [path.rsplit("/", 1)[-1].removesuffix(".json") for path in undeleted])
        files = [path for path in files[len(self._garbage.retired) :] if _is_garbage(path, alive)]
        undeleted = self._delete([path for path in files if _is_part_record(path)])
        parts = {_part_of(path) for path in undeleted}
        self._delete([path for path in files if not _is_part_record(path) and (_part_of(path) or path) not in parts])
        self._abort_uploads()
        if self._errors:
            raise self._failure("run gc again once this is mended; the others are deleted")

    def _delete(self, paths: Sequence[str]) -> list[str]:
        """Delete files in batches, and return those that could not be deleted."""
        undeleted = []
        for batch in _batches(paths):
            self._check_unchanged()
            errors = storage.delete_files([self._base + path for path in batch])
            undeleted += [path for path in batch if self._base + path in errors]
            self._errors |= errors
            self._num_deleted += len(batch) - len(errors)
            self._progress(len(batch) - len(errors))
            if self._num_deleted == 0 and len(self._errors) >= MAX_FAILURES:
                raise self._failure("the other files were not tried; run gc again once this is mended")
        return undeleted

    def _check_unchanged(self) -> None:
        """Stop if the garbage may have changed since it was listed. First the leases, then the versions (leases.py)."""
        self._lease.check()
        if self._lease.others("commit"):
            minutes = f"{leases.STALE_SECONDS / 60:.0f} minutes"
            cause = f"a version or a tag is being made (or a process that did so was killed in the last {minutes})"
        elif new := sorted(set(versions(self._garbage.uri)) - set(self._garbage.versions)):
            cause = f"{new[0]} was committed meanwhile"
        elif new := sorted(set(_tag_names(self._garbage.uri)) - set(self._garbage.tags)):
            cause = f"the tag {new[0].rsplit('/', 1)[-1]} was made meanwhile"
        else:
            return
        raise ConflictError(
            f"{self._garbage.uri}: {cause}; {self._num_deleted:,} of {len(self._garbage.files):,} files are deleted, "
            "run gc again for the others"
        )

    def _abort_uploads(self) -> None:
        for uri, upload_id in self._garbage.uploads:
            try:
                storage.abort_upload(uri, upload_id)
            except OSError as error:
                self._errors[f"{uri}: upload {upload_id}"] = error

    def _failure(self, advice: str) -> StorageError:
        uri, error = next(iter(self._errors.items()))
        text = str(error) if uri in str(error) else f"{uri}: {error}"
        return StorageError(f"{len(self._errors):,} files were not deleted, the first because of: {text}; {advice}")


def _batches(paths: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(paths), DELETE_FILES):
        yield paths[start : start + DELETE_FILES]


def _alive(uri: str, names: Sequence[str]) -> set[str]:
    """All paths, relative to the data set, that these versions need, and the part name of each shard of a stage."""
    alive = set[str]()
    for name in names:
        snapshot = Snapshot.open(uri, name)
        alive |= {f"{folder}/{snapshot.snapshot_id}.parquet" for folder in ("manifests", "query_counts")}
        alive |= {f"cards/{name}.{ending}" for ending in ("md", "html")}
        if overlap := snapshot.metadata.get("overlap"):
            alive.add(f"overlaps/{overlap['sha256']}.parquet")
        for shard in snapshot.shards:
            path = snapshot.below(shard)
            alive |= {path, _part_of(path) or path}
    return alive


def _tag_names(uri: str) -> list[str]:
    return [entry.uri for entry in storage.entries(storage.join(uri, "refs", "tags")) if entry.uri.endswith(".json")]


def _is_garbage(path: str, alive: set[str]) -> bool:
    """Whether an old file, or a stale lease, is garbage. The records of retired versions are not looked at."""
    if path.split("/")[0] in _HIDDEN:
        return bool(_LEFTOVER.fullmatch(path.rsplit("/", 1)[-1]))
    return path not in alive and not (_is_part_record(path) and _part_of(path) in alive)


def _is_lease(path: str) -> bool:
    return path.startswith(f"{leases.FOLDER}/")


def _is_part_record(path: str) -> bool:
    return bool(_PART_RECORD.fullmatch(path))


def _part_of(path: str) -> str | None:
    """The part of a record or a file: data/run/part-00003 for data/run/_part-00003.json and for
    data/run/part-00003-<hash>.parquet (cluster/parts.py); None for any other file."""
    match = _PART_RECORD.fullmatch(path) or _PART_FILE.fullmatch(path)
    return f"{match[1]}{match[2]}" if match else None
