"""How tables of ours are written as Parquet."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def encode(table: pa.Table) -> bytes:
    """A table as a Parquet file; the same bytes for the same rows."""
    sink = pa.BufferOutputStream()
    with writer(sink, table.schema) as file:
        file.write_table(table)
    return bytes(sink.getvalue())


def writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Every page with a checksum; zstd, dictionaries and statistics, but not for large_binary, which is JPEG."""
    leaves = {f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name: f.type for f in schema}
    texts = [leaf for leaf, kind in leaves.items() if not pa.types.is_large_binary(kind)]
    return pq.ParquetWriter(
        sink,
        schema,
        compression={leaf: "zstd" if leaf in texts else "none" for leaf in leaves},
        use_dictionary=texts,
        write_statistics=texts,
        write_page_checksum=True,
    )
