"""Build the query list: `python -m jobs.queries --text corpus/ --wordnet /usr/share/wordnet --output runs/queries`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.runs import Run, identity
from cluster.session import SessionConfig, session
from cluster.stages import Stages
from jobs.launch import launch
from pipeline.data.flow import build_queries
from pipeline.data.queries import QueriesConfig, wordnet_synsets

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class QueriesJob:
    """The query list from plain text and WordNet."""

    text: str
    """File or folder of plain text (.txt), one document a line; local or s3://."""
    output: str
    """Folder of the run; the list is its queries.parquet."""
    wordnet: str | None = None
    """Folder of WordNet's data files, as Debian's wordnet-base installs them."""
    num_buckets: int = 16
    """Parts into which terms are partitioned."""
    queries: QueriesConfig = field(default_factory=QueriesConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: QueriesJob) -> None:
    """Count, select, and write queries.parquet with its manifest."""
    inputs = storage.list_files(job.text, suffixes=(".txt",))
    synsets = sorted(set(wordnet_synsets(job.wordnet))) if job.wordnet else []
    digests = {uri: hashlib.sha256(storage.read_bytes(uri)).hexdigest() for uri in inputs}
    synsets_digest = hashlib.sha256("\n".join(synsets).encode()).hexdigest()
    configuration = {
        "inputs": sorted(digests.values()),
        "wordnet": synsets_digest,
        "num_buckets": job.num_buckets,
        "queries": identity(job.queries),
    }
    run = Run.open(job.output, configuration)
    with session(job.session):
        table = build_queries(Stages(run), inputs, synsets, job.num_buckets, job.queries)
    if table.num_rows == 0:
        raise ValueError(
            f"text={job.text}: no term reaches queries.min_word_count={job.queries.min_word_count}; lower it"
        )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(storage.join(run.uri, "queries.parquet"), sink.getvalue().to_pybytes())
    counts = dict(Counter(table["source"].to_pylist()))
    manifest = {"inputs": digests, "wordnet": synsets_digest, "queries_by_source": counts}
    storage.write_bytes(storage.join(run.uri, "queries.json"), json.dumps(manifest, indent=1).encode())
    logger.info("%d queries (%s) in %s/queries.parquet", table.num_rows, counts, run.uri)


if __name__ == "__main__":
    launch(QueriesJob, main)
