"""Write shards to disk for tests, in the same way as curate."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from cluster import storage
from cluster.part_file import RowGroups
from cluster.parts import Stage
from pipeline.data.snapshots.epoch_order import ShardInfo
from pipeline.data.snapshots.reading import Shards
from pipeline.schemas import PAIRS, conform
from tests.pipeline.data.rows import ids


def pairs_of(count: int, image_bytes: int = 20) -> pa.Table:
    """PAIRS whose images and captions contain the row number."""
    return conform(
        pa.table(
            {
                "pair_id": ids(count),
                "caption": [f"caption {number}" for number in range(count)],
                "image": pa.array([b"%0*d" % (image_bytes, number) for number in range(count)], pa.large_binary()),
            }
        ),
        PAIRS,
    )


def write_shards(uri: str | Path, tables: Sequence[pa.Table], max_rows: int = 10) -> tuple[ShardInfo, ...]:
    """Write one file per table."""
    stage = Stage(str(uri), len(tables))
    parts = [stage.write(index, table, row_groups=RowGroups(max_rows=max_rows)) for index, table in enumerate(tables)]
    return tuple(ShardInfo(storage.join(str(uri), part.file or ""), part.row_groups) for part in parts)


def opened(infos: Sequence[ShardInfo]) -> Shards:
    """Open shards for reading."""
    filesystem, _ = storage.filesystem(infos[0].path)
    return Shards(filesystem, tuple(storage.filesystem(info.path)[1] for info in infos), tuple(infos))
