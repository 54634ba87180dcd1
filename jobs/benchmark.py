"""Score a trained model on all evaluation sets of a folder: zero-shot classification and retrieval.

`python -m jobs.benchmark --model runs/pretrain/model --datasets runs/sets --output runs/benchmark`
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from cluster import storage
from cluster.runs import Run
from cluster.session import SessionConfig, session
from jobs.options.inputs import read_table
from jobs.options.launch import launch
from pipeline.eval.flows import benchmark_flow
from pipeline.eval.protocols.statistics import CONFIDENCE
from pipeline.eval.report.overlap import contamination, overlapping_items, summarise
from pipeline.eval.sets.evaluation_sets import sklearn_digits
from pipeline.schemas import OVERLAPS

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob:
    """Score a model on evaluation sets. Each image and text is encoded once, and the features are kept."""

    model: str
    """Folder of a model from jobs.pretrain (its output/model), local or s3://."""
    datasets: str
    """Folder of evaluation sets, local or s3://. Each set is a folder with dataset.json and test.parquet."""
    output: str
    """Folder for results.json, overlap.json, predictions/ and features/."""
    digits: bool = True
    """Also score the handwritten digits that are included in scikit-learn."""
    overlaps: str | None = None
    """Parquet file of the overlaps between the training pairs and the evaluation sets, from the snapshot that the model
    was trained on. overlap.json then has separate scores for the overlapping images and for all others."""
    encode: benchmark_flow.EncodeConfig = field(default_factory=benchmark_flow.EncodeConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: BenchmarkJob) -> None:
    """Encode images and texts without stored features, and write the results unless they exist.

    overlap.json is written again each time.
    """
    for option, uri in (("model", job.model), ("datasets", job.datasets)):
        if not storage.exists(uri):
            raise FileNotFoundError(f"{option}={uri}: does not exist; give an existing folder")
    store = benchmark_flow.open_store(storage.join(job.output, "features"), job.model)
    sources = benchmark_flow.open_sets(job.datasets)
    if job.digits:
        digits = storage.join(job.output, "sets")
        benchmark_flow.write_set(digits, *sklearn_digits())
        sources += benchmark_flow.open_sets(digits)
    Run.open(job.output, {"model": store.model_sha256, "sets": benchmark_flow.hashes_by_name(sources, job.datasets)})
    for source in sources:
        if not store.covers(source):
            logger.warning("%s is skipped: retrieval needs a contrastive model", source.dataset.name)
    sources = [source for source in sources if store.covers(source)]
    results_uri = storage.join(job.output, "results.json")
    if storage.exists(results_uri):
        logger.info("%s exists already", results_uri)
    else:
        score(job, sources, store, results_uri)
    if job.overlaps:
        write_overlap(job.output, job.overlaps, sources)


def score(
    job: BenchmarkJob, sources: Sequence[benchmark_flow.Source], store: benchmark_flow.Store, results_uri: str
) -> None:
    """Encode images and texts without stored features, and write predictions and results."""
    with session(job.session, needs=[job.encode.pool]):
        benchmark_flow.encode(sources, [store], job.encode)
    evaluations = {source.dataset.name: benchmark_flow.evaluate(source, store) for source in sources}
    benchmark_flow.write_predictions(storage.join(job.output, "predictions"), evaluations)
    scores = {name: score for result in evaluations.values() for name, score in result.scores.items()}
    results = {
        "model": job.model,
        "model_sha256": store.model_sha256,
        "sets": {
            source.dataset.name: {"sha256": source.sha256, "num_samples": source.num_samples} for source in sources
        },
        "confidence": CONFIDENCE,
        "scores": {name: asdict(score) for name, score in scores.items()},
        "per_class": {
            name: {label: asdict(score) for label, score in result.per_class.items()}
            for name, result in evaluations.items()
            if result.per_class
        },
    }
    storage.write_bytes(results_uri, json.dumps(results, indent=1).encode())
    for name, score in scores.items():
        percentages = [100 * share for share in (score.value, score.low, score.high, score.chance)]
        logger.info("%s: %.1f%% [%.1f, %.1f], chance %.1f%%", name, *percentages)


def write_overlap(output: str, overlaps_uri: str, sources: Sequence[benchmark_flow.Source]) -> None:
    """Write overlap.json next to the results: each set's scores on all, on overlapping and on clean images."""
    advice = "jobs.curate --overlap.index writes one into its data set"
    nullable = set(OVERLAPS.names) - {"benchmark", "set_sha256", "item"}  # the columns that are read
    overlaps = read_table(overlaps_uri, OVERLAPS, "overlaps", "not a table of overlaps", advice, nullable)
    predictions = storage.join(output, "predictions")
    sets = []
    for source in sources:
        name = source.dataset.name
        items = overlapping_items(overlaps, name, source.sha256)
        sets.append(contamination(name, benchmark_flow.read_predictions(predictions, name), items))
        percentages = (100 * sets[-1].share, 100 * sets[-1].change)
        logger.info("%s: %.2f%% overlap with the training pairs, All - Clean %+.2f points", name, *percentages)
    record = {"summary": asdict(summarise(sets)), "sets": [asdict(scored) for scored in sets]}
    storage.write_bytes(storage.join(output, "overlap.json"), json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    launch(BenchmarkJob, main)
