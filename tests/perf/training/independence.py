"""Check that losses do not depend on workers or restarts: `python -m tests.perf.training.independence FOLDER`.

Needs CLIP_DATA. `pretrain` trains for 206 steps on photographs: with 1, 2 and 4 workers; killed three times, with 2, 1,
2 and 2 workers in turn; and with one worker, killed once, which must give exactly the same weights. A rerun resumes
unfinished runs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from cluster import storage
from cluster.session import SessionConfig, session
from pipeline.data.snapshots.reading import shard_infos
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.train.config import TrainConfig
from pipeline.train.reading.plan import Plan
from pipeline.train.telemetry.metrics import Metrics, read_metrics
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.trainer import pretrain
from tests.perf.training.photographs import photographs, write_pairs
from tests.perf.training.quality import MODEL

NUM_STEPS = 206
"""One epoch of the 9,280 pairs of photographs."""
BATCH = 45
"""Not divisible by two or four workers."""
TRAIN = TrainConfig(
    global_batch_size=BATCH, epochs=1, learning_rate=1e-3, warmup_steps=50, precision="fp32", shuffle_row_groups=16,
    chunk_size=16, log_every_steps=1, checkpoint_every_steps=20, cpus_per_worker=1,
)  # fmt: skip
RUNS: dict[str, tuple[tuple[int, int | None], ...]] = {
    "1 worker": ((1, None),),
    "2 workers": ((2, None),),
    "4 workers": ((4, None),),
    "killed at 50, 100, 150; 2, 1, 2, 2 workers": ((2, 50), (1, 100), (2, 150), (2, None)),
    "1 worker, killed at 90": ((1, 90), (1, None)),
}
"""The number of workers of each attempt, and the step after which the attempt is killed."""
TIMEOUT_SECONDS = 600


def attempt(dataset: str, output: Path, num_workers: int, kill_after: int | None) -> None:
    """Execute a run in a subprocess until it ends or, with `kill_after`, kill the process after that step."""
    command = [
        sys.executable,
        "-m",
        "tests.perf.training.independence",
        str(output),
        "--attempt",
        dataset,
        str(num_workers),
    ]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with (output.parent / f"{output.name}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if kill_after and curve(output) and curve(output)[-1].step >= kill_after:
                break
            time.sleep(0.2)
        process.kill()
        if process.wait() != (-9 if kill_after else 0):
            raise RuntimeError(f"the run ended with status {process.returncode}; see {log.name}")


def train(dataset: str, output: Path, num_workers: int) -> None:
    """Start or resume the run, in this process."""
    snapshot = Snapshot.open(dataset)
    run = Pretraining(
        output=str(output), shards=shard_infos(snapshot.shards), snapshot_id=snapshot.snapshot_id, model=MODEL,
        train=replace(TRAIN, num_workers=num_workers),
    )  # fmt: skip
    with session(SessionConfig(address=os.environ["RAY_ADDRESS"])):
        pretrain(run)


def curve(output: Path) -> list[Metrics]:
    """The metrics that a run has logged."""
    return read_metrics(str(output), storage)


def check_shares(dataset: str) -> None:
    """Check that each step has the same samples for any number of workers, and each epoch has every sample once."""
    plan = Plan(shard_infos(Snapshot.open(dataset).shards), global_batch_size=BATCH, shuffle_row_groups=16, seed=0)
    read_rows: list[int] = []
    for step in range(NUM_STEPS):
        rows = plan.step(step)[1]
        read_rows += rows.tolist()
        for sizes in ((BATCH,), (22, 23), (11, 11, 11, 12)):
            parts = [part.numbers for rank in range(len(sizes)) for part in plan.share(step, sizes, rank)[1]]
            assert np.array_equal(np.concatenate(parts), rows), (step, sizes)
    assert len(read_rows) == len(set(read_rows)) == NUM_STEPS * BATCH


def compare(name: str, rows: Sequence[Metrics], expected: Sequence[Metrics]) -> str:
    """A table row that compares the losses of a run with those of the first run."""
    assert [row.step for row in rows] == [row.step for row in expected] == list(range(1, NUM_STEPS + 1)), name
    losses, expected_losses = (np.array([row.loss for row in metrics]) for metrics in (rows, expected))
    differences = np.abs(losses - expected_losses) / expected_losses
    return f"| {name} | {differences.max():.1e} | {np.median(differences):.1e} | {losses[0]:.4f} | {losses[-1]:.4f} |"


def main() -> None:
    """Finish all runs, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--attempt", nargs=2, metavar=("DATASET", "WORKERS"))
    options = parser.parse_args()
    folder = options.output.resolve()
    if options.attempt:
        dataset, num_workers = options.attempt
        train(dataset, folder, int(num_workers))
        return
    dataset = write_pairs(folder, photographs(72)[0])
    check_shares(dataset)
    outputs = {name: folder / "-".join(re.findall(r"\w+", name)) for name in RUNS}
    with session(SessionConfig(num_cpus=9)):
        for name, attempts in RUNS.items():
            for num_workers, kill_after in attempts:
                attempt(dataset, outputs[name], num_workers, kill_after)
    expected = curve(outputs["1 worker"])
    print("\n| run | largest relative difference of a loss | median | first loss | last loss |")
    print("|---|---:|---:|---:|---:|")
    for name, output in outputs.items():
        print(compare(name, curve(output), expected))
    weights = {
        name: hashlib.sha256((outputs[name] / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]
        for name in ("1 worker", "1 worker, killed at 90")
    }
    print("weights, sha256:", weights, "identical" if len(set(weights.values())) == 1 else "DIFFERENT")


if __name__ == "__main__":
    main()
