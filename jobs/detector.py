"""Train a duplicate detector on the images of a snapshot, for jobs.overlap and jobs.curate.

`python -m jobs.detector --snapshot runs/pairs --detector tiny --train.batch_size 256 --output runs/detector`
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch

from cluster import storage
from cluster.runs import Run, identity
from cluster.telemetry import Progress
from jobs.options.launch import launch
from pipeline.data.duplicates.embedding_neighbours import sample
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.model.encoders import duplicate_detector
from pipeline.train.detector.duplicate_detector import DetectorTraining, new_detector, train_detector

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class DetectorJob:
    """Train a network that recognises two versions of the same image. It runs in this process, on one device."""

    snapshot: str
    """A data set from jobs.curate, local or s3://."""
    output: str
    """Folder of the run. It gets model/ and metrics.jsonl."""
    snapshot_version: str | None = None
    """Version of the data set, such as v00000003, or a tag. Unset: the latest version."""
    detector: str = "resnet50"
    """Name of the architecture in pipeline/model/encoders/duplicate_detector.py: tiny or resnet50."""
    max_images: int = 200_000
    """Approximate number of training images, sampled by hash. They are held in memory, about 20 KB each."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device that trains the network."""
    train: DetectorTraining = field(default_factory=DetectorTraining)


def main(job: DetectorJob) -> None:
    """Train and write the model. Does nothing if the run is finished."""
    config = duplicate_detector.detector_config(job.detector)
    if job.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: this machine has no GPU; use a machine with a GPU, or device=cpu")
    snapshot = Snapshot.open(job.snapshot, job.snapshot_version)
    run = Run.open(
        job.output,
        {"snapshot": snapshot.snapshot_id, "max_images": job.max_images, "detector": asdict(config)}
        | {"train": identity(job.train)},
    )
    model_uri = storage.join(run.uri, "model")
    if storage.exists(storage.join(model_uri, duplicate_detector.CONFIG_FILE)):
        logger.info("%s exists already; nothing to do", model_uri)
        return
    images = read_images(snapshot, job.max_images, job.train.seed)
    detector = new_detector(config, job.train.seed)
    steps = []
    with Progress("train", job.train.num_steps, "steps") as progress:
        for step in train_detector(detector, images, job.train, job.device):
            steps.append(step)
            progress.update(1)
    lines = "".join(json.dumps(asdict(step)) + "\n" for step in steps)
    storage.write_bytes(storage.join(run.uri, "metrics.jsonl"), lines.encode())
    # The configuration is written last and marks a complete model
    for name, data in duplicate_detector.to_files(detector).items():
        storage.write_bytes(storage.join(model_uri, name), data)
    logger.info("%s: %d images, accuracy at the last step %.3f", model_uri, len(images), steps[-1].accuracy)


def read_images(snapshot: Snapshot, max_images: int, seed: int) -> list[bytes]:
    """Read about `max_images` images of a snapshot, sampled by hash."""
    images: list[bytes] = []
    for shard in snapshot.shards:
        for row_group in range(len(shard.row_groups)):
            rows = shard.read_row_group(row_group, ["pair_id", "image"])
            images += sample(rows, max_images, snapshot.num_rows, seed)["image"].to_pylist()
    return images


if __name__ == "__main__":
    launch(DetectorJob, main)
