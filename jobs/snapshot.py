"""The versions of a data set: `python -m jobs.snapshot VERB URI`, where URI is a local folder or s3://bucket/prefix.

    list                                             a line for each version
    show      [--version V]                          the record of one: totals, funnel, configuration
    verify    [--version V]                          reads all of its bytes and compares
    diff      --version OLD [--against NEW]          pairs added, removed and changed
    export    --output FOLDER [--version V]          webdataset tars, which open_clip trains from
    tag       --tag NAME [--version V]               another name of a version, for good
    tombstone --pairs FILE | --urls FILE | --files FILE [--reason TEXT]
                                                     hides pairs from the readers of all versions
    tombstone --compact true                         a new version without the bytes of what is hidden
    gc        [--keep_last N] [--grace_hours H] [--delete true]
                                                     what no version needs; tells, or deletes

V is a version (v00000003) or a tag; the latest unless given. docs/snapshots.md tells more. jobs.import_pairs
is the way back from tars.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from itertools import takewhile
from typing import Literal, get_args

from cluster import storage
from cluster.runs import Run
from cluster.session import SessionConfig, session
from cluster.telemetry import Progress
from jobs.options.launch import launch
from pipeline.data.flows.import_export_flow import export_tars
from pipeline.data.snapshots import diff, garbage, takedown
from pipeline.data.snapshots.commit import tag
from pipeline.data.snapshots.snapshot import Snapshot, tags, versions
from pipeline.data.snapshots.tombstones import Kind
from pipeline.hashing import hash128

logger = logging.getLogger("clip")

Verb = Literal["list", "show", "verify", "diff", "export", "tag", "tombstone", "gc"]
NUM_SHOWN = 20
_LINE = "{:9}  {:25}  {:9}  {:>13}  {:>10}  {:>7}  {:>18}  {:12}  {}"


@dataclass(frozen=True, kw_only=True)
class SnapshotJob:
    """One verb on one data set."""

    verb: Verb
    """What to do: see above."""
    uri: str
    """The data set, local or s3://."""
    version: str | None = None
    """show, verify, diff, export, tag: a version or a tag; the latest unless given."""
    against: str | None = None
    """diff: the newer version; the latest unless given."""
    output: str | None = None
    """export: the folder of the tars, local or s3://."""
    tag: str | None = None
    """tag: the name."""
    pairs: str | None = None
    """tombstone: a file of pair ids, one a line."""
    urls: str | None = None
    """tombstone: a file of addresses of images, one a line."""
    files: str | None = None
    """tombstone: a file of sha256 of original image files, one a line."""
    reason: str = ""
    """tombstone: why; kept with it, and told by diff."""
    compact: bool = False
    """tombstone: make a version that does not hold what is hidden."""
    keep_last: int | None = None
    """gc: retire all versions but so many, and those with a tag; none unless given."""
    grace_hours: float = 168.0
    """gc: what is younger stays. Longer than the longest job."""
    delete: bool = False
    """gc: delete, not only tell."""
    session: SessionConfig = field(default_factory=SessionConfig)
    """export: where Ray is."""


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
    """Do it, and print what people or programs want to know.

    Raises:
        ValueError: an option is not one of the verb; or a shard is not what the manifest says (verify).
    """
    for option in fields(job):
        own = option.default is MISSING or option.name in _OPTIONS[job.verb]
        if not own and getattr(job, option.name) != option.default:
            verbs = " and ".join(verb for verb, options in _OPTIONS.items() if option.name in options)
            raise ValueError(f"--{option.name}: is an option of {verbs}, not of {job.verb}")
    _VERBS[job.verb](job)


def _list(job: SnapshotJob) -> None:
    named = tags(job.uri)
    print(_LINE.format("version", "created", "parent", "pairs", "taken down", "shards", "bytes", "id", "tags"))
    for name in versions(job.uri):
        found = Snapshot.open(job.uri, name)
        numbers = (found.num_rows, found.num_taken_down, len(found.shards), found.num_bytes)
        own_tags = " ".join(sorted(tag for tag, version in named.items() if version == name))
        words = (found.metadata["created"], found.metadata["parent"] or "-", *(f"{number:,}" for number in numbers))
        print(_LINE.format(name, *words, found.snapshot_id[:12], own_tags).rstrip())


def _show(job: SnapshotJob) -> None:
    found = Snapshot.open(job.uri, job.version)
    named = sorted(tag for tag, version in tags(job.uri).items() if version == found.name)
    json.dump(
        {**found.metadata, "taken_down": found.num_taken_down, "tags": named}, sys.stdout, indent=1, sort_keys=True
    )
    print()


def _verify(job: SnapshotJob) -> None:
    found = Snapshot.open(job.uri, job.version)
    with Progress("verify", found.num_bytes, "bytes") as progress:
        faults = found.verify(progress.update)
    if faults:
        raise ValueError(f"{found.name} of {found.uri} is damaged: {'; '.join(faults)}")
    print(f"{found.name}: {len(found.shards)} shards, {found.num_rows:,} pairs, all as the manifest says")


def _diff(job: SnapshotJob) -> None:
    if job.version is None:
        raise ValueError("--version: name the version to compare with --against, or with the latest")
    old, new = Snapshot.open(job.uri, job.version), Snapshot.open(job.uri, job.against)
    with Progress("diff", diff.num_shards_to_read(old, new), "shards") as progress:
        found = diff.diff(old, new, progress.update)
    shards = (found.num_shards_old, found.num_shards_new, found.num_shards_shared)
    print(f"{old.name} -> {new.name}: {shards[0]} and {shards[1]} shards, {shards[2]} in both")
    for kind, count in (("added", found.num_added), ("removed", found.num_removed), ("changed", found.num_changed)):
        print(f"{kind:8}{count:>13,}  {' '.join(found.examples[kind])}".rstrip())
    for reason, count in sorted(found.removed_by_reason.items()):
        print(f"  taken down: {count:,}  {reason}".rstrip())


def _export(job: SnapshotJob) -> None:
    if job.output is None:
        raise ValueError("--output: name the folder of the tars")
    found = Snapshot.open(job.uri, job.version)
    # Hidden, so that whoever lists the folder finds tars
    run = Run.open(
        storage.join(job.output, ".export"),
        {"snapshot_id": found.snapshot_id, "taken_down": hash128(*(str(shard.taken_down) for shard in found.shards))},
    )
    with session(job.session):
        tars = export_tars(run, found, storage.absolute(job.output))
    print(f"{found.name}: {sum(tars['num_pairs'].to_pylist()):,} pairs in {tars.num_rows} tars in {job.output}")


def _tag(job: SnapshotJob) -> None:
    if job.tag is None:
        raise ValueError("--tag: give the version a name")
    version = Snapshot.open(job.uri, job.version).name
    tag(job.uri, job.tag, version)
    print(f"{job.tag}: {version}")


def _tombstone(job: SnapshotJob) -> None:
    named: dict[Kind, str | None] = {"pair_id": job.pairs, "url": job.urls, "sha256": job.files}
    names = {kind: _lines(named[kind]) for kind in get_args(Kind) if named[kind]}
    if not any(names.values()) and not job.compact:
        raise ValueError(
            "--pairs, --urls, --files: name a file that says what to take down, one a line; or --compact true"
        )
    if names:
        with Progress("search", None, "shards") as progress:
            done = takedown.take_down(job.uri, names, job.reason, progress.update)
        print(f"{done.num_pairs:,} pairs are taken down from all versions")
        if done.not_found:
            shown = ", ".join(done.not_found[:NUM_SHOWN])
            logger.warning("%d names are nowhere, and will be taken down if they come: %s", len(done.not_found), shown)
    if job.compact:
        with Progress("compact", None, "shards") as progress:
            compacted = takedown.compact(job.uri, progress.update)
        print(f"{compacted.name}: {compacted.num_rows:,} pairs; older versions hold the others until gc retires them")


def _gc(job: SnapshotJob) -> None:
    found = garbage.find(job.uri, now=time.time(), grace_seconds=3600 * job.grace_hours, keep_last=job.keep_last)
    for entry in found.files:
        print(f"{entry.num_bytes:>15,}  {entry.uri}")
    for place, _ in found.uploads:
        print(f"{'upload':>15}  {place}")
    total = f"{len(found.files):,} files, {found.num_bytes:,} bytes, {len(found.uploads)} unfinished uploads"
    if job.delete:
        with Progress("gc", len(found.files), "files") as progress:
            garbage.sweep(found, progress.update)
    print(f"{total}: {'deleted' if job.delete else 'would go; delete them with --delete true'}")


def _lines(uri: str | None) -> list[str]:
    """What is on the lines of a file."""
    lines = storage.read_bytes(uri or "").decode().splitlines()
    return [line.strip() for line in lines if line.strip()]


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
    """The command line with the two leading words as the options they stand for."""
    words = list(takewhile(lambda word: not word.startswith("-"), argv[:2]))
    return [f"--{name}={word}" for name, word in zip(("verb", "uri"), words, strict=False)] + list(argv[len(words) :])


if __name__ == "__main__":
    launch(SnapshotJob, main, arguments(sys.argv[1:]))
