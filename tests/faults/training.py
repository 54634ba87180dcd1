"""Runs of training that tests disturb, in processes of their own.

`python -m tests.faults.training FOLDER OUTPUT` trains on the snapshot FOLDER/set; with a third word on a cluster, whose
node with the workers goes away.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster
from ray.util import placement_group_table

from cluster.session import SessionConfig, session
from pipeline.data.reading import shard_infos
from pipeline.data.snapshot import Snapshot
from pipeline.train.config import TrainConfig
from pipeline.train.run import Pretraining
from pipeline.train.trainer import pretrain
from tests.perf.memory import descendants
from tests.pipeline.train.pairs import MODEL

NOTICE_SECONDS = 8
PREEMPTION = 2
"""DRAIN_NODE_REASON_PREEMPTION of Ray's autoscaler.proto, which comes without types."""
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
    """A run over a snapshot."""
    found = Snapshot.open(snapshot)
    shards = shard_infos(found.shards)
    return Pretraining(output=output, shards=shards, snapshot_id=found.snapshot_id, model=MODEL, train=train)


def when_complete(run: Pretraining, num_steps: int, do: Callable[[], None]) -> None:
    """Do something as soon as a run's checkpoint after so many steps is complete."""
    manifest = Path(run.output, "checkpoints", f"step-{num_steps:08d}", "manifest.json")

    def wait() -> None:
        while not manifest.exists():
            time.sleep(0.01)
        do()

    threading.Thread(target=wait, daemon=True).start()


def workers(ancestor: int) -> list[int]:
    """The training workers among the descendants of a process, by id."""
    found = []
    for process in descendants(ancestor):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            if b"TrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def train_on_a_node_that_goes(run: Pretraining) -> None:
    """It goes when there is a checkpoint, after a notice; another one stays."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=4)
    with session(SessionConfig(address=cluster.address)):
        gcs = ray._raylet.GcsClient(address=cluster.gcs_address)  # type: ignore[attr-defined]

        def drain() -> None:
            groups = [group for group in placement_group_table().values() if group["state"] == "CREATED"]
            (node,) = {node for group in groups for node in group["bundles_to_node_id"].values()}
            deadline_ms = int(1000 * (time.time() + NOTICE_SECONDS))
            accepted, why = gcs.drain_node(node, PREEMPTION, "spot", deadline_ms)
            assert accepted, why

        when_complete(run, 10, drain)
        pretrain(run)
    for node in [*cluster.worker_nodes, cluster.head_node]:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder, output, *goes = sys.argv[1:]
    run = run_of(f"{folder}/set", output, CONFIG if goes else replace(CONFIG, max_failures=1))
    if goes:
        train_on_a_node_that_goes(run)
    else:
        with session(SessionConfig(address="local", num_cpus=4)):
            pretrain(run)
