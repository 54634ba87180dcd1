"""Garbage: versions that are retired, and files that no version names.

Mark: the latest version, the versions kept and those with a tag are alive, and so are their manifests, counts and
shards. Sweep: what is not alive and was written longer ago than the grace period, by the storage's own clock. The
period has to be longer than the longest job, since a job's shards are named by nobody until it commits. Tombstones and
tags are never swept.

Files are listed before versions are: what a commit names between the two is seen to be alive. If there is another
version when the sweep begins, nothing is swept. Records of retired versions go first, so a version is never there
without its shards; then the records by which a curation that is run again would take a part for written; then the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cluster import s3, storage
from cluster.storage import Entry
from pipeline.data.snapshots.commit import ConflictError
from pipeline.data.snapshots.snapshot import Snapshot, tags, versions

NUM_THREADS = 8
_CONTENT = ("data", "manifests", "query_counts", "overlaps", "cards")
"""Folders of files that a version names."""
_HIDDEN = ("snapshots", "refs", "tombstones")
"""Folders in which only leftovers of killed writers are garbage."""
_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_PART_RECORD = re.compile(r"_(part-\d+)\.(\d+\.)?json")


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What a sweep would delete."""

    uri: str
    versions: tuple[str, ...]
    """All that there were when this was found."""
    retired: tuple[str, ...]
    """Versions to be given up."""
    files: tuple[Entry, ...]
    """In the order in which they go."""
    uploads: tuple[tuple[str, str], ...]
    """Uploads to S3 that never ended: URI and id."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the files."""
        return sum(entry.num_bytes for entry in self.files)


def find(uri: str, *, now: float, grace_seconds: float, keep_last: int | None = None) -> Garbage:
    """What can go.

    Args:
        uri: the data set.
        now: seconds since 1970.
        grace_seconds: what is younger stays.
        keep_last: versions to keep, besides those with a tag; all of them unless given.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: keep_last is not positive, or a version that is alive is damaged.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last={keep_last}: the latest version always stays; give 1 or more")
    uri = storage.absolute(uri)
    base = storage.join(uri, "")
    entries = [entry for folder in (*_CONTENT, *_HIDDEN) for entry in storage.entries(storage.join(uri, folder))]
    uploads = s3.unfinished_uploads(uri) if storage.is_s3(uri) else []
    names = versions(uri)
    if not names:
        raise FileNotFoundError(f"{uri}: no snapshot yet, so all of it would be garbage; remove it by hand")
    old = {entry.uri[len(base) :]: entry for entry in entries if entry.modified <= now - grace_seconds}
    kept = {*names[-(keep_last or len(names)) :], *tags(uri).values()}
    retired = [name for name in names if name not in kept and f"snapshots/{name}.json" in old]
    alive = _alive(uri, [name for name in names if name not in retired])
    records = [f"snapshots/{name}.json" for name in retired]
    rest = sorted(
        (path for path in old if _is_garbage(path, alive)), key=lambda path: (not _is_part_record(path), path)
    )
    return Garbage(
        uri=uri,
        versions=tuple(names),
        retired=tuple(retired),
        files=tuple(old[path] for path in [*records, *rest]),
        uploads=tuple((place, key) for place, key, begun in uploads if begun.timestamp() <= now - grace_seconds),
    )


def sweep(garbage: Garbage, tell: Callable[[int], None] = lambda _: None) -> None:
    """Delete it. Killed, it has deleted some, and the next sweep finds the rest.

    Args:
        garbage: what find() has found just now.
        tell: is called with the number of files deleted since the call before.

    Raises:
        ConflictError: a version was committed since; nothing is deleted.
    """
    if new := sorted(set(versions(garbage.uri)) - set(garbage.versions)):
        raise ConflictError(f"{garbage.uri}: {new[0]} was committed meanwhile and nothing is deleted; give gc again")
    first = len(garbage.retired)
    num_records = sum(_is_part_record(entry.uri) for entry in garbage.files)
    for start, stop in ((0, first), (first, first + num_records), (first + num_records, len(garbage.files))):
        with ThreadPoolExecutor(NUM_THREADS) as threads:
            for _ in threads.map(storage.delete, [entry.uri for entry in garbage.files[start:stop]]):
                tell(1)
    for place, upload_id in garbage.uploads:
        s3.abort_upload(place, upload_id)


def _alive(uri: str, names: list[str]) -> set[str]:
    """All paths below the data set that these versions need, and for each shard of a stage its part's name."""
    alive = set()
    for name in names:
        snapshot = Snapshot.open(uri, name)
        alive |= {f"{folder}/{snapshot.snapshot_id}.parquet" for folder in ("manifests", "query_counts")}
        alive |= {f"cards/{name}.{ending}" for ending in ("md", "html")}
        alive |= {f"overlaps/{overlap['sha256']}.parquet" for overlap in [snapshot.metadata.get("overlap")] if overlap}
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
    """data/run/part-00003 for the record of a part, data/run/_part-00003.json (cluster/parts.py)."""
    folder, _, name = path.rpartition("/")
    match = _PART_RECORD.fullmatch(name)
    return f"{folder}/{match[1]}" if match else None
