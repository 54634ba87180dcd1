"""Import images and captions from another tool into a snapshot. The images are checked, and their bytes stay the same.

`python -m jobs.import_pairs --input laion/ --output runs/import --dataset s3://bucket/pairs`
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

from cluster import storage
from cluster.runs import Run, describe_files, identity
from cluster.session import SessionConfig, session
from cluster.stages import Stages
from jobs.options.launch import launch
from pipeline import __version__
from pipeline.data.flows.import_export_flow import import_pairs, list_pairs
from pipeline.data.snapshots.shard import ShardConfig
from pipeline.reasons import Reason

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class ImportPairsJob:
    """Import images and captions from another tool: check, hash and shuffle them, and commit a snapshot."""

    input: str
    """File or folder, local or s3://: webdataset tars (.tar, from img2dataset, open_clip or `jobs.snapshot export`), or
    Parquet files with images and captions (img2dataset's output format `parquet`, or shards of a snapshot). A worker
    holds one whole file in memory."""
    output: str
    """Folder of the run."""
    dataset: str | None = None
    """Data set to which the new version is added, local or s3://. Unset: `output`/dataset."""
    shard: ShardConfig = field(default_factory=ShardConfig)
    max_unforeseen_share: float = 0.1
    """Rows that fail for an unforeseen reason are dropped with the error's message. The job stops if more than this
    share of a stage's rows do."""
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: ImportPairsJob) -> None:
    """Run the missing stages, and commit the snapshot."""
    inputs = list_pairs(job.input)
    file_sizes = describe_files(inputs)
    configuration = {"shard": identity(job.shard), "inputs": file_sizes}
    run = Run.open(job.output, configuration)
    dataset = storage.absolute(job.dataset) if job.dataset else storage.join(run.uri, "dataset")
    storage.ensure_writable(dataset, "dataset")
    stages = Stages(run, {Reason.UNFORESEEN: job.max_unforeseen_share})
    metadata = {"configuration": configuration, "run": run.run_id, "code_version": __version__}
    with session(job.session):
        snapshot = import_pairs(stages, inputs, sum(size for _, size in file_sizes), dataset, metadata, job.shard)
    storage.write_bytes(storage.join(run.uri, "funnel.json"), json.dumps(stages.funnel(), indent=1).encode())
    if snapshot.num_rows == 0:
        raise ValueError(f"input={job.input}: every pair was dropped; see {run.uri}/funnel.json for the reasons")
    logger.info("%s of %s: %d pairs, id %s", snapshot.name, dataset, snapshot.num_rows, snapshot.snapshot_id)


if __name__ == "__main__":
    launch(ImportPairsJob, main)
