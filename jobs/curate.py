"""From fetched images to a snapshot: `python -m jobs.curate --crawl runs/crawl --output runs/curate`."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field

from cluster import storage
from cluster.runs import Run, identity
from cluster.session import SessionConfig, session
from cluster.stages import Stages
from jobs.launch import launch
from pipeline import __version__
from pipeline.data.flow import CurateConfig, curate

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class CurateJob(CurateConfig):
    """Duplicates, final balance, shuffle, shards, snapshot."""

    crawl: str
    """Folder of a finished run of jobs.crawl."""
    output: str
    """Folder of the run."""
    dataset: str | None = None
    """The data set that gets the new version; `output`/dataset unless given."""
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: CurateJob) -> None:
    """Run the stages that are missing, and commit."""
    crawled = Run.read(job.crawl, option="crawl")
    fetched = crawled.output("fetched", crawled.configuration["num_buckets"])
    parts = ("num_buckets", "dedupe", "balance", "shard")
    configuration = {name: identity(getattr(job, name)) for name in parts} | {"crawl": crawled.run_id}
    run = Run.open(job.output, configuration)
    dataset = storage.absolute(job.dataset) if job.dataset else storage.join(run.uri, "dataset")
    storage.ensure_writable(dataset, "dataset")
    stages = Stages(run)
    metadata = {
        "configuration": configuration | {"crawl": crawled.configuration},
        "run": run.run_id,
        "code_version": __version__,
        "crawl_funnel": json.loads(storage.read_bytes(storage.join(crawled.uri, "funnel.json"))),
    }
    with session(job.session):
        snapshot = curate(stages, fetched, dataset, metadata, job)
    storage.write_bytes(storage.join(run.uri, "funnel.json"), json.dumps(stages.funnel(), indent=1).encode())
    logger.info("%s of %s: %d pairs, id %s", snapshot.name, dataset, snapshot.num_rows, snapshot.snapshot_id)


if __name__ == "__main__":
    launch(CurateJob, main)
