"""Assign rows to buckets, so that rows that must be processed together are in the same bucket."""

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

    def assign(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        return bucket_of(hash64(value or "" for value in table[column].to_pylist()), num_buckets)

    return assign


def by_url(column: str, num_buckets: int) -> Bucketing:
    """Buckets by the hash of a normalised URL."""
    return lambda table: bucket_of(hash64(url_key(url or "") for url in table[column].to_pylist()), num_buckets)


def by_number(column: str, num_buckets: int) -> Bucketing:
    """Buckets by the hash of a column of 64-bit numbers."""
    return lambda table: bucket_of(mix(table[column].to_numpy()), num_buckets)


def by_part(column: str) -> Bucketing:
    """One bucket per part; the column contains the index of the part."""
    return lambda table: table[column].to_numpy()


def by_word(index: int, num_buckets: int) -> Bucketing:
    """Buckets by the hash of the first (0) or last (-1) word of a term."""
    return lambda table: bucket_of(hash64(query_list.word_of(table["term"], index).to_pylist()), num_buckets)


def by_domain(column: str, num_buckets: int, fallback: str | None = None) -> Bucketing:
    """Buckets by the hash of the registered domain of a URL, so that one actor gets all URLs of a domain.

    URLs without a registered domain are hashed as a whole. If the column is null, the URL of the column `fallback` is
    used.
    """

    def assign(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        urls = pc.coalesce(table[column], table[fallback]) if fallback else table[column]
        return bucket_of(hash64(registered_domain(url) or url for url in urls.to_pylist()), num_buckets)

    return assign


def by_name(num_buckets: int) -> Bucketing:
    """Buckets by the hash of the column `name`; all nulls are in one bucket."""
    return lambda table: bucket_of(hash64(name or "" for name in table["name"].to_pylist()), num_buckets)


def by_query(num_buckets: int) -> Bucketing:
    """Buckets by the hash of the query id."""

    def assign(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        return bucket_of(mix(table["query_id"].to_numpy().astype(np.uint64)), num_buckets)

    return assign
