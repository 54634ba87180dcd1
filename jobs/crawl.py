"""Crawl: turn web archives, or tables of image URLs, into checked and resized images.

`python -m jobs.crawl --input crawl/warc --queries runs/queries/queries.parquet --output runs/crawl`
`python -m jobs.crawl --input urls.parquet --output runs/crawl`

The run also writes two tables. survival.parquet holds, for each query, how many URLs were tried and how many gave an
image. Given `--survival runs/earlier_crawl/survival.parquet`, the next crawl keeps as many spare URLs as each query
needs. link_rot.parquet counts the outcomes of the URLs by year, and for the busiest domains and hosts.
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
from pipeline.reasons import Reason

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class CrawlJob(CrawlConfig):
    """Extract image URLs and captions, match and balance them, and fetch, check and resize the images."""

    input: str
    """A file or folder of web archives (.warc, .wat; plain, .gz, .zst), of tables of captions with image URLs or images
    (.parquet, .csv), or of img2dataset's output (.parquet, .tar); or one of Common Crawl's lists of archives
    (warc.paths.gz, wat.paths.gz). Local or s3://; a single file may be http(s)://."""
    output: str
    """Folder of the run."""
    queries: str | None = None
    """The query list: a queries.parquet from jobs.queries. Unset: captions need not match a query and nothing is
    balanced; jobs.curate cannot use such a crawl, because it balances by query."""
    paths_base: str = "https://data.commoncrawl.org/"
    """Base of the paths in a list of archives. Common Crawl also offers its files at s3://commoncrawl/."""
    survival: str | None = None
    """The survival.parquet of an earlier crawl. The share of a query's URLs that gave an image in it determines how
    many spare URLs the query gets now. Unset: every query gets balance.early_margin."""
    retry: Literal["transient", "permanent", "policy"] | None = None
    """In a finished crawl, fetch those URLs again that failed for a reason of this class, and merge the results."""
    max_unforeseen_share: float = 0.1
    """Rows that fail for an unforeseen reason are dropped with the error's message. The job stops if more than this
    share of a stage's rows do."""
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: CrawlJob) -> None:
    """Run the missing stages, and write the survival, the link rot and the funnel."""
    inputs = list_inputs(job.input, job.paths_base)
    check_inputs(inputs)
    texts = read_queries(job.queries)["text"].to_pylist() if job.queries else []
    find_classifier(job.safety)
    lists = read_block_lists(job.safety, open_uri)
    check_queries(texts, job.match_mode)
    early = early_limits(texts, read_survival(job.survival), job.balance) if job.survival else None
    option_names = (
        "num_buckets",
        "fetch_parts",
        "extract",
        "caption",
        "match_mode",
        "balance",
        "fetch",
        "image",
        "safety",
    )
    configuration = {name: identity(getattr(job, name)) for name in option_names}
    configuration |= {"inputs": describe_files(inputs), "block_lists": dict(lists.digests)}
    configuration |= {"queries": hash_file(job.queries), "survival": hash_file(job.survival)}
    run = Run.open(job.output, configuration)
    stages = Stages(run, {Reason.UNFORESEEN: job.max_unforeseen_share})
    with session(job.session, needs=job.pools):
        fetched = later_attempts(stages, crawl(stages, inputs, texts, job, lists, early), job.retry, job, lists)
        survived = survival(outcomes(stages, fetched, job.num_buckets), texts)
        rot = link_rot(stages, fetched, job.num_buckets)
    for name, table in (("survival", survived), ("link_rot", rot)):
        storage.write_bytes(storage.join(run.uri, f"{name}.parquet"), parquet.encode(table))
    storage.write_bytes(storage.join(run.uri, "funnel.json"), json.dumps(stages.funnel(), indent=1).encode())
    if fetched.num_kept == 0:
        raise ValueError(f"input={job.input}: every image was dropped; see {run.uri}/funnel.json for the reasons")
    logger.info("%d images of %d candidates in %s", fetched.num_kept, stages.outputs["candidates"].num_rows, run.uri)


if __name__ == "__main__":
    launch(CrawlJob, main)
