"""Arrange the corpus in a global shuffle, as Parquet shards of bounded size with row groups of bounded bytes.

The position of a pair is a hash of (seed, pair id). The upper bits give the shard, and the other bits give the order
within the shard. So the shuffle needs neither a shuffle service nor a random generator, and depends only on the pairs.

The metadata of a shard contain the version of its schema and, under `statistics`, a JSON summary of its pairs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import UInt64, bucket_of, draws, id_words
from pipeline.schemas import PAIRS, PAIRS_VERSION

SIZES = pa.schema([("num_pairs", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How the corpus is divided into shards and row groups."""

    target_bytes: int = 256 * 2**20
    """Approximate number of bytes of images in a shard."""
    row_group_size: int = 256
    """Maximum number of pairs in a row group; 256 pairs are 8 MB at 256 pixels."""
    row_group_bytes: int = 16 * 2**20
    """Maximum bytes of a row group, which bounds a reader's memory for images of any size. A larger pair gets its own
    row group."""
    seed: int = 0
    """Seed of the shuffle."""

    def __post_init__(self) -> None:
        for name in ("target_bytes", "row_group_size", "row_group_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"shard.{name} = {getattr(self, name)}: must be positive")


def num_shards(total_bytes: int, config: ShardConfig) -> int:
    """The number of shards for this many bytes of images."""
    return max(1, -(-total_bytes // config.target_bytes))


def size(table: pa.Table) -> pa.Table:
    """SIZES of a part: one row with the number of kept rows."""
    return pa.table([[table["reason"].null_count]], schema=SIZES)


def positions(pair_ids: list[str], seed: int) -> UInt64:
    """The position of each pair in the shuffle, as a 64-bit number."""
    return draws(seed ^ 0x5348554646, id_words(pair_ids))


def shard_of(table: pa.Table, count: int, seed: int) -> npt.NDArray[np.int32]:
    """The shard of each row of a table with a column pair_id."""
    return bucket_of(positions(table["pair_id"].to_pylist(), seed), count)


def arrange(table: pa.Table, seed: int) -> pa.Table:
    """PAIRS of one shard in the order of the shuffle, from rows of FETCHED or PAIRS.

    The column `jpg` of FETCHED is renamed to `image`.
    """
    pair_ids = table["pair_id"].to_pylist()
    order = np.lexsort((np.array(pair_ids), positions(pair_ids, seed)))
    image = "jpg" if "jpg" in table.column_names else "image"
    names = [image if name == "image" else name for name in PAIRS.names]
    arranged = table.select(names).rename_columns(PAIRS.names).cast(PAIRS).take(order)
    return arranged.replace_schema_metadata(
        {"schema_version": str(PAIRS_VERSION), "statistics": json.dumps(statistics(arranged), sort_keys=True)}
    )


def statistics(table: pa.Table) -> dict[str, Any]:
    """A summary of the pairs of a shard: counts, and means rounded to three decimals."""
    languages = pc.value_counts(table["language"].drop_null()).to_pylist()

    def mean(values: pa.ChunkedArray) -> float:
        return round(pc.mean(values).as_py() or 0.0, 3)

    return {
        "num_pairs": table.num_rows,
        "image_bytes": pc.sum(pc.binary_length(table["image"])).as_py() or 0,
        "mean_caption_characters": mean(pc.utf8_length(table["caption"])),
        "mean_width": mean(table["width"]),
        "mean_height": mean(table["height"]),
        "languages": {language["values"]: language["counts"] for language in languages},
    }
