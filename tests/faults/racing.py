"""Let processes commit to one data set at the same time, and check that no version is lost or doubled."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

from pipeline.data.snapshots.commit import ConflictError, commit
from pipeline.data.snapshots.snapshot import Snapshot, versions
from tests.pipeline.data.datasets import add_shard, counts, make, readable

TIMEOUT_SECONDS = 300.0
"""How long the processes wait for each other, and the check for their answers."""

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pandas", "tests.faults.test_snapshots"])  # as killing.py does


class Committed(NamedTuple):
    """One commit of one process."""

    round_number: int
    committer: int
    name: str
    num_conflicts: int
    """1 if another process won the version after the common parent."""
    seconds: float


def race(uri: str, num_committers: int, rounds: int) -> list[Committed]:
    """Run the committers, check the versions that they make, and return their commits.

    In every round all processes read the latest version, and then commit on top of it at the same time. One of them
    must win. The others must get a ConflictError, and then commit on top of whatever is the latest version.
    """
    make(uri, [0])
    barrier, answers = _PROCESSES.Barrier(num_committers, timeout=TIMEOUT_SECONDS), _PROCESSES.Queue()
    committers = [
        _PROCESSES.Process(target=_committer, args=(dict(os.environ), uri, number, rounds, barrier, answers))
        for number in range(num_committers)
    ]
    for process in committers:
        process.start()
    outcomes: list[Committed] = [answers.get(timeout=TIMEOUT_SECONDS) for _ in range(rounds * num_committers)]
    for process in committers:
        process.join()
        assert process.exitcode == 0, process.exitcode
    names = versions(uri)
    assert names == [f"v{number:08d}" for number in range(1, rounds * num_committers + 2)], "no number is left out"
    assert sorted(outcome.name for outcome in outcomes) == names[1:], "and none is told to two"
    opened = [Snapshot.open(uri, name) for name in names]
    assert [version.metadata["parent"] for version in opened] == [None, *names[:-1]]
    for round_number in range(rounds):
        num_conflicts = [outcome.num_conflicts for outcome in outcomes if outcome.round_number == round_number]
        assert sorted(num_conflicts) == [0, *[1] * (num_committers - 1)], "one wins, the others get a conflict"
    for outcome in outcomes:
        assert readable(opened[names.index(outcome.name)]) == [_pair(outcome.round_number, outcome.committer)]
    assert all(version.verify() == [] for version in opened)
    return outcomes


def _pair(round_number: int, committer: int) -> int:
    """The number of the only pair that a committer commits in a round."""
    return 1 + 1_000 * round_number + committer


def _committer(environment: dict[str, str], uri: str, number: int, rounds: int, barrier: Barrier, answers: Any) -> None:
    os.environ.update(environment)  # the server of forks was started with an earlier one
    for round_number in range(rounds):
        shard = add_shard(uri, [_pair(round_number, number)])
        barrier.wait()
        parent = versions(uri)[-1]
        barrier.wait()  # all processes have read the same latest version
        started, num_conflicts = time.monotonic(), 0
        try:
            made = commit(uri, [shard], counts([]), {"run": str(number)}, parent=parent)
        except ConflictError:
            num_conflicts = 1
            made = commit(uri, [shard], counts([]), {"run": str(number)})
        answers.put(Committed(round_number, number, made.name, num_conflicts, time.monotonic() - started))
        barrier.wait()
