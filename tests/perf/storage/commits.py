"""Test racing and killed commits: `python -m tests.perf.storage.commits` (several minutes).

Races: in every round, 4 processes commit at the same time on top of the same version. One must win; the others must get
a ConflictError, and then commit on top of the latest version. Kills: a process is killed before each file access, and
at each put to S3, once before and once after the put arrives. After each kill, either only the old version or also the
new version must exist, and all existing versions must be complete.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import boto3

from pipeline.data.snapshots.commit import ConflictError, commit
from pipeline.data.snapshots.snapshot import Snapshot, versions
from tests.faults.killing import killed_at_file, killed_at_put
from tests.faults.test_snapshots import NEW, check_whole, commit_new, prepare
from tests.pipeline.data.datasets import add_shard, counts, make, readable

NUM_COMMITTERS = 4
_PROCESSES = multiprocessing.get_context("spawn")


def race(uri: str, rounds: int) -> dict[str, float]:
    """Run the committers, and check the versions that they create."""
    make(uri, [0])
    barrier, answers = _PROCESSES.Barrier(NUM_COMMITTERS), _PROCESSES.Queue()
    committers = [
        _PROCESSES.Process(target=_committer, args=(uri, number, rounds, barrier, answers))
        for number in range(NUM_COMMITTERS)
    ]
    for process in committers:
        process.start()
    outcomes: list[tuple[int, int, str, int, float]] = [answers.get() for _ in range(rounds * NUM_COMMITTERS)]
    for process in committers:
        process.join()
        assert process.exitcode == 0, process.exitcode
    names = versions(uri)
    assert names == [f"v{number:08d}" for number in range(1, rounds * NUM_COMMITTERS + 2)], (
        "version numbers are consecutive"
    )
    opened = [Snapshot.open(uri, name) for name in names]
    assert [version.metadata["parent"] for version in opened] == [None, *names[:-1]]
    for round_number in range(rounds):
        of_round = [outcome for outcome in outcomes if outcome[0] == round_number]
        assert sorted(outcome[3] for outcome in of_round) == [0, 1, 1, 1], "one wins, three get a conflict"
    for round_number, committer, name, _, _ in outcomes:
        assert readable(opened[names.index(name)]) == [1 + round_number * NUM_COMMITTERS + committer]
    assert all(version.verify() == [] for version in opened)
    seconds = sorted(outcome[4] for outcome in outcomes)
    return {
        "versions": len(names) - 1,
        "conflicts": sum(outcome[3] for outcome in outcomes),
        "median": seconds[len(seconds) // 2],
        "slowest": seconds[-1],
    }


def _committer(uri: str, number: int, rounds: int, barrier: Barrier, answers: Any) -> None:
    for round_number in range(rounds):
        shard = add_shard(uri, [1 + round_number * NUM_COMMITTERS + number])
        barrier.wait()
        parent = versions(uri)[-1]
        barrier.wait()  # all processes have read the same latest version
        started, conflicts = time.monotonic(), 0
        try:
            made = commit(uri, [shard], counts([]), {"run": str(number)}, parent=parent)
        except ConflictError:
            conflicts = 1
            made = commit(uri, [shard], counts([]), {"run": str(number)})
        answers.put((round_number, number, made.name, conflicts, time.monotonic() - started))
        barrier.wait()


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
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        print("| storage | rounds of 4 | versions | refused, then committed | median s | slowest s |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, uri in (("disk", f"{folder}/race"), ("S3 over HTTP", f"{bucket}/race")):
            found = race(uri, rounds)
            counts_text = f"{found['versions']:.0f} | {found['conflicts']:.0f}"
            figures = f"{counts_text} | {found['median']:.3f} | {found['slowest']:.3f}"
            print(f"| {name} | {rounds} | {figures} |", flush=True)
        print(f"\nkilled before each of {kill_at_files(Path(folder, 'kills'))} file accesses: all versions complete")
        for arrives, description in ((False, "does not arrive"), (True, "still arrives")):
            number = kill_at_puts(f"{bucket}/kills", arrives)
            print(f"killed at each of {number} puts to S3, which {description}: all versions complete", flush=True)


if __name__ == "__main__":
    main()
