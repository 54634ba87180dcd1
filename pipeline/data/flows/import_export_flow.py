"""Import the files of other tools as snapshots, and export snapshots as tars, on Ray Data (cluster/stages.py).

import    imported   tar or table -> its pairs unchanged, checked and hashed     | by shard
          distinct   mark pairs with the same URL and caption as an earlier pair
          shards     pairs in the order of the shuffle -> commit
export    tars       shard -> webdataset tar; a rerun writes only missing tars
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from cluster import storage
from cluster.runs import Run
from cluster.stages import Stages
from pipeline.data.exchange import foreign_pairs
from pipeline.data.exchange.webdataset import SUFFIX, TarWriter, shard_name
from pipeline.data.flows import global_counts_flow
from pipeline.data.flows.crawl_flow import IMAGE_GROUPS
from pipeline.data.flows.curate_flow import make_shards
from pipeline.data.flows.input_files import open_shard
from pipeline.data.snapshots import shard, snapshot
from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.reading import ShardReader, Shards, shard_infos
from pipeline.data.sources.img2dataset import SHARD_SUFFIX, without_shard_tables
from pipeline.data.sources.parquet_rows import read_schema
from pipeline.schemas import PAIRS

INPUT_SUFFIXES = (SHARD_SUFFIX, ".parquet")
TARS = pa.schema([("name", pa.string()), ("num_pairs", pa.int64()), ("num_bytes", pa.int64())])
NUM_BUCKETS = 16
"""Number of parts in which the pairs per query are counted."""


def list_pairs(uri: str) -> list[str]:
    """List the tars and tables of images of a file or folder in a fixed order, and check each.

    Raises:
        FileNotFoundError: there are no such files.
        ValueError: a file is neither a tar nor a table, or a table has no images or no captions.
    """
    files = without_shard_tables(storage.list_files(uri, suffixes=INPUT_SUFFIXES))
    with ThreadPoolExecutor(32) as threads:  # each check is one or two requests to an object store
        list(threads.map(_check, files))
    return files


def _check(uri: str) -> None:
    if not uri.endswith(INPUT_SUFFIXES):
        raise ValueError(f"input={uri}: expected one of *{', *'.join(INPUT_SUFFIXES)}")
    if not uri.endswith(SHARD_SUFFIX):
        try:
            foreign_pairs.check_input(uri, read_schema(uri, *storage.filesystem(uri)))
        except ValueError as error:
            raise ValueError(f"input={error}") from error


def read_pairs(uri: str) -> pa.Table:
    """Read IMPORTED of one tar (with img2dataset's table of the tar, if it exists) or of one table, into memory."""
    if uri.endswith(SHARD_SUFFIX):
        with open_shard(uri, foreign_pairs.FURTHER_COLUMNS) as (stream, listed):
            return foreign_pairs.read_tar(stream, listed)
    return foreign_pairs.read_table(*storage.filesystem(uri))


def import_pairs(
    stages: Stages,
    inputs: Sequence[str],
    num_bytes: int,
    dataset: str,
    metadata: Mapping[str, object],
    config: shard.ShardConfig,
) -> snapshot.Snapshot:
    """Turn tars and tables of images and captions into a committed snapshot.

    Args:
        stages: the stages of the run.
        inputs: the files returned by `list_pairs`.
        num_bytes: total bytes of all inputs.
        dataset: URI of the data set to which the new version is committed.
        metadata: plain data for the version's record.
        config: how pairs are divided into shards.
    """
    count = shard.num_shards(num_bytes, config)
    imported = stages(
        "imported",
        len(inputs),
        lambda part: read_pairs(inputs[part]),
        bucketing=lambda table: foreign_pairs.shard_of(table, count, config.seed),
        num_buckets=count,
        row_groups=IMAGE_GROUPS,
    )
    stages("distinct", count, lambda part: imported.bucket(part, ["pair_id"]), finish=foreign_pairs.mark_duplicates)

    def distinct(part: int) -> pa.Table | None:
        table = imported.bucket(part, PAIRS.names)
        return None if table is None else table.filter(foreign_pairs.is_first(table))

    shards, records = make_shards(stages, count, distinct, dataset, config)
    kept = global_counts_flow.totals(stages, "kept_", count, shards.part, NUM_BUCKETS).select(["query_id", "num_pairs"])
    return commit(dataset, records, kept, {**metadata, "funnel": stages.funnel()})


def export_tars(run: Run, source: snapshot.Snapshot, output: str) -> pa.Table:
    """Write each shard as a tar, and sizes.json, from which open_clip reads the number of pairs of each tar.

    Args:
        run: the run of this export, which records the complete tars.
        source: the snapshot; pairs that are taken down are not exported.
        output: the folder of the tars, local or s3://.

    Returns:
        TARS.
    """
    infos = shard_infos(source.shards)
    filesystem = storage.filesystem(source.uri)[0]
    shards = Shards(filesystem, tuple(storage.filesystem(info.path)[1] for info in infos), infos)
    max_rows = max((sum(info.row_groups) for info in infos), default=1)

    def write(part: int) -> pa.Table:
        name = shard_name(part, len(infos))
        reader, first = ShardReader(shards), 0
        with tempfile.TemporaryFile() as file:  # so that only one row group is in memory, for shards of any size
            tar = TarWriter(file, name, max_rows)
            for group, num_rows in enumerate(infos[part].row_groups):
                rows = reader.remaining_rows(part, group)
                tar.write(reader.read_remaining(part, group, PAIRS.names), (rows + first).tolist())
                first += num_rows
            tar.close()
            file.flush()
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as view:
                storage.write_bytes(storage.join(output, name + SUFFIX), view)
                return pa.table([[name + SUFFIX], [tar.num_pairs], [len(view)]], schema=TARS)

    tars = Stages(run)("tars", len(infos), write).table(TARS)
    sizes = dict(zip(tars["name"].to_pylist(), tars["num_pairs"].to_pylist(), strict=True))
    storage.write_bytes(storage.join(output, "sizes.json"), json.dumps(sizes, indent=1).encode())
    return tars
