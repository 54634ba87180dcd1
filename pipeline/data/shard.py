"""Shards: the corpus in a global shuffle, in Parquet files of bounded size with row groups of bounded bytes.

The place of a pair is a hash of (seed, pair id): its upper bits say which shard, the rest the order within. So the
shuffle needs no shuffle service and no random generator, and depends on nothing but the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.hashing import UInt64, bucket_of, draws, words_of_ids
from pipeline.schemas import PAIRS


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How the corpus is cut."""

    target_bytes: int = 256 * 2**20
    """Bytes of images in a shard, about."""
    row_group_size: int = 256
    """Pairs in a row group, at most: 8 MB at 256 pixels."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("target_bytes", "row_group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"shard.{name} = {getattr(self, name)}: must be positive")


def num_shards(total_bytes: int, config: ShardConfig) -> int:
    """How many shards that many bytes of images make."""
    return max(1, -(-total_bytes // config.target_bytes))


def places(pair_ids: list[str], seed: int) -> UInt64:
    """The place of each pair in the shuffle, 64 bits."""
    return draws(seed ^ 0x5348554646, words_of_ids(pair_ids))


def shard_of(table: pa.Table, count: int, seed: int) -> npt.NDArray[np.int32]:
    """The shard of each row of a table with a column pair_id."""
    return bucket_of(places(table["pair_id"].to_pylist(), seed), count)


def arrange(table: pa.Table, seed: int) -> pa.Table:
    """PAIRS of one shard in the order of the shuffle, from rows of FETCHED."""
    order = np.lexsort((np.array(table["pair_id"].to_pylist()), places(table["pair_id"].to_pylist(), seed)))
    names = ["jpg" if name == "image" else name for name in PAIRS.names]
    return table.select(names).rename_columns(PAIRS.names).cast(PAIRS).take(order)
