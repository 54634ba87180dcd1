"""Make rows and buckets for tests of parts."""

from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("pair_id", pa.string()),
        ("query_ids", pa.list_(pa.int32())),
        ("image", pa.large_binary()),
        ("phash", pa.uint64()),
        ("reason", pa.string()),
    ]
)


def table_of(reasons: list[str | None], salt: str = "") -> pa.Table:
    """A table with one row per reason. `salt` makes the ids of two tables differ."""
    rows = range(len(reasons))
    columns = [
        [f"{salt}{i:032x}" for i in rows],
        [[i, i + 1] for i in rows],
        [bytes([i % 256]) * 100 for i in rows],
        [2**64 - 1 - i for i in rows],
        reasons,
    ]
    return pa.table(columns, schema=SCHEMA)


def buckets(values: list[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The bucket of each row as an array."""
    return np.array(values, np.int32)
