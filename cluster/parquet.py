"""Write tables as Parquet files with checksums."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def encode(table: pa.Table) -> bytes:
    """Encode a table as a Parquet file. Equal rows give equal bytes."""
    sink = pa.BufferOutputStream()
    with writer(sink, table.schema) as file:
        file.write_table(table)
    return bytes(sink.getvalue())


def writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A Parquet writer that gives every page a checksum.

    Columns use zstd, dictionaries and statistics, except large_binary columns, which hold JPEG images.
    """
    leaves = {f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name: f.type for f in schema}
    compressed = [leaf for leaf, kind in leaves.items() if not pa.types.is_large_binary(kind)]
    return pq.ParquetWriter(
        sink,
        schema,
        compression={leaf: "zstd" if leaf in compressed else "none" for leaf in leaves},
        use_dictionary=compressed,
        write_statistics=compressed,
        write_page_checksum=True,
    )
