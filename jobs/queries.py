"""Build the query list, from one or more of Wikipedia, plain text, page views and WordNet.

`python -m jobs.queries --wikipedia dumps/ --page_views views/ --wordnet /usr/share/wordnet --output runs/queries`
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field

from cluster import parquet, storage
from cluster.runs import Run, describe_files, identity
from cluster.session import SessionConfig, session
from cluster.stages import Stages
from jobs.options.launch import launch
from pipeline.data.flows.input_files import check_dumps
from pipeline.data.flows.query_flow import Corpus, build_queries, check_page_views, digests
from pipeline.data.queries.page_views import ROBOT_SUFFIXES, SUFFIXES
from pipeline.data.queries.query_list import QueriesConfig, wordnet_synsets
from pipeline.data.sources.byte_ranges import cut
from pipeline.reasons import Reason

logger = logging.getLogger("clip")

MIN_BUCKETS = 16
BYTES_PER_BUCKET = 64 * 2**20
"""Input bytes per bucket. One process adds up one bucket, so its memory does not grow with the input."""


@dataclass(frozen=True, kw_only=True)
class QueriesJob:
    """Build the query list of the paper's section 2.2."""

    output: str
    """Folder of the run. The query list is written to its queries.parquet."""
    wikipedia: str | None = None
    """File or folder of Wikipedia's article dumps (...pages-articles....xml.bz2), local or s3://. Multistream dumps are
    read in parallel. The first part of a dump names its namespaces (<siteinfo>)."""
    text: str | None = None
    """File or folder of plain text (.txt), one document per line, local or s3://. Entities such as &amp; are decoded. A
    text in a script without blanks between words (Chinese, Japanese, Thai, ...) is refused."""
    page_views: str | None = None
    """File or folder of Wikipedia page views (.gz or .bz2, of any published form), local or s3://. They select article
    titles. Files named -spider or -automated are left out: they count the views of programs."""
    wordnet: str | None = None
    """Folder of WordNet's data files, as installed by Debian's wordnet-base."""
    language: str = "en"
    """Language code of the Wikipedia whose page views are counted."""
    num_buckets: int | None = None
    """Number of partitions of the terms. Unset: one per 64 MiB of input, at least 16."""
    part_mib: int = 32
    """Size of the pieces into which an input file is cut, in MiB; each piece is one part."""
    queries: QueriesConfig = field(default_factory=QueriesConfig)
    max_unforeseen_share: float = 0.1
    """Rows that fail for an unforeseen reason are dropped with the error's message. The job stops if more than this
    share of a stage's rows do."""
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: QueriesJob) -> None:
    """Count terms and page views, select the queries, and write queries.parquet and its manifest queries.json."""
    dumps, texts, views = (
        storage.list_files(folder, suffixes=suffixes) if folder else []
        for folder, suffixes in ((job.wikipedia, (".xml.bz2",)), (job.text, (".txt",)), (job.page_views, SUFFIXES))
    )
    if not (dumps or texts or job.wordnet or views):
        raise ValueError("no input: give --wikipedia, --text, --page_views or --wordnet")
    check_dumps(dumps)
    views = _views_of_people(views)
    check_page_views(views)
    synsets = sorted(set(wordnet_synsets(job.wordnet))) if job.wordnet else []
    synsets_digest = hashlib.sha256("\n".join(synsets).encode()).hexdigest()
    names = ("language", "num_buckets", "part_mib", "queries")
    configuration = {name: identity(getattr(job, name)) for name in names}
    file_sizes = describe_files(dumps), describe_files(texts), describe_files(views)
    configuration |= {"inputs": file_sizes, "wordnet": synsets_digest}
    run = Run.open(job.output, configuration)
    stages = Stages(run, {Reason.UNFORESEEN: job.max_unforeseen_share})
    byte_ranges = [
        cut(zip(uris, (size for _, size in files), strict=True), job.part_mib * 2**20)
        for uris, files in zip((dumps, texts), file_sizes[:2], strict=True)
    ]
    num_bytes = sum(size for files in file_sizes for _, size in files)
    num_buckets = job.num_buckets or max(MIN_BUCKETS, -(-num_bytes // BYTES_PER_BUCKET))
    corpus = Corpus(
        dumps=byte_ranges[0], texts=byte_ranges[1], page_views=views, synsets=synsets, language=job.language
    )
    with session(job.session):
        table = build_queries(stages, corpus, num_buckets, job.queries)
        inputs = digests(stages, [*dumps, *texts, *views])
    if table.num_rows == 0:
        raise ValueError(
            f"no term reaches queries.min_word_count={job.queries.min_word_count}, so the query list would be empty; "
            "lower it or add text"
        )
    storage.write_bytes(storage.join(run.uri, "queries.parquet"), parquet.encode(table))
    counts = dict(Counter(table["source"].to_pylist()))
    manifest = {"inputs": inputs, "wordnet": synsets_digest, "queries_by_source": counts, "stages": stages.funnel()}
    storage.write_bytes(storage.join(run.uri, "queries.json"), json.dumps(manifest, indent=1).encode())
    logger.info("%d queries (%s) in %s/queries.parquet", table.num_rows, counts, run.uri)


def _views_of_people(uris: list[str]) -> list[str]:
    """The files that count people's views.

    Raises:
        ValueError: all files count the views of programs.
    """
    people = [uri for uri in uris if not uri.endswith(ROBOT_SUFFIXES)]
    if uris and not people:
        raise ValueError(
            f"page_views={uris[0]}: counts the views of programs, not of people; give the files named -user"
        )
    if len(people) < len(uris):
        logger.warning("page_views: %d files that count the views of programs are left out", len(uris) - len(people))
    return people


if __name__ == "__main__":
    launch(QueriesJob, main)
