"""Delete retired versions, and files that no version refers to.

Mark: the latest version, the versions to keep and the versions with a tag are alive, and so are their manifests, counts
and shards. Sweep: everything else is deleted if it is older than the grace period by the storage's own clock. The grace
period must be longer than the longest job, because no version refers to a job's shards until the job commits.
Tombstones and tags are never deleted.

Files are listed before versions, so files of a commit between the two listings are marked as alive. If a new version
exists when the sweep begins, nothing is deleted. The records of retired versions are deleted first, so no version
exists without its shards. The records of parts come next; otherwise a repeated curation would treat a deleted part as
written. All other files come last.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster import storage
from cluster.storage import Entry
from cluster.stores import s3
from pipeline.data.snapshots.commit import ConflictError
from pipeline.data.snapshots.snapshot import Snapshot, tags, versions

NUM_THREADS = 8
_CONTENT = ("data", "manifests", "query_counts", "overlaps", "cards")
"""Folders of files that versions refer to."""
_HIDDEN = ("snapshots", "refs", "tombstones")
"""Folders in which only temporary files of killed writers are garbage."""
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_PART_RECORD = re.compile(r"_(part-\d+)\.(\d+\.)?json")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """The versions, files and uploads that a sweep would delete."""

    uri: str
    versions: tuple[str, ...]
    """All versions that existed when the garbage was listed."""
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
        now: current time in seconds since 1970.
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
    entries = [entry for folder in (*_CONTENT, *_HIDDEN) for entry in storage.entries(storage.join(uri, folder))]
    uploads = s3.unfinished_uploads(uri) if storage.is_s3(uri) else []
    names = versions(uri)
    if not names:
        raise FileNotFoundError(f"{uri}: no snapshot yet, so every file would be garbage; remove the folder by hand")
    old = {entry.uri[len(base) :]: entry for entry in entries if entry.modified <= now - grace_seconds}
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
        retired=tuple(retired),
        files=tuple(old[path] for path in [*records, *other_files]),
        uploads=tuple(
            (upload_uri, upload_id)
            for upload_uri, upload_id, begun in uploads
            if begun.timestamp() <= now - grace_seconds
        ),
    )


def sweep(garbage: Garbage, progress: Callable[[int], None] = lambda _: None) -> None:
    """Delete the garbage. If the process is killed, the next sweep deletes the rest.

    Args:
        garbage: a recent result of find().
        progress: called with the number of files deleted since the previous call.

    Raises:
        ConflictError: a version was committed since find(); nothing is deleted.
    """
    if new := sorted(set(versions(garbage.uri)) - set(garbage.versions)):
        raise ConflictError(f"{garbage.uri}: {new[0]} was committed meanwhile and nothing is deleted; run gc again")
    first = len(garbage.retired)
    num_records = sum(_is_part_record(entry.uri) for entry in garbage.files)
    for start, stop in ((0, first), (first, first + num_records), (first + num_records, len(garbage.files))):
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            for _ in threads.map(storage.delete, [entry.uri for entry in garbage.files[start:stop]]):
                progress(1)
    for upload_uri, upload_id in garbage.uploads:
        s3.abort_upload(upload_uri, upload_id)


def _alive(uri: str, names: list[str]) -> set[str]:
    """All paths, relative to the data set, that these versions need, and the part name of each shard of a stage."""
    alive = set()
    for name in names:
        snapshot = Snapshot.open(uri, name)
        alive |= {f"{folder}/{snapshot.snapshot_id}.parquet" for folder in ("manifests", "query_counts")}
        alive |= {f"cards/{name}.{ending}" for ending in ("md", "html")}
        if overlap := snapshot.metadata.get("overlap"):
            alive.add(f"overlaps/{overlap['sha256']}.parquet")
        for shard in snapshot.shards:
            path = snapshot.below(shard)
            alive |= {path, path.rpartition("-")[0]}
    return alive


def _is_garbage(path: str, alive: set[str]) -> bool:
    if path.split("/")[0] in _HIDDEN:
        return bool(_LEFTOVER.fullmatch(path.rsplit("/", 1)[-1]))
    return path not in alive and _part_of(path) not in alive


def _is_part_record(path: str) -> bool:
    return bool(_PART_RECORD.fullmatch(path.rsplit("/", 1)[-1]))


def _part_of(path: str) -> str | None:
    """The part of a record: data/run/part-00003 for data/run/_part-00003.json (cluster/parts.py)."""
    folder, _, name = path.rpartition("/")
    match = _PART_RECORD.fullmatch(name)
    return f"{folder}/{match[1]}" if match else None
