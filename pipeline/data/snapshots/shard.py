"""Shards: the corpus in a global shuffle, in Parquet files of bounded size with row groups of bounded bytes.

The place of a pair is a hash of (seed, pair id): its upper bits say which shard, the rest the order within. So the
shuffle needs no shuffle service and no random generator, and depends on nothing but the pairs.

A shard's own metadata has the version of its schema, and under `statistics`, as JSON, what its pairs are like.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import UInt64, bucket_of, draws, words_of_ids
from pipeline.schemas import PAIRS, PAIRS_VERSION

SIZES = pa.schema([("num_pairs", pa.int64())])


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How the corpus is cut."""

    target_bytes: int = 256 * 2**20
    """Bytes of images in a shard, about."""
    row_group_size: int = 256
    """Pairs in a row group, at most: 8 MB at 256 pixels."""
    row_group_bytes: int = 16 * 2**20
    """Bytes of a row group, at most, so that a reader's memory does not depend on the size of the images; a larger pair
    has one of its own."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target_bytes", "row_group_size", "row_group_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"shard.{name} = {getattr(self, name)}: must be positive")


def num_shards(total_bytes: int, config: ShardConfig) -> int:
    """How many shards that many bytes of images make."""
    return max(1, -(-total_bytes // config.target_bytes))


def size(table: pa.Table) -> pa.Table:
    """SIZES: how many rows of a part are still in, in one row."""
    return pa.table([[table["reason"].null_count]], schema=SIZES)


def places(pair_ids: list[str], seed: int) -> UInt64:
    """The place of each pair in the shuffle, 64 bits."""
    return draws(seed ^ 0x5348554646, words_of_ids(pair_ids))


def shard_of(table: pa.Table, count: int, seed: int) -> npt.NDArray[np.int32]:
    """The shard of each row of a table with a column pair_id."""
    return bucket_of(places(table["pair_id"].to_pylist(), seed), count)


def arrange(table: pa.Table, seed: int) -> pa.Table:
    """PAIRS of one shard in the order of the shuffle, from rows of FETCHED or PAIRS."""
    order = np.lexsort((np.array(table["pair_id"].to_pylist()), places(table["pair_id"].to_pylist(), seed)))
    image = "jpg" if "jpg" in table.column_names else "image"
    names = [image if name == "image" else name for name in PAIRS.names]
    arranged = table.select(names).rename_columns(PAIRS.names).cast(PAIRS).take(order)
    return arranged.replace_schema_metadata(
        {"schema_version": str(PAIRS_VERSION), "statistics": json.dumps(statistics(arranged), sort_keys=True)}
    )


def statistics(table: pa.Table) -> dict[str, Any]:
    """What the pairs of a shard are like: counts, and means to three decimals."""
    languages = pc.value_counts(table["language"].drop_null()).to_pylist()

    def mean(values: pa.ChunkedArray) -> float:
        return round(pc.mean(values).as_py() or 0.0, 3)

    return {
        "num_pairs": table.num_rows,
        "image_bytes": pc.sum(pc.binary_length(table["image"])).as_py() or 0,
        "mean_caption_characters": mean(pc.utf8_length(table["caption"])),
        "mean_width": mean(table["width"]),
        "mean_height": mean(table["height"]),
        "languages": {found["values"]: found["counts"] for found in languages},
    }
