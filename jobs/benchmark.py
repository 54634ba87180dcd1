"""Scores of a trained model on every evaluation set of a folder: zero-shot classification and retrieval.

`python -m jobs.benchmark --model runs/pretrain/model --datasets runs/sets --output runs/benchmark`
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.runs import Run
from cluster.session import SessionConfig, session
from jobs.launch import launch
from pipeline.eval.datasets import sklearn_digits
from pipeline.eval.flow import EncodeConfig, Source, Store, encode, evaluate, hash_model, open_sets, write_set
from pipeline.eval.statistics import CONFIDENCE
from pipeline.eval.suite import Evaluation

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class BenchmarkJob:
    """Encode each image and text of the evaluation sets once, then score."""

    model: str
    """Folder of a model: the output/model of jobs.pretrain; local or s3://."""
    datasets: str
    """Folder of evaluation sets, each a folder with dataset.json and test.parquet."""
    output: str
    """Folder for results.json, predictions/ and features/."""
    digits: bool = True
    """Also score the handwritten digits that come with scikit-learn."""
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: BenchmarkJob) -> None:
    """Encode what is not encoded yet, and write the results; finished results are left alone."""
    model_sha256 = hash_model(job.model)
    sources = open_sets(job.datasets)
    if job.digits:
        write_set(storage.join(job.output, "sets"), *sklearn_digits())
        sources += open_sets(storage.join(job.output, "sets"))
    sets = {source.dataset.name: source.sha256 for source in sources}
    if len(sets) < len(sources):
        names = sorted(source.dataset.name for source in sources)
        raise ValueError(f"datasets={job.datasets}: two sets have the same name, in {names}; rename one")
    Run.open(job.output, {"model": model_sha256, "sets": sets})
    results = storage.join(job.output, "results.json")
    if storage.exists(results):
        logger.info("%s is there already; nothing to do", results)
        return
    store = Store(uri=storage.join(job.output, "features"), model_sha256=model_sha256)
    with session(job.session, needs=[job.encode.pool]):
        encode(sources, job.model, store, job.encode)
    evaluations = {source.dataset.name: evaluate(source, store) for source in sources}
    for name, evaluation in evaluations.items():
        sink = pa.BufferOutputStream()
        pq.write_table(evaluation.predictions, sink)
        storage.write_bytes(storage.join(job.output, "predictions", f"{name}.parquet"), sink.getvalue().to_pybytes())
    record = summarise(job, model_sha256, sources, evaluations)
    storage.write_bytes(results, json.dumps(record, indent=1).encode())
    for name, score in record["scores"].items():
        logger.info("%s: %.1f%% [%.1f, %.1f], chance %.1f%%", name, *(100 * score[key] for key in _COLUMNS))


_COLUMNS = ("value", "low", "high", "chance")


def summarise(
    job: BenchmarkJob, model_sha256: str, sources: list[Source], evaluations: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """What results.json holds."""
    return {
        "model": job.model,
        "model_sha256": model_sha256,
        "confidence": CONFIDENCE,
        "scores": {name: asdict(score) for result in evaluations.values() for name, score in result.scores.items()},
        "per_class": {
            name: {label: asdict(score) for label, score in result.per_class.items()}
            for name, result in evaluations.items()
            if result.per_class
        },
        "sets": {
            source.dataset.name: {"sha256": source.sha256, "num_samples": source.num_samples} for source in sources
        },
        "versions": {name: importlib.metadata.version(name) for name in ("ray", "torch", "timm", "pyarrow")},
    }


if __name__ == "__main__":
    launch(BenchmarkJob, main)
