"""List and read the input files of jobs: archives and tables, query lists, survival counts, overlap indexes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from cluster import parquet, storage
from pipeline.data.duplicates.overlap import OverlapConfig, OverlapIndex
from pipeline.data.sources.extract import ARCHIVE_SUFFIXES
from pipeline.data.sources.img2dataset import SHARD_SUFFIX, without_shard_tables
from pipeline.data.sources.tables import TABLE_SUFFIXES
from pipeline.schemas import OVERLAP_INDEX, QUERIES, SURVIVAL

ENCODER_KEY = b"encoder_sha256"
"""Key in the schema metadata of an overlap index: the hash of the encoder that made its embeddings."""
PATHS_SUFFIXES = (".paths", ".paths.gz")


def list_inputs(uri: str, paths_base: str) -> list[str]:
    """List all archives and tables to crawl, in a fixed order.

    Args:
        uri: a file; a folder; or a list of paths, one per line (`warc.paths.gz`, `wat.paths.gz`).
        paths_base: the base of relative paths in a list. Lines that are absolute URIs are used unchanged.

    Raises:
        ValueError: the list cannot be read, is empty, or has a line that is not the path of an archive.
        FileNotFoundError: `uri` does not exist, or the folder contains no such files.
    """
    if not uri.endswith(PATHS_SUFFIXES):
        files = storage.list_files(uri, suffixes=(*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES, SHARD_SUFFIX))
        return without_shard_tables(files)
    data = storage.read_bytes(uri)
    try:
        lines = (gzip.decompress(data) if uri.endswith(".gz") else data).decode("utf-8-sig").split()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"input={uri}: cannot be read as a list of paths ({error}); download it again") from error
    wrong = [line for line in lines if not line.endswith(ARCHIVE_SUFFIXES)]
    if wrong:
        raise ValueError(
            f"input={uri}: '{wrong[0]}' is not an archive; every line must be the path of a WARC or WAT file"
        )
    if not lines:
        raise ValueError(f"input={uri}: the list contains no paths")
    return [line if "://" in line else storage.join(paths_base, line) for line in lines]


def read_queries(uri: str) -> pa.Table:
    """Read a query list.

    Raises:
        ValueError: the file is not a query list, the list is empty, or its ids are not consecutive.
    """
    table = read_table(uri, QUERIES, "queries", "not a query list", "make one with jobs.queries").sort_by("query_id")
    if table.num_rows == 0:
        raise ValueError(f"queries={uri}: the list is empty")
    if table["query_id"].to_pylist() != list(range(table.num_rows)):
        raise ValueError(
            f"queries={uri}: query_id must count from 0 to {table.num_rows - 1}; make the list with jobs.queries"
        )
    return table


def read_survival(uri: str) -> pa.Table:
    """Read how many images of each query survived an earlier crawl. Raises like `read_table`."""
    return read_table(
        uri, SURVIVAL, "survival", "not survival counts", "use the survival.parquet that jobs.crawl writes"
    )


def read_overlap_index(uri: str) -> tuple[pa.Table, str | None]:
    """Read a table of OVERLAP_INDEX and the hash of the encoder that made its embeddings, if it has any.

    Raises like `read_table`.
    """
    advice = "make one with jobs.overlap"
    table = read_table(uri, OVERLAP_INDEX, "overlap.index", "not an overlap index", advice, {"phash", "embedding"})
    lengths = pc.unique(pc.list_value_length(table["embedding"])).drop_null().to_pylist()
    if len(lengths) > 1:
        raise ValueError(f"overlap.index={uri}: its embeddings have {sorted(lengths)} dimensions; {advice}")
    encoder = (table.schema.metadata or {}).get(ENCODER_KEY)
    return table, encoder.decode(errors="replace") if encoder else None


def open_overlap_index(config: OverlapConfig, encoder_sha256: str | None) -> OverlapIndex | None:
    """Open the overlap index that a configuration names. Returns None if `config.index` is None.

    Args:
        config: the file of the index, the mode and the thresholds.
        encoder_sha256: the hash of the encoder of this run (jobs/options/encoders.py), or None if it has no encoder.

    Raises:
        ValueError: the file is not an overlap index, a threshold names an unknown evaluation set, or the embeddings
            were made by a different encoder.
    """
    if config.index is None:
        return None
    table, index_encoder_sha256 = read_overlap_index(config.index)
    index = OverlapIndex(table, config)
    if index.has_embeddings and index_encoder_sha256 != encoder_sha256:
        problem = "this run has no encoder" if encoder_sha256 is None else "this run uses a different encoder"
        advice = "give the --encoder.model that made the index, or --overlap.min_similarity 2 to compare hashes only"
        raise ValueError(f"overlap.index={config.index} contains embeddings, but {problem}; {advice}")
    return index


def read_table(
    uri: str, schema: pa.Schema, option: str, problem: str, advice: str, nullable: Collection[str] = ()
) -> pa.Table:
    """Read the Parquet table that an option names.

    Args:
        uri: the value of the option.
        schema: the columns that the table must have.
        option: the name of the option, for the error message.
        problem: the message's description of a table that lacks columns, such as "not a query list".
        advice: what the user can do about it.
        nullable: the columns of `schema` that may contain nulls.

    Raises:
        ValueError: the file is not Parquet, or the table lacks columns of `schema`, has others in their place or nulls
            in them.
    """
    try:
        table = parquet.decode(storage.read_bytes(uri), f"{option}={uri}: {problem}")
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    missing = sorted(set(schema.names) - set(table.column_names))
    if missing:
        raise ValueError(f"{option}={uri}: {problem}, the columns {missing} are missing; {advice}")
    table = parquet.cast(table, schema, f"{option}={uri}")
    for name in schema.names:
        if table[name].null_count and name not in nullable:
            raise ValueError(f"{option}={uri}: {problem}, the column '{name}' has nulls; {advice}")
    return table
