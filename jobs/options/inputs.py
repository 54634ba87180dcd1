"""The files that a crawl reads: archives and tables of a folder or of Common Crawl's lists of paths, and queries."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from pipeline.data.duplicates.overlap import OverlapConfig, OverlapIndex
from pipeline.data.sources.extract import ARCHIVE_SUFFIXES
from pipeline.data.sources.img2dataset import SHARD_SUFFIX, without_tables_beside
from pipeline.data.sources.tables import TABLE_SUFFIXES
from pipeline.schemas import OVERLAP_INDEX, QUERIES, SURVIVAL

ENCODER_KEY = b"encoder_sha256"
"""In the metadata of an overlap index."""
PATHS_SUFFIXES = (".paths", ".paths.gz")


def list_inputs(uri: str, paths_base: str) -> list[str]:
    """Every archive and table of a file, a folder or a list of paths, in a fixed order.

    Args:
        uri: a file; a folder; or a list (`warc.paths.gz`, `wat.paths.gz`) with a path on each line.
        paths_base: what the paths of a list are relative to; a line that is a whole URI stands for itself.

    Raises:
        ValueError: a line of the list names no archive, or the list has no line.
        FileNotFoundError: nothing is there.
    """
    if not uri.endswith(PATHS_SUFFIXES):
        found = storage.list_files(uri, suffixes=(*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES, SHARD_SUFFIX))
        return without_tables_beside(found)
    data = storage.read_bytes(uri)
    lines = (gzip.decompress(data) if uri.endswith(".gz") else data).decode().split()
    wrong = [line for line in lines if not line.endswith(ARCHIVE_SUFFIXES)]
    if wrong:
        raise ValueError(f"input={uri}: '{wrong[0]}' is no archive; lists of WARC or WAT paths are read")
    if not lines:
        raise ValueError(f"input={uri}: the list has no paths")
    return [line if "://" in line else storage.join(paths_base, line) for line in lines]


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


def read_overlap_index(uri: str) -> tuple[pa.Table, str | None]:
    """OVERLAP_INDEX, and the hash of the encoder that its embeddings are of, if any. Raises as `read_table`."""
    table = read_table(uri, OVERLAP_INDEX, "overlap.index", "not an overlap index", "jobs.overlap makes one")
    encoder = (table.schema.metadata or {}).get(ENCODER_KEY)
    return table, encoder.decode() if encoder else None


def open_overlap_index(config: OverlapConfig, encoder_sha256: str | None) -> OverlapIndex | None:
    """The index that a configuration names, ready to be searched; None where it names none.

    Args:
        config: index, mode and thresholds.
        encoder_sha256: hash of the encoder whose embeddings are compared (jobs/options/encoders.py); None without one.

    Raises:
        ValueError: the file is no index, a threshold is for a set it does not have, or its embeddings are of another
            encoder.
    """
    if config.index is None:
        return None
    table, made_with = read_overlap_index(config.index)
    index = OverlapIndex(table, config)
    if index.has_embeddings and made_with != encoder_sha256:
        whose = "this curation has no encoder" if encoder_sha256 is None else "this curation's are of another encoder"
        advice = "give --encoder.model as it was made with, or --overlap.min_similarity 2 to compare hashes only"
        raise ValueError(f"overlap.index={config.index} has embeddings, and {whose}; {advice}")
    return index


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
