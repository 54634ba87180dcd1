"""Compare training objectives as in figure 2: zero-shot accuracy as a function of images seen.

`python -m jobs.objectives --snapshot runs/pairs --datasets runs/sets --output runs/objectives`
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa

from cluster import parquet, storage
from cluster.resources import Pool
from cluster.runs import Run, identity
from cluster.session import SessionConfig, session
from jobs.options.launch import launch
from pipeline.data.snapshots.reading import shard_infos
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.eval.flows import benchmark_flow
from pipeline.eval.report.objectives import CURVES, compare, draw_figure
from pipeline.eval.report.report import ReportInputs, render_report
from pipeline.eval.sets.evaluation_sets import Kind
from pipeline.model.config import OBJECTIVES, Objective, model_config
from pipeline.train.config import TrainConfig
from pipeline.train.workers.run import Pretraining, kept_model
from pipeline.train.workers.trainer import pretrain

logger = logging.getLogger("clip")

STEP_RATIO = 2**0.5
"""Ratio between the numbers of images that successive kept models have seen."""


@dataclass(frozen=True, kw_only=True)
class ObjectivesJob:
    """Train each objective with each seed, and score the models kept during training. A rerun does the missing work.
    It may name other objectives and seeds; the results contain only those that it names."""

    snapshot: str
    """A data set from jobs.curate, local or s3://."""
    datasets: str
    """Folder of evaluation sets. Only sets of the kind `classification` are scored."""
    output: str
    """Folder for runs/, features/, curves.parquet, figure2.png and report.html."""
    snapshot_version: str | None = None
    """Version of the data set, such as v00000003, or a tag. Unset: the latest version."""
    model: str = "tiny"
    """Name of the architecture in pipeline/model/config.py. All objectives use its image tower, and its sizes for the
    text tower or text decoder."""
    objectives: tuple[Objective, ...] = OBJECTIVES
    """Objectives to train and compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each objective is trained once with each of these seeds."""
    num_models: int = 10
    """Number of models kept per run, evenly spaced in log(images seen). train.keep_models_at overrides this option."""
    train: TrainConfig = field(default_factory=TrainConfig)
    encode: benchmark_flow.EncodeConfig = field(default_factory=benchmark_flow.EncodeConfig)
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        for name in ("objectives", "seeds", "num_models"):
            if not getattr(self, name):
                raise ValueError(f"{name}: give at least one")


def main(job: ObjectivesJob) -> None:
    """Train the missing models, score them, and write curves, figure and report."""
    snapshot = Snapshot.open(job.snapshot, job.snapshot_version)
    sources = [
        source for source in benchmark_flow.open_sets(job.datasets) if source.dataset.kind is Kind.CLASSIFICATION
    ]
    if not sources:
        raise ValueError(f"datasets={job.datasets}: contains no set of the kind classification")
    model, train = model_config(job.model), identity(job.train)
    del train["seed"]
    sets = {source.dataset.name: source.sha256 for source in sources}
    Run.open(job.output, {"snapshot_id": snapshot.snapshot_id, "model": model.to_dict(), "train": train, "sets": sets})
    base_run = Pretraining(
        output=job.output, shards=shard_infos(snapshot.shards), snapshot_id=snapshot.snapshot_id, model=model,
        train=job.train,
    )  # fmt: skip
    keep_models_at = job.train.keep_models_at or numbers_of_images_seen(base_run, job.num_models)
    workers = Pool(size=job.train.workers, cpus=job.train.cpus_per_worker, gpus=job.train.gpus_per_worker)
    stores: dict[tuple[Objective, int, int], benchmark_flow.Store] = {}
    # Training and encoding run one after the other, so each of them may use the whole cluster
    with session(job.session, needs=[workers]), session(job.session, needs=[job.encode.pool]):
        for seed in job.seeds:
            for objective in job.objectives:
                logger.info("== %s, seed %d", objective, seed)
                run = replace(
                    base_run,
                    output=storage.join(job.output, "runs", f"{objective}-{seed}"),
                    model=replace(model, objective=objective),
                    train=replace(job.train, seed=seed, keep_models_at=keep_models_at),
                )
                pretrain(run)
                for images_seen in keep_models_at:
                    stores[objective, seed, images_seen] = benchmark_flow.open_store(
                        storage.join(job.output, "features"), kept_model(run.output, images_seen)
                    )
        benchmark_flow.encode(sources, list(stores.values()), job.encode)
    write(job, score(stores, sources))


def numbers_of_images_seen(run: Pretraining, num_models: int) -> tuple[int, ...]:
    """The numbers of images seen at which a run keeps its model: the last step, and earlier ones by STEP_RATIO."""
    num_steps = run.num_steps()
    steps = {round(num_steps / STEP_RATIO**index) for index in range(num_models)} - {0}
    return tuple(step * run.train.global_batch_size for step in sorted(steps))


def score(
    stores: dict[tuple[Objective, int, int], benchmark_flow.Store], sources: list[benchmark_flow.Source]
) -> pa.Table:
    """Compute CURVES: the accuracy of each kept model on each set."""
    rows = []
    for (objective, seed, images_seen), store in stores.items():
        for source in sources:
            (result,) = benchmark_flow.evaluate(source, store).scores.values()
            row = asdict(result) | {"objective": objective, "seed": seed, "images_seen": images_seen}
            rows.append(row | {"set": source.dataset.name, "accuracy": result.value})
    return pa.Table.from_pylist([{name: row[name] for name in CURVES.names} for row in rows], schema=CURVES)


def write(job: ObjectivesJob, curves: pa.Table) -> None:
    """Write curves.parquet, figure2.png and report.html."""
    comparison = compare(curves)
    storage.write_bytes(storage.join(job.output, "curves.parquet"), parquet.encode(curves))
    storage.write_bytes(storage.join(job.output, "figure2.png"), draw_figure(comparison))
    report = ReportInputs(
        title="Objectives compared",
        objectives=comparison,
        configuration={"model": job.model, "seeds": list(job.seeds), "train": asdict(job.train)},
    )
    storage.write_bytes(storage.join(job.output, "report.html"), render_report(report).encode())
    for row in comparison.needed:
        needed = (f"{name} {images:,.0f}" for name, images in row.images.items() if images is not None)
        logger.info("images needed for %.0f%%: %s", 100 * row.accuracy, ", ".join(needed))


if __name__ == "__main__":
    launch(ObjectivesJob, main)
