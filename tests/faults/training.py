"""Run trainings that tests disturb, in separate processes.

`python -m tests.faults.training FOLDER OUTPUT [EVENT]` trains on the snapshot FOLDER/set. With an EVENT it trains on a
cluster: at `goes` the node of the workers is drained, at `comes` a second node joins.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import ray
from ray.cluster_utils import Cluster
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.util import placement_group_table

from cluster.session import SessionConfig, session
from pipeline.data.snapshots.reading import shard_infos
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.train.config import TrainConfig
from pipeline.train.workers import build, loop, trainer
from pipeline.train.workers import worker_group as train_workers
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.step_decisions import Decision, StepDecisions
from pipeline.train.workers.trainer import pretrain
from pipeline.train.workers.validation import Validation
from tests.perf.training.memory import descendants
from tests.pipeline.train.pairs import MODEL

NOTICE_SECONDS = 8
PREEMPTION = 2
"""DRAIN_NODE_REASON_PREEMPTION of Ray's autoscaler.proto, which has no type stubs."""
CONFIG = TrainConfig(
    global_batch_size=16,
    epochs=10,
    learning_rate=3e-3,
    warmup_steps=2,
    precision="fp32",
    shuffle_row_groups=3,
    num_workers=2,
    chunk_size=1,
    log_every_steps=1,
    checkpoint_every_steps=10,
    max_failures=0,
)


def run_of(snapshot: str, output: str, train: TrainConfig = CONFIG) -> Pretraining:
    """A training run on a snapshot."""
    found = Snapshot.open(snapshot)
    shards = shard_infos(found.shards)
    return Pretraining(output=output, shards=shards, snapshot_id=found.snapshot_id, model=MODEL, train=train)


def when_complete(run: Pretraining, num_steps: int, do: Callable[[], None]) -> None:
    """Call `do` in a thread as soon as the checkpoint of a run after `num_steps` steps is complete."""
    manifest = Path(run.output, "checkpoints", f"step-{num_steps:08d}", "manifest.json")

    def wait() -> None:
        while not manifest.exists():
            time.sleep(0.01)
        do()

    threading.Thread(target=wait, daemon=True).start()


def workers(ancestor: int) -> list[int]:
    """The ids of the training workers among the descendants of a process."""
    found = []
    for process in descendants(ancestor):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the process ended meanwhile
            if b"TrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def train_on_a_node_that_leaves(run: Pretraining) -> None:
    """Train on two nodes. After the first checkpoint, drain the node of the workers with a notice."""
    with mock.patch.object(trainer, "train", _train_slowly), cluster_of(4, 4) as cluster:
        gcs = ray._raylet.GcsClient(address=cluster.gcs_address)  # type: ignore[attr-defined]

        def drain() -> None:
            groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
            (node,) = {node for group in groups for node in group["bundles_to_node_id"].values()}
            deadline_ms = int(1000 * (time.time() + NOTICE_SECONDS))
            accepted, message = gcs.drain_node(node, PREEMPTION, "spot", deadline_ms)
            assert accepted, message

        when_complete(run, 10, drain)
        pretrain(run)


def train_where_a_node_joins(run: Pretraining) -> None:
    """Train on one node. After the first checkpoint, add a node and make Ray notice it at once, not after 20 s."""
    with (
        mock.patch.object(train_workers, "RESIZE_SECONDS", 0.5),
        mock.patch.object(trainer, "train", _train_with_pauses),
        mock.patch("ray._private.utils.set_sigterm_handler"),  # threads must not set signal handlers
        cluster_of(2) as cluster,
    ):

        def add() -> None:
            cluster.add_node(num_cpus=2)
            coordinator = get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
            ray.get(coordinator.get_reserved_resources.remote("nobody", recompute=True))
            threading.Event().wait()  # Ray's processes end with the thread that started them

        when_complete(run, 2, add)
        pretrain(run)


class _PausingAlone(StepDecisions):
    """Pauses after each step of a single worker, so that a second node has time to join."""

    def after(self, num_steps: int) -> Decision:
        if self._num_workers == 1 and num_steps > 2:
            time.sleep(0.5)
        return super().after(num_steps)


def _train_with_pauses(run: Pretraining, tokenizer_json: str, run_lock: Any, validation: Validation | None) -> int:
    with mock.patch.object(build, "StepDecisions", _PausingAlone):
        return loop.train(run, tokenizer_json, run_lock, validation)


class _PausingLater(StepDecisions):
    """Pauses after each step behind the first checkpoint, so that a fast machine does not end the run too soon."""

    def after(self, num_steps: int) -> Decision:
        if num_steps > 10:
            time.sleep(0.2)
        return super().after(num_steps)


def _train_slowly(run: Pretraining, tokenizer_json: str, run_lock: Any, validation: Validation | None) -> int:
    with mock.patch.object(build, "StepDecisions", _PausingLater):
        return loop.train(run, tokenizer_json, run_lock, validation)


@contextlib.contextmanager
def cluster_of(*cpus: int) -> Iterator[Cluster]:
    """Start a cluster whose nodes have these numbers of CPUs, and connect to it."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for num_cpus in cpus:
        cluster.add_node(num_cpus=num_cpus)
    try:
        with session(SessionConfig(address=cluster.address)):
            yield cluster
    finally:
        for node in [*cluster.worker_nodes, cluster.head_node]:
            node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, output, *event = sys.argv[1:]
    snapshot = f"{folder}/set"
    if event == ["goes"]:
        train_on_a_node_that_leaves(run_of(snapshot, output))
    elif event == ["comes"]:
        elastic = replace(CONFIG, min_workers=1, checkpoint_every_steps=2)
        train_where_a_node_joins(run_of(snapshot, output, elastic))
    else:
        with session(SessionConfig(address="local", num_cpus=4)):
            pretrain(run_of(snapshot, output, replace(CONFIG, max_failures=1)))
