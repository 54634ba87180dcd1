"""Look at the versions of a data set: `python -m jobs.snapshot list|show|verify URI [--version v00000003]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from jobs.launch import launch
from pipeline.data.snapshot import Snapshot, versions


@dataclass(frozen=True, kw_only=True)
class SnapshotJob:
    """One verb on one data set."""

    verb: Literal["list", "show", "verify"]
    """list: all versions. show: the record of one. verify: read all of its bytes and compare."""
    uri: str
    """The data set, local or s3://."""
    version: str | None = None
    """Name of a version, such as v00000003; the latest unless given."""


def main(job: SnapshotJob) -> None:
    """Print what was asked for; `verify` raises ValueError where a shard is not what the manifest says."""
    if job.verb == "list":
        for name in versions(job.uri):
            snapshot = Snapshot.open(job.uri, name)
            print(f"{name}  {snapshot.num_rows:>12,} pairs  {snapshot.num_bytes:>15,} bytes  {snapshot.snapshot_id}")
        return
    snapshot = Snapshot.open(job.uri, job.version)
    if job.verb == "show":
        json.dump(dict(snapshot.metadata), sys.stdout, indent=1, sort_keys=True)
        print()
        return
    faults = snapshot.verify()
    if faults:
        raise ValueError(f"{snapshot.name} of {job.uri} is damaged: {'; '.join(faults)}")
    print(f"{snapshot.name}: {len(snapshot.shards)} shards, {snapshot.num_rows:,} pairs, all as the manifest says")


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line with the two leading words as the options they stand for."""
    words = list(takewhile(lambda word: not word.startswith("-"), argv[:2]))
    return [f"--{name}={word}" for name, word in zip(("verb", "uri"), words, strict=False)] + list(argv[len(words) :])


if __name__ == "__main__":
    launch(SnapshotJob, main, arguments(sys.argv[1:]))
