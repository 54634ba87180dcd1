"""In which bucket a row is: by what the rows that must meet have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.stages import Bucketing
from pipeline.data.queries import query_list
from pipeline.data.web.addresses import registered_domain
from pipeline.data.web.urls import url_key
from pipeline.hashing import bucket_of, hash64, mix


def by(column: str, num_buckets: int) -> Bucketing:
    """Buckets by the hash of a column of strings."""

    def place(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        return bucket_of(hash64(value or "" for value in table[column].to_pylist()), num_buckets)

    return place


def by_url(column: str, num_buckets: int) -> Bucketing:
    """Buckets by the hash of an address, in whatever way it is written."""
    return lambda table: bucket_of(hash64(url_key(url or "") for url in table[column].to_pylist()), num_buckets)


def by_number(column: str, num_buckets: int) -> Bucketing:
    """Buckets by the hash of a column of 64-bit numbers."""
    return lambda table: bucket_of(mix(table[column].to_numpy()), num_buckets)


def by_part(column: str) -> Bucketing:
    """A bucket for each part that the column names."""
    return lambda table: table[column].to_numpy()


def by_word(place: int, num_buckets: int) -> Bucketing:
    """Buckets by the first (0) or the last (-1) word of a term."""
    return lambda table: bucket_of(hash64(query_list.word_of(table["term"], place).to_pylist()), num_buckets)


def by_domain(column: str, num_buckets: int, otherwise: str | None = None) -> Bucketing:
    """Buckets by the registered domain of a column's addresses, so that one actor has all of a domain.

    By the address where that has none, and by the column `otherwise` in rows without an address.
    """

    def place(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        urls = pc.coalesce(table[column], table[otherwise]) if otherwise else table[column]
        return bucket_of(hash64(registered_domain(url) or url for url in urls.to_pylist()), num_buckets)

    return place


def by_name(num_buckets: int) -> Bucketing:
    """Buckets by the hash of the name; what has none is in one of them."""
    return lambda table: bucket_of(hash64(name or "" for name in table["name"].to_pylist()), num_buckets)


def by_query(num_buckets: int) -> Bucketing:
    """Buckets by the hash of the query's id."""

    def place(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        return bucket_of(mix(table["query_id"].to_numpy().astype(np.uint64)), num_buckets)

    return place
