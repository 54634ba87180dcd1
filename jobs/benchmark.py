"""Scores of a trained model on every evaluation set of a folder: zero-shot classification and retrieval.

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
    """Encode each image and text of the evaluation sets once, then score."""

    model: str
    """Folder of a model: the output/model of jobs.pretrain; local or s3://."""
    datasets: str
    """Folder of evaluation sets, each a folder with dataset.json and test.parquet; local or s3://."""
    output: str
    """Folder for results.json, overlap.json, predictions/ and features/."""
    digits: bool = True
    """Also score the handwritten digits that come with scikit-learn."""
    overlaps: str | None = None
    """Overlaps of the pairs that the model was trained on, a Parquet file of their snapshot: overlap.json then has the
    scores on the pictures that these pairs show, and on the others."""
    encode: benchmark_flow.EncodeConfig = field(default_factory=benchmark_flow.EncodeConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: BenchmarkJob) -> None:
    """Encode what is not encoded yet, and write the results; finished results are left alone.

    What overlaps do to them is written anew.
    """
    for option, uri in (("model", job.model), ("datasets", job.datasets)):
        if not storage.exists(uri):
            raise FileNotFoundError(f"{option}={uri}: nothing is there; give the folder that holds it")
    store = benchmark_flow.open_store(storage.join(job.output, "features"), job.model)
    sources = benchmark_flow.open_sets(job.datasets)
    if job.digits:
        own = storage.join(job.output, "sets")
        benchmark_flow.write_set(own, *sklearn_digits())
        sources += benchmark_flow.open_sets(own)
    Run.open(job.output, {"model": store.model_sha256, "sets": benchmark_flow.hashes_by_name(sources, job.datasets)})
    for source in sources:
        if not store.covers(source):
            logger.warning("%s is left out: retrieval needs a contrastive model", source.dataset.name)
    sources = [source for source in sources if store.covers(source)]
    place = storage.join(job.output, "results.json")
    if storage.exists(place):
        logger.info("%s is there already", place)
    else:
        score(job, sources, store, place)
    if job.overlaps:
        write_overlap(job.output, job.overlaps, sources)


def score(job: BenchmarkJob, sources: Sequence[benchmark_flow.Source], store: benchmark_flow.Store, place: str) -> None:
    """Encode what is not encoded yet, and write predictions and results."""
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
    storage.write_bytes(place, json.dumps(results, indent=1).encode())
    for name, score in scores.items():
        shares = [100 * share for share in (score.value, score.low, score.high, score.chance)]
        logger.info("%s: %.1f%% [%.1f, %.1f], chance %.1f%%", name, *shares)


def write_overlap(output: str, overlaps_uri: str, sources: Sequence[benchmark_flow.Source]) -> None:
    """Put overlap.json beside the results: every set's scores on all, on overlapping and on clean pictures."""
    advice = "jobs.curate --overlap.index leaves one in its data set"
    overlaps = read_table(overlaps_uri, OVERLAPS, "overlaps", "not a table of overlaps", advice)
    predictions = storage.join(output, "predictions")
    sets = []
    for source in sources:
        name = source.dataset.name
        items = overlapping_items(overlaps, name, source.sha256)
        sets.append(contamination(name, benchmark_flow.read_predictions(predictions, name), items))
        found = sets[-1]
        shares = (100 * found.share, 100 * found.change)
        logger.info("%s: %.2f%% overlap with the training pairs, All - Clean %+.2f points", name, *shares)
    record = {"summary": asdict(summarise(sets)), "sets": [asdict(one) for one in sets]}
    storage.write_bytes(storage.join(output, "overlap.json"), json.dumps(record, indent=1).encode())


if __name__ == "__main__":
    launch(BenchmarkJob, main)
