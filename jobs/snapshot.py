"""Manage the versions of a data set: `python -m jobs.snapshot VERB URI`; URI is a local folder or s3://bucket/prefix.

    list                                             list all versions, one per line
    show      [--version V]                          print the record of a version: totals, funnel, configuration
    verify    [--version V]                          read all shards and compare them with the manifest
    diff      --version OLD [--against NEW]          print the pairs that were added, removed and changed
    export    --output FOLDER [--version V]          write webdataset tars, which open_clip can train on
    tag       --tag NAME [--version V]               give a version a permanent second name
    tombstone --pairs FILE | --urls FILE | --files FILE [--reason TEXT]
                                                     hide pairs from the readers of all versions
    tombstone --compact true                         commit a new version without the bytes of hidden pairs
    gc        [--keep_last N] [--grace_hours H] [--delete true]
                                                     list, or delete, the files that no version needs

V is a version (v00000003) or a tag; the default is the latest version. docs/snapshots.md explains the verbs.
jobs.import_pairs imports exported tars.
"""

from __future__ import annotations

import codecs
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import takewhile
from typing import Literal

from cluster import storage
from cluster.runs import Run
from cluster.session import SessionConfig, session
from cluster.telemetry import Progress
from jobs.options.launch import launch
from pipeline.data.flows.import_export_flow import export_tars
from pipeline.data.snapshots import diff, garbage, takedown
from pipeline.data.snapshots.commit import tag
from pipeline.data.snapshots.leases import storage_time
from pipeline.data.snapshots.snapshot import Snapshot, tags, versions
from pipeline.data.snapshots.tombstones import Kind
from pipeline.hashing import hash128

logger = logging.getLogger("clip")

Verb = Literal["list", "show", "verify", "diff", "export", "tag", "tombstone", "gc"]
NUM_SHOWN = 20
_LINE = "{:9}  {:25}  {:9}  {:>13}  {:>10}  {:>7}  {:>18}  {:12}  {}"


@dataclass(frozen=True, kw_only=True)
class SnapshotJob:
    """Manage the versions of a data set: list, show, verify, diff, export, tag, take down pairs, collect garbage."""

    verb: Verb
    """The action. The names before the colons below say which verbs use an option."""
    uri: str
    """The data set, a local folder or s3://bucket/prefix."""
    version: str | None = None
    """show, verify, diff, export, tag: version, such as v00000003, or tag. diff requires it, as the older version; for
    the other verbs the default is the latest version."""
    against: str | None = None
    """diff: the newer version or its tag. Unset: the latest version."""
    output: str | None = None
    """export: folder for the tars, local or s3://."""
    tag: str | None = None
    """tag: the new name for the version. It cannot be changed later."""
    pairs: str | None = None
    """tombstone: file of pair ids to take down, one per line."""
    urls: str | None = None
    """tombstone: file of image URLs to take down, one per line."""
    files: str | None = None
    """tombstone: file of SHA-256 hashes of original image files to take down, one per line."""
    reason: str = ""
    """tombstone: reason for taking the pairs down. It is stored with the tombstone and printed by diff."""
    compact: bool = False
    """tombstone: commit a new version whose shards do not contain the hidden pairs."""
    keep_last: int | None = None
    """gc: number of latest versions to keep; all others without a tag are retired. Unset: no version is retired."""
    grace_hours: float = 168.0
    """gc: files that are younger than this are kept. Must exceed the duration of the longest job."""
    delete: bool = False
    """gc: delete the files. Without it, they are only listed, with ages by the clock of this machine."""
    session: SessionConfig = field(default_factory=SessionConfig)
    """export: the Ray cluster to use."""


_OPTIONS: Mapping[Verb, frozenset[str]] = {
    "list": frozenset(),
    "show": frozenset({"version"}),
    "verify": frozenset({"version"}),
    "diff": frozenset({"version", "against"}),
    "export": frozenset({"version", "output"}),
    "tag": frozenset({"version", "tag"}),
    "tombstone": frozenset({"pairs", "urls", "files", "reason", "compact"}),
    "gc": frozenset({"keep_last", "grace_hours", "delete"}),
}


def main(job: SnapshotJob) -> None:
    """Run the verb, and print its result for people or programs.

    Raises:
        ValueError: an option does not belong to the verb, or a shard differs from the manifest (verify).
    """
    for option in fields(job):
        own = option.default is MISSING or option.name in _OPTIONS[job.verb]
        if not own and getattr(job, option.name) != option.default:
            verbs = ", ".join(verb for verb, options in _OPTIONS.items() if option.name in options)
            raise ValueError(f"--{option.name}: this option belongs to {verbs}, not to {job.verb}; remove it")
    _VERBS[job.verb](job)


def _list(job: SnapshotJob) -> None:
    version_of_tag = tags(job.uri)
    print(_LINE.format("version", "created", "parent", "pairs", "taken down", "shards", "bytes", "id", "tags"))
    for name in versions(job.uri):
        snapshot = Snapshot.open(job.uri, name)
        numbers = (snapshot.num_rows, snapshot.num_taken_down, len(snapshot.shards), snapshot.num_bytes)
        own_tags = " ".join(sorted(tag for tag, version in version_of_tag.items() if version == name))
        columns = (
            snapshot.metadata["created"],
            snapshot.metadata["parent"] or "-",
            *(f"{number:,}" for number in numbers),
        )
        print(_LINE.format(name, *columns, snapshot.snapshot_id[:12], own_tags).rstrip())


def _show(job: SnapshotJob) -> None:
    snapshot = Snapshot.open(job.uri, job.version)
    own_tags = sorted(tag for tag, version in tags(job.uri).items() if version == snapshot.name)
    record = {**snapshot.metadata, "taken_down": snapshot.num_taken_down, "tags": own_tags}
    json.dump(record, sys.stdout, indent=1, sort_keys=True)
    print()


def _verify(job: SnapshotJob) -> None:
    snapshot = Snapshot.open(job.uri, job.version)
    with Progress("verify", snapshot.num_bytes, "bytes") as progress:
        faults = snapshot.verify(progress.update)
    if faults:
        raise ValueError(f"{snapshot.name} of {snapshot.uri} is damaged: {'; '.join(faults)}")
    print(f"{snapshot.name}: {len(snapshot.shards)} shards, {snapshot.num_rows:,} pairs, all match the manifest")


def _diff(job: SnapshotJob) -> None:
    if job.version is None:
        raise ValueError("--version: give the older version; it is compared with --against, or with the latest version")
    old, new = Snapshot.open(job.uri, job.version), Snapshot.open(job.uri, job.against)
    with Progress("diff", diff.num_shards_to_read(old, new), "shards") as progress:
        changes = diff.diff(old, new, progress.update)
    shards = (changes.num_shards_old, changes.num_shards_new, changes.num_shards_shared)
    print(f"{old.name} -> {new.name}: {shards[0]} and {shards[1]} shards, {shards[2]} in both")
    counts = {"added": changes.num_added, "removed": changes.num_removed, "changed": changes.num_changed}
    for kind, count in counts.items():
        print(f"{kind:8}{count:>13,}  {' '.join(changes.examples[kind])}".rstrip())
    for reason, count in sorted(changes.removed_by_reason.items()):
        print(f"  taken down: {count:,}  {reason}".rstrip())


def _export(job: SnapshotJob) -> None:
    if job.output is None:
        raise ValueError("--output: give a folder for the tars")
    snapshot = Snapshot.open(job.uri, job.version)
    # The run is in a hidden folder, so that a listing of the output shows only the tars and their sizes
    run = Run.open(
        storage.join(job.output, ".export"),
        {
            "snapshot_id": snapshot.snapshot_id,
            "taken_down": hash128(*(str(shard.taken_down) for shard in snapshot.shards)),
        },
    )
    with session(job.session):
        tars = export_tars(run, snapshot, storage.absolute(job.output))
    print(f"{snapshot.name}: {sum(tars['num_pairs'].to_pylist()):,} pairs in {tars.num_rows} tars in {job.output}")


def _tag(job: SnapshotJob) -> None:
    if job.tag is None:
        raise ValueError("--tag: give a name for the version")
    version = Snapshot.open(job.uri, job.version).name
    tag(job.uri, job.tag, version)
    print(f"{job.tag}: {version}")


def _tombstone(job: SnapshotJob) -> None:
    files: dict[Kind, tuple[str, str | None]] = {
        "pair_id": ("pairs", job.pairs),
        "url": ("urls", job.urls),
        "sha256": ("files", job.files),
    }
    names = {kind: _lines(option, uri) for kind, (option, uri) in files.items() if uri}
    if not any(names.values()) and not job.compact:
        raise ValueError(
            "--pairs, --urls, --files: give a file of what to take down, one entry per line; or give --compact true"
        )
    if names:
        with Progress("search", None, "shards") as progress:
            done = takedown.take_down(job.uri, names, job.reason, progress.update)
        print(f"{done.num_pairs:,} pairs have been taken down from all versions")
        if done.not_found:
            shown = ", ".join(done.not_found[:NUM_SHOWN])
            message = "%d entries match no pair; later pairs that match them will be taken down as well: %s"
            logger.warning(message, len(done.not_found), shown)
    if job.compact:
        with Progress("compact", None, "shards") as progress:
            compacted = takedown.compact(job.uri, progress.update)
        print(f"{compacted.name}: {compacted.num_rows:,} pairs; gc deletes the others when it retires older versions")


def _gc(job: SnapshotJob) -> None:
    # Ages that decide a deletion are measured by the storage's clock. Asking for it needs a write
    now = storage_time(job.uri) if job.delete and versions(job.uri) else time.time()
    unneeded = garbage.find(job.uri, now=now, grace_seconds=3600 * job.grace_hours, keep_last=job.keep_last)
    for entry in unneeded.files:
        print(f"{entry.num_bytes:>15,}  {entry.uri}")
    for uri, _ in unneeded.uploads:
        print(f"{'upload':>15}  {uri}")
    total = f"{len(unneeded.files):,} files, {unneeded.num_bytes:,} bytes, {len(unneeded.uploads)} unfinished uploads"
    if job.delete:
        with Progress("gc", len(unneeded.files), "files") as progress:
            garbage.sweep(unneeded, progress.update)
    print(f"{total}: {'deleted' if job.delete else 'no version needs them; give --delete true to delete them'}")


def _lines(option: str, uri: str) -> list[str]:
    """Read the non-empty lines of a file, without surrounding whitespace and without a byte order mark.

    Lines end with \\n, \\r\\n or \\r only, because a URL may contain other ends of `str.splitlines`, such as U+2028.

    Raises:
        ValueError: the file is not UTF-8. The message names the option, the file and the line.
    """
    data = storage.read_bytes(uri).removeprefix(codecs.BOM_UTF8)
    lines = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    names = []
    for number, line in enumerate(lines, 1):
        try:
            names.append(line.decode().strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"--{option}={uri}: line {number} is not UTF-8 ({error}); convert the file") from error
    return [name for name in names if name]


_VERBS: Mapping[Verb, Callable[[SnapshotJob], None]] = {
    "list": _list,
    "show": _show,
    "verify": _verify,
    "diff": _diff,
    "export": _export,
    "tag": _tag,
    "tombstone": _tombstone,
    "gc": _gc,
}


def arguments(argv: Sequence[str]) -> list[str]:
    """Turn the two leading words of the command line into the options --verb and --uri."""
    words = list(takewhile(lambda word: not word.startswith("-"), argv[:2]))
    return [f"--{name}={word}" for name, word in zip(("verb", "uri"), words, strict=False)] + list(argv[len(words) :])


if __name__ == "__main__":
    launch(SnapshotJob, main, arguments(sys.argv[1:]))
