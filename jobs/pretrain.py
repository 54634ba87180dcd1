"""Pretraining on the pairs of a snapshot, contrastive unless another objective of figure 2 is asked for.

`python -m jobs.pretrain --config jobs/configs/tiny.toml --snapshot runs/pairs --output runs/pretrain`
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cluster.resources import Pool
from cluster.session import SessionConfig, session
from jobs.launch import launch
from pipeline.data.reading import shard_infos
from pipeline.data.snapshot import Snapshot
from pipeline.model.config import Objective, model_config
from pipeline.train.config import TrainConfig
from pipeline.train.run import Pretraining
from pipeline.train.trainer import pretrain


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """Train a model; a rerun goes on from the last checkpoint, and does nothing once the run is finished."""

    snapshot: str
    """A data set of jobs.curate; local or s3://."""
    output: str
    """Folder of the run: model/, metrics.jsonl, tensorboard/, curves.png, result.json."""
    snapshot_version: str | None = None
    """Which version of the data set, such as v00000003, or a tag; unset: the latest."""
    model: str = "tiny"
    """Name in the table of models (pipeline/model/config.py)."""
    objective: Objective = "contrastive"
    """What is learned from the pairs (pipeline/model/objectives.py)."""
    start_from: str | None = None
    """Folder or file of weights to start from, with their vocabulary: a model of jobs.pretrain, local or s3://, or a
    local one of others (docs/models.md). It may be of another resolution. Unset: initial values by train.seed."""
    train: TrainConfig = field(default_factory=TrainConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: PretrainJob) -> None:
    """Open the snapshot and train on it."""
    snapshot = Snapshot.open(job.snapshot, job.snapshot_version)
    run = Pretraining(
        output=job.output,
        shards=shard_infos(snapshot.shards),
        snapshot_id=snapshot.snapshot_id,
        model=replace(model_config(job.model), objective=job.objective),
        train=job.train,
        start_from=job.start_from,
    )
    workers = Pool(size=job.train.num_workers, cpus=job.train.cpus_per_worker, gpus=job.train.gpus_per_worker)
    with session(job.session, needs=[workers]):
        pretrain(run)


if __name__ == "__main__":
    launch(PretrainJob, main)
