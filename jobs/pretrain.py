"""Pretrain a model on the pairs of a snapshot, with the contrastive objective or another one of figure 2.

`python -m jobs.pretrain --config jobs/configs/tiny.toml --snapshot runs/pairs --output runs/pretrain`
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from cluster.resources import Pool
from cluster.session import SessionConfig, session
from jobs.options.launch import launch
from pipeline.data.snapshots.reading import shard_infos
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.eval.flows import benchmark_flow
from pipeline.eval.flows.validation import ValidationConfig, score_model
from pipeline.model.config import Objective, model_config
from pipeline.train.config import TrainConfig
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.trainer import pretrain
from pipeline.train.workers.validation import Validation


@dataclass(frozen=True, kw_only=True)
class PretrainJob:
    """Train a model. A rerun continues from the last checkpoint, and does nothing if the run is finished."""

    snapshot: str
    """A data set from jobs.curate, local or s3://."""
    output: str
    """Folder of the run: model/, metrics.jsonl, validation.jsonl, tensorboard/, curves.png, result.json."""
    snapshot_version: str | None = None
    """Version of the data set, such as v00000003, or a tag. Unset: the latest version."""
    model: str = "tiny"
    """Name of the architecture in pipeline/model/config.py, such as ViT-B/32."""
    objective: Objective = "contrastive"
    """Training objective (pipeline/model/objectives/networks.py)."""
    start_from: str | None = None
    """Folder or file of the weights to start from; their vocabulary is used, too. A model from jobs.pretrain (local or
    s3://) or a local model from another tool (docs/models.md). Its image resolution may differ. Unset: the weights are
    initialised at random from train.seed."""
    train: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: PretrainJob) -> None:
    """Open the snapshot and the validation sets, and train."""
    snapshot = Snapshot.open(job.snapshot, job.snapshot_version)
    run = Pretraining(
        output=job.output,
        shards=shard_infos(snapshot.shards),
        snapshot_id=snapshot.snapshot_id,
        model=replace(model_config(job.model), objective=job.objective),
        train=job.train,
        start_from=job.start_from,
    )
    workers = Pool(size=job.train.workers, cpus=job.train.cpus_per_worker, gpus=job.train.gpus_per_worker)
    validation = build_validation(job.validation)
    with session(job.session, needs=[workers, *([validation.pool] if validation else [])]):
        pretrain(run, validation)


def build_validation(config: ValidationConfig) -> Validation | None:
    """How the validation scores models; None if the options name no validation sets."""
    if config.datasets is None:
        return None
    sources = benchmark_flow.open_sets(config.datasets)
    benchmark_flow.hashes_by_name(sources, config.datasets)
    device = "cuda" if config.gpus else "cpu"
    return Validation(
        score=partial(score_model, sources=sources, batch_size=config.batch_size, device=device),
        pool=Pool(cpus=config.cpus, gpus=config.gpus),
    )


if __name__ == "__main__":
    launch(PretrainJob, main)
