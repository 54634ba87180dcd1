"""Figure 2: the objectives against each other, by zero-shot accuracy against images seen.

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
"""A kept model has seen so many times the images of the one before it."""


@dataclass(frozen=True, kw_only=True)
class ObjectivesJob:
    """Train each objective with each seed, score the models kept on the way. A rerun does what is missing; it may ask
    for other objectives and seeds, and tells of those it asks for."""

    snapshot: str
    """A data set of jobs.curate; local or s3://."""
    datasets: str
    """Folder of evaluation sets; those of the kind `classification` count."""
    output: str
    """Folder for runs/, features/, curves.parquet, figure2.png and report.html."""
    snapshot_version: str | None = None
    """Which version of the data set, or a tag; unset: the latest."""
    model: str = "tiny"
    """Name in the table of models: the image tower of all, and the sizes of what reads or writes texts."""
    objectives: tuple[Objective, ...] = OBJECTIVES
    seeds: tuple[int, ...] = (0, 1, 2)
    num_models: int = 10
    """Models kept of each run, evenly in the logarithm of images seen, unless train.keep_models_at says which."""
    train: TrainConfig = field(default_factory=TrainConfig)
    encode: benchmark_flow.EncodeConfig = field(default_factory=benchmark_flow.EncodeConfig)
    session: SessionConfig = field(default_factory=SessionConfig)

    def __post_init__(self) -> None:
        for name in ("objectives", "seeds", "num_models"):
            if not getattr(self, name):
                raise ValueError(f"{name}: at least one is needed")


def main(job: ObjectivesJob) -> None:
    """Train what is not trained, score what is not scored, and draw."""
    snapshot = Snapshot.open(job.snapshot, job.snapshot_version)
    sources = [
        source for source in benchmark_flow.open_sets(job.datasets) if source.dataset.kind is Kind.CLASSIFICATION
    ]
    if not sources:
        raise ValueError(f"datasets={job.datasets}: holds no set of the kind classification")
    model, train = model_config(job.model), identity(job.train)
    del train["seed"]
    sets = {source.dataset.name: source.sha256 for source in sources}
    Run.open(job.output, {"snapshot_id": snapshot.snapshot_id, "model": model.to_dict(), "train": train, "sets": sets})
    first = Pretraining(
        output=job.output, shards=shard_infos(snapshot.shards), snapshot_id=snapshot.snapshot_id, model=model,
        train=job.train,
    )  # fmt: skip
    kept = job.train.keep_models_at or steps_kept(first, job.num_models)
    workers = Pool(size=job.train.workers, cpus=job.train.cpus_per_worker, gpus=job.train.gpus_per_worker)
    stores: dict[tuple[Objective, int, int], benchmark_flow.Store] = {}
    # One after the other, so each may need all there is
    with session(job.session, needs=[workers]), session(job.session, needs=[job.encode.pool]):
        for seed in job.seeds:
            for objective in job.objectives:
                logger.info("== %s, seed %d", objective, seed)
                run = replace(
                    first,
                    output=storage.join(job.output, "runs", f"{objective}-{seed}"),
                    model=replace(model, objective=objective),
                    train=replace(job.train, seed=seed, keep_models_at=kept),
                )
                pretrain(run)
                for images_seen in kept:
                    place = kept_model(run.output, images_seen)
                    stores[objective, seed, images_seen] = benchmark_flow.open_store(
                        storage.join(job.output, "features"), place
                    )
        benchmark_flow.encode(sources, list(stores.values()), job.encode)
    write(job, score(stores, sources))


def steps_kept(run: Pretraining, num_models: int) -> tuple[int, ...]:
    """Images seen, in whole steps, after which a run's models are kept: the last step, and back from it."""
    num_steps = run.num_steps()
    steps = {round(num_steps / STEP_RATIO**index) for index in range(num_models)} - {0}
    return tuple(step * run.train.global_batch_size for step in sorted(steps))


def score(
    stores: dict[tuple[Objective, int, int], benchmark_flow.Store], sources: list[benchmark_flow.Source]
) -> pa.Table:
    """CURVES of what is encoded."""
    rows = []
    for (objective, seed, images_seen), store in stores.items():
        for source in sources:
            (result,) = benchmark_flow.evaluate(source, store).scores.values()
            row = asdict(result) | {"objective": objective, "seed": seed, "images_seen": images_seen}
            rows.append(row | {"set": source.dataset.name, "accuracy": result.value})
    return pa.Table.from_pylist([{name: row[name] for name in CURVES.names} for row in rows], schema=CURVES)


def write(job: ObjectivesJob, curves: pa.Table) -> None:
    """Put curves.parquet, figure2.png and report.html into the output."""
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
        told = (f"{name} {images:,.0f}" for name, images in row.images.items() if images is not None)
        logger.info("images needed for %.0f%%: %s", 100 * row.accuracy, ", ".join(told))


if __name__ == "__main__":
    launch(ObjectivesJob, main)
