"""From web archives, or tables of addresses, to checked and resized images.

`python -m jobs.crawl --input crawl/warc --queries runs/queries/queries.parquet --output runs/crawl`

It leaves survival.parquet behind: how many addresses of each query were tried and how many gave an image. With
`--survival runs/earlier_crawl/survival.parquet` the next crawl keeps as many spare addresses as each query needs. And
link_rot.parquet: what became of the addresses of each year, and of the busiest domains and hosts.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.runs import Run, describe_files, identity
from cluster.session import SessionConfig, session
from cluster.stages import Stages
from jobs.inputs import list_inputs
from jobs.launch import launch
from pipeline.data.block_lists import read_block_lists
from pipeline.data.flow import CrawlConfig, crawl
from pipeline.data.match import check_queries
from pipeline.data.passes import link_rot, outcomes
from pipeline.data.rounds import later_attempts
from pipeline.data.safety import find_classifier
from pipeline.data.sources import check_inputs, open_uri
from pipeline.data.survival import early_limits, survival
from pipeline.schemas import QUERIES, SURVIVAL

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class CrawlJob(CrawlConfig):
    """Extract, match, balance early, fetch, check and resize."""

    input: str
    """File or folder of web archives (.warc, .wat; plain, .gz, .zst), of tables with addresses and captions or with
    images and captions (.parquet, .csv), or of img2dataset's output (.parquet, .tar); local, s3:// or, a file, http(s)://.
    Or a list of archives as Common Crawl has them (warc.paths.gz, wat.paths.gz)."""
    queries: str
    """The query list: a queries.parquet of jobs.queries."""
    output: str
    """Folder of the run."""
    paths_base: str = "https://data.commoncrawl.org/"
    """What the paths of a list are relative to; s3://commoncrawl/ is the other place where they are."""
    survival: str | None = None
    """The survival.parquet of an earlier crawl: what of a query survived then decides how many spare addresses it gets
    now. Without it, balance.early_margin is for all."""
    retry: Literal["transient", "permanent", "policy"] | None = None
    """Attempt again, in a crawl that has ended, what failed for a reason of this class, and merge what comes of it."""
    session: SessionConfig = field(default_factory=SessionConfig)


def read_queries(uri: str) -> pa.Table:
    """The query list.

    Raises:
        ValueError: the file is no query list, or an empty one; the message says what is wrong.
    """
    table = read_table(uri, QUERIES, "queries", "not a query list", "jobs.queries makes one").sort_by("query_id")
    if table.num_rows == 0:
        raise ValueError(f"queries={uri}: the list is empty")
    if table["query_id"].to_pylist() != list(range(table.num_rows)):
        raise ValueError(f"queries={uri}: query_id must count from 0 to {table.num_rows - 1}; jobs.queries makes it so")
    return table


def read_survival(uri: str) -> pa.Table:
    """What of each query survived an earlier crawl. Raises as `read_table`."""
    return read_table(uri, SURVIVAL, "survival", "not the survival of queries", "jobs.crawl leaves one in its folder")


def read_table(uri: str, schema: pa.Schema, option: str, not_one: str, advice: str) -> pa.Table:
    """A table that an option names.

    Raises:
        ValueError: the file has not its columns; the message names those that are missing.
    """
    table = pq.read_table(pa.BufferReader(storage.read_bytes(uri)))
    missing = sorted(set(schema.names) - set(table.column_names))
    if missing:
        raise ValueError(f"{option}={uri}: {not_one}, it has no columns {missing}; {advice}")
    return table


def main(job: CrawlJob) -> None:
    """Run the stages that are missing, and write the funnel."""
    inputs = list_inputs(job.input, job.paths_base)
    check_inputs(inputs)
    queries = read_queries(job.queries)
    texts = queries["text"].to_pylist()
    find_classifier(job.safety)
    lists = read_block_lists(job.safety, open_uri)
    check_queries(texts, job.match_mode)
    early = early_limits(texts, read_survival(job.survival), job.balance) if job.survival else None
    parts = ("num_buckets", "fetch_parts", "extract", "caption", "match_mode", "balance", "fetch", "image", "safety")
    configuration = {name: identity(getattr(job, name)) for name in parts}
    digest = hashlib.sha256(storage.read_bytes(job.queries)).hexdigest()
    configuration |= {"inputs": describe_files(inputs), "queries": digest}
    configuration["survival"] = hashlib.sha256(storage.read_bytes(job.survival)).hexdigest() if job.survival else None
    configuration["block_lists"] = dict(lists.digests)
    run = Run.open(job.output, configuration)
    stages = Stages(run)
    with session(job.session, needs=job.pools):
        fetched = later_attempts(stages, crawl(stages, inputs, texts, job, lists, early), job.retry, job, lists)
        survived = survival(outcomes(stages, fetched, job.num_buckets), texts)
        rot = link_rot(stages, fetched, job.num_buckets)
    for name, table in (("survival", survived), ("link_rot", rot)):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        storage.write_bytes(storage.join(run.uri, f"{name}.parquet"), sink.getvalue().to_pybytes())
    storage.write_bytes(storage.join(run.uri, "funnel.json"), json.dumps(stages.funnel(), indent=1).encode())
    if fetched.num_kept == 0:
        raise ValueError(f"input={job.input}: no image was left; {run.uri}/funnel.json says where they went")
    logger.info("%d images of %d candidates in %s", fetched.num_kept, stages.outputs["candidates"].num_rows, run.uri)


if __name__ == "__main__":
    launch(CrawlJob, main)
