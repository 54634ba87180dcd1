"""Curate the images of crawls into a snapshot: `python -m jobs.curate --crawl runs/crawl --output runs/curate`.

Several crawls of one query list can be curated together; their order does not matter. The result keeps as many pairs of
each query as one crawl over all their inputs would, provided that the early balancing left enough pairs to choose from.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Any

from cluster import storage
from cluster.runs import Run, hash_file, identity
from cluster.session import SessionConfig, session
from cluster.stages import Stages
from jobs.options.encoders import EncoderConfig
from jobs.options.inputs import open_overlap_index
from jobs.options.launch import launch
from pipeline import __version__
from pipeline.data.flows.curate_flow import CurateConfig, PictureMatching, curate

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class CurateJob(CurateConfig):
    """Remove duplicates, balance, shuffle, write shards and commit a snapshot."""

    crawl: list[str] | str
    """Folder of a finished run of jobs.crawl, or a list of such folders: --crawl '["runs/crawl-1", "runs/crawl-2"]'."""
    output: str
    """Folder of the run."""
    dataset: str | None = None
    """Data set to which the new version is added, local or s3://. Unset: `output`/dataset."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def read_crawls(uris: list[str] | str) -> list[Run]:
    """Open the runs of jobs.crawl in these folders, sorted by id, so that their order in the command does not matter.

    Raises:
        ValueError: no folder is given, a run is given twice, or the runs cannot be curated together.
    """
    runs = [Run.read(uri, option="crawl") for uri in ([uris] if isinstance(uris, str) else uris)]
    if len({run.run_id for run in runs}) != len(runs) or not runs:
        raise ValueError(f"crawl={uris}: give at least one crawl, and each crawl only once")
    for run in runs:
        if run.configuration["queries"] is None:
            raise ValueError(
                f"crawl={run.uri} was made without a query list, which balancing needs; crawl with --queries"
            )
    for name, meaning in (("queries", "a different query list"), ("fetch_parts", "a different number of fetch parts")):
        for run in runs[1:]:
            if run.configuration[name] != runs[0].configuration[name]:
                raise ValueError(f"crawl={run.uri} has {meaning} than {runs[0].uri} ({name}); curate them separately")
    return sorted(runs, key=lambda run: run.run_id)


def main(job: CurateJob) -> None:
    """Run the missing stages, and commit the snapshot."""
    crawls = read_crawls(job.crawl)
    fetched = [run.output("fetched", run.configuration["fetch_parts"]) for run in crawls]
    encoder, encoder_sha256 = job.encoder.open() or (None, None)
    matching = PictureMatching(encoder, job.encoder.pool, open_overlap_index(job.overlap, encoder_sha256))
    option_names = ("num_buckets", "dedupe", "cells", "overlap", "balance", "shard")
    configuration = {name: identity(getattr(job, name)) for name in option_names} | {
        "encoder": encoder_sha256,
        "overlap_index": hash_file(job.overlap.index),
        "crawl": [f"{run.run_id}.{output.stage.generation}" for run, output in zip(crawls, fetched, strict=True)],
    }
    run = Run.open(job.output, configuration)
    dataset = storage.absolute(job.dataset) if job.dataset else storage.join(run.uri, "dataset")
    storage.ensure_writable(dataset, "dataset")
    stages = Stages(run)
    metadata = {
        "configuration": configuration | {"crawl": {crawl.run_id: crawl.configuration for crawl in crawls}},
        "run": run.run_id,
        "code_version": __version__,
        "crawl_funnel": {crawl.run_id: read_funnel(crawl) for crawl in crawls},
    }
    with session(job.session, needs=[job.encoder.pool] if encoder else []):
        snapshot = curate(stages, fetched, dataset, metadata, job, matching)
    storage.write_bytes(storage.join(run.uri, "funnel.json"), json.dumps(stages.funnel(), indent=1).encode())
    logger.info("%s of %s: %d pairs, id %s", snapshot.name, dataset, snapshot.num_rows, snapshot.snapshot_id)


def read_funnel(run: Run) -> Any:
    """Read the funnel.json of a finished run, as plain data."""
    return json.loads(storage.read_bytes(storage.join(run.uri, "funnel.json")))


if __name__ == "__main__":
    launch(CurateJob, main)
