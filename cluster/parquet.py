"""Write tables as Parquet files with checksums, and check tables that others have written.

A Parquet file of somebody else may be damaged, hold other types than a schema has, or strings that are no UTF-8. Every
function here that reads one raises a ValueError that names it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.stores.errors import StorageError

T = TypeVar("T")

_KINDS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "bytes": (
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        pa.types.is_fixed_size_binary,
    ),
    "whole numbers": (pa.types.is_integer,),
    "numbers": (pa.types.is_floating, pa.types.is_integer),
}
CONTENT_ERRORS = (OSError, pa.ArrowException, UnicodeDecodeError)
"""What pyarrow raises for content that it cannot read. An OSError can also be the storage's; `reading` tells."""
READ_ATTEMPTS = 3
"""Attempts at a read that fails although the file is the one that was written."""
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


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


def decode(data: bytes, source: str) -> pa.Table:
    """Decode a whole Parquet file. Raises ValueError, which names `source`, if it is none."""
    try:
        return pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    except CONTENT_ERRORS as error:  # an OSError is a damaged page, because no file is read
        raise ValueError(f"{source}: cannot be read as Parquet ({error})") from error


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Say why the block, which reads Parquet from `uri`, fails: for the storage's reason or for the content's.

    pyarrow raises OSError for a damaged page and for storage that fails. Content is blamed only after the whole file
    was read once more.

    Raises:
        FileNotFoundError, StorageError: the storage fails to deliver the file's bytes.
        ValueError: the file is no Parquet. The message names `uri`.
    """
    try:
        yield
    except CONTENT_ERRORS as error:
        if failure := storage.failure_of(uri, error):
            raise failure from error
        for _ in storage.read_chunks(uri):
            pass
        raise ValueError(f"{uri}: cannot be read as Parquet ({error})") from error


def read_repeatedly(uri: str, read: Callable[[], T]) -> T:
    """Call `read`, which reads Parquet from `uri`, and again if one read fails. Raises as `reading`."""
    for _ in range(READ_ATTEMPTS - 1):
        with contextlib.suppress(ValueError), reading(uri):
            return read()
    with reading(uri):
        return read()


def read_written(uri: str, num_bytes: int, sha256: str, read: Callable[[], T]) -> T:
    """Call `read`, which reads Parquet from a file that this project has written, and again if one read fails.

    Args:
        uri: the file.
        num_bytes: its size when it was written.
        sha256: its hash when it was written.
        read: reads from the file, with verified checksums.

    Raises:
        FileNotFoundError, StorageError: the storage fails to deliver the file's bytes.
        DamagedError: the file was read whole, twice, and is not the one that was written.
    """
    for _ in range(READ_ATTEMPTS):
        try:
            return read()
        except CONTENT_ERRORS as error:
            if failure := storage.failure_of(uri, error):
                raise failure from error
            storage.check_content(uri, num_bytes, sha256)
            cause = error
    raise StorageError(
        f"{uri}: {READ_ATTEMPTS} reads of a part of it failed ({cause}), although it is what was written; check the "
        "storage and the memory of this machine"
    )


def check_types(found: pa.Schema, schema: pa.Schema, source: str) -> None:
    """Check that a file has all columns of a schema, once and with values of the same kind.

    Integers of another width, dictionaries of strings and lists of another layout are of the same kind.

    Raises:
        ValueError: it has not. The message names `source` and the column.
    """
    for field in schema:
        kinds = [theirs.type for theirs in found if theirs.name == field.name]
        if len(kinds) != 1:
            problem = f"occurs {len(kinds)} times" if kinds else "is missing"
            raise ValueError(f"{source}: column '{field.name}' {problem}; it needs the columns {schema.names}")
        if not _is_same_kind(kinds[0], field.type):
            raise ValueError(f"{source}: column '{field.name}' has the type {kinds[0]}; it must be {field.type}")


def cast(table: pa.Table, schema: pa.Schema, source: str) -> pa.Table:
    """Cast the columns of a schema to its types. Other columns and the metadata stay as they are.

    Raises:
        ValueError: as `check_types`, or a value does not fit its type, such as text that is not UTF-8.
    """
    check_types(table.schema, schema, source)
    for field in schema:
        index = table.schema.get_field_index(field.name)
        try:
            column = table[index].cast(field.type)
            column.validate(full=True)
        except pa.ArrowException as error:
            raise ValueError(
                f"{source}: column '{field.name}' has values that are not {field.type} ({error})"
            ) from error
        table = table.set_column(index, field, column)
    return table


def _is_same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found):
        return True
    if pa.types.is_dictionary(found):
        return _is_same_kind(found.value_type, wanted)
    if pa.types.is_list(wanted):
        return any(is_list(found) for is_list in _LISTS) and _is_same_kind(found.value_type, wanted.value_type)
    kind = next(tests for tests in _KINDS.values() if any(test(wanted) for test in tests))
    return any(test(found) for test in kind)
