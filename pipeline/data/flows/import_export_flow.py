"""The flows between snapshots and other tools' files, on Ray Data (cluster/stages.py).

import    imported   a tar or table -> its pairs as they are, checked, hashed     | by shard
          distinct   which of them came before, by address and caption
          shards     in the order of the shuffle -> commit
export    tars       a shard -> a webdataset tar; a rerun writes those that are missing
"""

from __future__ import annotations

import json
import mmap
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

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
from pipeline.data.sources.img2dataset import SHARD_SUFFIX, without_tables_beside
from pipeline.schemas import PAIRS

INPUT_SUFFIXES = (SHARD_SUFFIX, ".parquet")
TARS = pa.schema([("name", pa.string()), ("num_pairs", pa.int64()), ("num_bytes", pa.int64())])
NUM_BUCKETS = 16
"""Parts in which the queries' pairs are counted."""


def list_pairs(uri: str) -> list[str]:
    """The tars and tables with images of a file or folder, in a fixed order, looked into.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is neither, or a table has no images or no captions.
    """
    files = without_tables_beside(storage.list_files(uri, suffixes=INPUT_SUFFIXES))
    with ThreadPoolExecutor(32) as threads:  # each is a request or two to an object store
        list(threads.map(_check, files))
    return files


def _check(uri: str) -> None:
    if not uri.endswith(INPUT_SUFFIXES):
        raise ValueError(f"input={uri}: expected one of *{', *'.join(INPUT_SUFFIXES)}")
    if not uri.endswith(SHARD_SUFFIX):
        filesystem, path = storage.filesystem(uri)
        try:
            schema = pq.read_schema(path, filesystem=filesystem)
        except pa.ArrowInvalid as error:
            raise ValueError(f"input={uri}: cannot be read as Parquet ({error})") from error
        foreign_pairs.check_input(uri, schema)


def read_pairs(uri: str) -> pa.Table:
    """IMPORTED of one tar (with img2dataset's table beside it, where there is one) or of one table, all in memory.

    Raises:
        ValueError: the table is damaged.
    """
    if uri.endswith(SHARD_SUFFIX):
        with open_shard(uri) as (stream, listed):
            return foreign_pairs.read_tar(stream, listed)
    filesystem, path = storage.filesystem(uri)
    try:
        with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file:
            return foreign_pairs.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{uri}: cannot be read to its end ({error}); put the file back, or take it away") from error


def import_pairs(
    stages: Stages,
    inputs: Sequence[str],
    num_bytes: int,
    dataset: str,
    metadata: Mapping[str, object],
    config: shard.ShardConfig,
) -> snapshot.Snapshot:
    """From tars and tables of images and captions to a committed snapshot.

    Args:
        stages: of the run.
        inputs: of `list_pairs`.
        num_bytes: of all inputs.
        dataset: gets the new version.
        metadata: plain data for the version's record.
        config: how its shards are cut.
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
    """TARS: write each shard as a tar, and sizes.json, by which open_clip knows how many pairs each has.

    Args:
        run: of this export: which tars are complete.
        source: the snapshot; what has been taken down is left out.
        output: the folder of the tars, local or s3://.
    """
    infos = shard_infos(source.shards)
    filesystem = storage.filesystem(source.uri)[0]
    shards = Shards(filesystem, tuple(storage.filesystem(info.path)[1] for info in infos), infos)
    max_rows = max((sum(info.row_groups) for info in infos), default=1)

    def write(part: int) -> pa.Table:
        name = shard_name(part, len(infos))
        reader, first = ShardReader(shards), 0
        with tempfile.TemporaryFile() as file:  # a row group at a time in memory, whatever the size of the shard
            tar = TarWriter(file, name, max_rows)
            for group, num_rows in enumerate(infos[part].row_groups):
                rows = reader.places_left(part, group)
                tar.write(reader.left(part, group, PAIRS.names), (rows + first).tolist())
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
