"""From web archives, or tables of addresses, to checked and resized images.

`python -m jobs.crawl --input crawl/warc --queries runs/queries/queries.parquet --output runs/crawl`
`python -m jobs.crawl --input addresses.parquet --output runs/crawl`

It leaves survival.parquet behind: how many addresses of each query were tried and how many gave an image. With
`--survival runs/earlier_crawl/survival.parquet` the next crawl keeps as many spare addresses as each query needs. And
link_rot.parquet: what became of the addresses of each year, and of the busiest domains and hosts.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import Literal

from cluster import parquet, storage
from cluster.runs import Run, describe_files, hash_file, identity
from cluster.session import SessionConfig, session
from cluster.stages import Stages
from jobs.options.inputs import list_inputs, read_queries, read_survival
from jobs.options.launch import launch
from pipeline.data.balance.survival import early_limits, survival
from pipeline.data.flows.crawl_flow import CrawlConfig, crawl
from pipeline.data.flows.global_counts_flow import link_rot, outcomes
from pipeline.data.flows.input_files import check_inputs, open_uri
from pipeline.data.flows.retry_flow import later_attempts
from pipeline.data.safety.block_lists import read_block_lists
from pipeline.data.safety.screening import find_classifier
from pipeline.data.text.match import check_queries

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class CrawlJob(CrawlConfig):
    """Extract, match, balance early, fetch, check and resize."""

    input: str
    """File or folder of web archives (.warc, .wat; plain, .gz, .zst), of tables with addresses and captions or with
    images and captions (.parquet, .csv), or of img2dataset's output (.parquet, .tar); local, s3:// or, a file, http(s)://.
    Or a list of archives as Common Crawl has them (warc.paths.gz, wat.paths.gz)."""
    output: str
    """Folder of the run."""
    queries: str | None = None
    """The query list: a queries.parquet of jobs.queries. Without it every caption will do and nothing is balanced: a
    list of addresses becomes images, but jobs.curate wants queries to balance by."""
    paths_base: str = "https://data.commoncrawl.org/"
    """What the paths of a list are relative to; s3://commoncrawl/ is the other place where they are."""
    survival: str | None = None
    """The survival.parquet of an earlier crawl: what of a query survived then decides how many spare addresses it gets
    now. Without it, balance.early_margin is for all."""
    retry: Literal["transient", "permanent", "policy"] | None = None
    """Attempt again, in a crawl that has ended, what failed for a reason of this class, and merge what comes of it."""
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: CrawlJob) -> None:
    """Run the stages that are missing, and write the funnel."""
    inputs = list_inputs(job.input, job.paths_base)
    check_inputs(inputs)
    texts = read_queries(job.queries)["text"].to_pylist() if job.queries else []
    find_classifier(job.safety)
    lists = read_block_lists(job.safety, open_uri)
    check_queries(texts, job.match_mode)
    early = early_limits(texts, read_survival(job.survival), job.balance) if job.survival else None
    parts = ("num_buckets", "fetch_parts", "extract", "caption", "match_mode", "balance", "fetch", "image", "safety")
    configuration = {name: identity(getattr(job, name)) for name in parts}
    configuration |= {"inputs": describe_files(inputs), "block_lists": dict(lists.digests)}
    configuration |= {"queries": hash_file(job.queries), "survival": hash_file(job.survival)}
    run = Run.open(job.output, configuration)
    stages = Stages(run)
    with session(job.session, needs=job.pools):
        fetched = later_attempts(stages, crawl(stages, inputs, texts, job, lists, early), job.retry, job, lists)
        survived = survival(outcomes(stages, fetched, job.num_buckets), texts)
        rot = link_rot(stages, fetched, job.num_buckets)
    for name, table in (("survival", survived), ("link_rot", rot)):
        storage.write_bytes(storage.join(run.uri, f"{name}.parquet"), parquet.encode(table))
    storage.write_bytes(storage.join(run.uri, "funnel.json"), json.dumps(stages.funnel(), indent=1).encode())
    if fetched.num_kept == 0:
        raise ValueError(f"input={job.input}: no image was left; {run.uri}/funnel.json says where they went")
    logger.info("%d images of %d candidates in %s", fetched.num_kept, stages.outputs["candidates"].num_rows, run.uri)


if __name__ == "__main__":
    launch(CrawlJob, main)
