"""Test racing and killed commits: `python -m tests.perf.storage.commits` (several minutes).

Races: in every round, 16 processes commit at the same time on top of the same version, on a disk and on every imitated
S3 store on which commits are promised (tests/faults/stores/races.py). One must win; the others must get a
ConflictError, and then commit on top of the latest version. No version may be lost or told to two. Five rounds are one
data set, as the server of the tests lists long folders slowly. Kills: a process is killed before each file access, and
at each put to S3, once before and once after the put arrives. After each kill, either only the old version or also the
new version must exist, and all existing versions must be complete.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import boto3

from pipeline.data.snapshots.snapshot import versions
from tests.faults.killing import killed_at_file, killed_at_put
from tests.faults.racing import race
from tests.faults.stores.races import STORES, opened
from tests.faults.test_snapshots import NEW, check_whole, commit_new, prepare

NUM_COMMITTERS = 16
ROUNDS_OF_SET = 5


def kill_at_files(folder: Path) -> int:
    """Kill a commit before each file access; return the number of kills."""
    shards = prepare(str(folder / "model"))
    step, killed = 0, True
    while killed:
        step += 1
        uri = str(folder / str(step))
        shutil.copytree(folder / "model", uri)
        killed = killed_at_file(step, uri, commit_new, uri, shards)
        _check_and_repeat(uri, shards)
    return step - 1


def kill_at_puts(prefix: str, arrives: bool) -> int:
    """Kill a commit at each put; return the number of kills."""
    step, killed = 0, True
    while killed:
        step += 1
        uri = f"{prefix}/{step}-{arrives}"
        shards = prepare(uri)
        killed = killed_at_put(step, arrives, commit_new, uri, shards)
        _check_and_repeat(uri, shards)
    return step - 1


def _check_and_repeat(uri: str, shards: list[Any]) -> None:
    assert versions(uri) in (["v00000001"], ["v00000001", "v00000002"])
    check_whole(uri, NEW)
    commit_new(uri, shards)
    assert versions(uri) == ["v00000001", "v00000002"]
    check_whole(uri, NEW)


@contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server on loopback HTTP; yields the URI of a bucket."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    boto3.client("s3").create_bucket(Bucket="commits")
    yield "s3://commits"
    server.stop()


def main() -> None:
    """Race, kill, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stores", nargs="*", default=["disk", *STORES])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        print(f"| storage | rounds of {NUM_COMMITTERS} | versions | refused, then committed | median s | slowest s |")
        print("|---|---:|---:|---:|---:|---:|")
        for number, name in enumerate(options.stores):
            with nullcontext() if name == "disk" else opened(name):
                base = folder if name == "disk" else f"{bucket}/{number}"
                commits = [
                    made
                    for start in range(0, options.rounds, ROUNDS_OF_SET)
                    for made in race(f"{base}/race-{start}", NUM_COMMITTERS, min(ROUNDS_OF_SET, options.rounds - start))
                ]
            num_conflicts = sum(made.num_conflicts for made in commits)
            seconds = sorted(made.seconds for made in commits)
            figures = f"{len(commits)} | {num_conflicts} | {seconds[len(seconds) // 2]:.3f} | {seconds[-1]:.3f}"
            print(f"| {name} | {options.rounds} | {figures} |", flush=True)
        print(f"\nkilled before each of {kill_at_files(Path(folder, 'kills'))} file accesses: all versions complete")
        for arrives, description in ((False, "does not arrive"), (True, "still arrives")):
            number = kill_at_puts(f"{bucket}/kills", arrives)
            print(f"killed at each of {number} puts to S3, which {description}: all versions complete", flush=True)


if __name__ == "__main__":
    main()
