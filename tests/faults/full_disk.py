"""Fill a small disk, run a command, check its error message, free the disk, and run the command again.

Run by test_snapshots.py on a separate small file system.
"""

import contextlib
import io
import os
import sys
from pathlib import Path

import pytest

from jobs.options.launch import launch
from jobs.snapshot import SnapshotJob, arguments, main
from pipeline.data.snapshots.snapshot import Snapshot, versions
from tests.pipeline.data.datasets import make, pair_id, readable


def visible(folder: Path) -> dict[str, bytes]:
    """The content of all files by path. Fails if there are hidden files."""
    files = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in files if Path(name).name.startswith(".")], "leftovers"
    return files


def run(folder: Path) -> None:
    uri = str(folder / "set")
    make(uri, range(2000))
    ids = folder / "ids.txt"
    ids.write_text(pair_id(1))
    command = ["tombstone", uri, f"--pairs={ids}"]
    launch(SnapshotJob, main, arguments(command))
    before = visible(folder / "set")

    filler = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    filler.write_bytes(bytes(free - 40_000))  # leaves space for a record, but not for a shard
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit, match="2"):
        launch(SnapshotJob, main, arguments(["tombstone", uri, "--compact=true"]))
    line = errors.getvalue().strip().splitlines()[-1]
    assert line.startswith(f"error: '{uri}/data/compacted/"), line
    assert "No space left on device" in line, line
    assert "Free disk space" in line, line
    assert visible(folder / "set") == before
    assert versions(uri) == ["v00000001"]

    filler.unlink()
    launch(SnapshotJob, main, arguments(["tombstone", uri, "--compact=true"]))
    assert versions(uri) == ["v00000001", "v00000002"]
    assert readable(Snapshot.open(uri)) == [0, *range(2, 2000)]
    assert Snapshot.open(uri).verify() == []
    print("the second attempt succeeded")


if __name__ == "__main__":
    run(Path(sys.argv[1]))
