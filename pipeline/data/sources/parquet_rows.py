"""Read the rows of a Parquet file. A row group that is damaged, or a file that cannot be opened, is one row with a
reason.

Nothing in a Parquet file is guaranteed: strings may be no UTF-8, dates beyond those of Python, names of columns no
text. So only columns of known types are read, and strings are read as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.stores.errors import StorageError
from pipeline.data.sources.byte_ranges import READ_BYTES
from pipeline.data.sources.rows import Row, pair_columns
from pipeline.data.sources.warc_records import ReadError
from pipeline.printable import message_of
from pipeline.reasons import Reason

_BATCH_ROWS = 256
_DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)
"""Exceptions that pyarrow raises for damaged or encrypted files."""


def read_schema(uri: str, filesystem: Any, path: str) -> pa.Schema:
    """The columns of a Parquet file.

    Raises:
        ValueError: the file cannot be read as Parquet.
        OSError: the storage failed to deliver the file's bytes.
    """
    try:
        schema = pq.read_schema(path, filesystem=filesystem)
        assert len(schema.names) == len(schema), "names are UTF-8, or this raises"
        return schema
    except StorageError:
        raise
    except _DAMAGE as error:
        _read_all(filesystem, path)
        raise ValueError(f"{uri}: cannot be read as Parquet ({message_of(error)})") from error


def parquet_rows(filesystem: Any, path: str, further_columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a Parquet file: its columns of URLs, captions and images, and the further ones.

    Columns that do not exist, exist twice, or have a type that is not read are left out.

    Raises:
        ReadError: the storage failed to deliver the file's bytes.
    """
    first = number = num_rows = 0
    try:
        with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            wanted = dict.fromkeys([*filter(None, pair_columns(names)), *further_columns])
            once = [name for name in wanted if names.count(name) == 1]
            columns = [name for name in once if _is_read(file.schema_arrow.field(name).type)]
            for group in range(file.num_row_groups):
                first = number = first + num_rows
                num_rows = file.metadata.row_group(group).num_rows
                try:
                    for values in _rows(file, group, columns):
                        yield Row(number, dict(zip(columns, values, strict=True)))
                        number += 1
                except _DAMAGE as error:
                    check_storage(filesystem, path, error)
                    yield _lost(number, first + num_rows - number, error)
    except _DAMAGE as error:
        check_storage(filesystem, path, error)
        yield _lost(number, None, error)


def _rows(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    if not columns:
        yield from [()] * file.metadata.row_group(group).num_rows
        return
    for batch in file.iter_batches(_BATCH_ROWS, [group], columns):
        yield from zip(*(values_of(batch[name]) for name in columns), strict=True)


def _lost(number: int, num_rows: int | None, error: BaseException) -> Row:
    lost = "all further rows" if num_rows is None else f"{num_rows} rows"
    return Row(number, {}, Reason.BROKEN_ARCHIVE, f"{lost}: {message_of(error)}")


def values_of(column: pa.Array) -> list[Any]:
    """The values of a column of a type that is read, with strings as bytes, and with the bytes of Hugging Face's
    images.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return values_of(column.dictionary_decode())
    if pa.types.is_struct(kind):
        return values_of(pc.struct_field(column, "bytes"))
    if _is_list(kind) and _is_string(kind.value_type):
        column = column.cast(pa.large_list(pa.large_binary()))
    elif _is_string(kind):
        column = column.cast(pa.large_binary())
    values: list[Any] = column.to_pylist()
    return values


def check_storage(filesystem: Any, path: str, error: BaseException) -> None:
    """Make sure that the storage delivers the bytes of a file, so that an error is a fault of the bytes.

    Args:
        filesystem: the filesystem of the file.
        path: the file's path on it.
        error: what reading raised.

    Raises:
        ReadError: the error is one of the storage, or the storage does not deliver all bytes.
    """
    if isinstance(error, StorageError | FileNotFoundError) or getattr(error, "errno", None) is not None:
        raise ReadError(str(error)) from error
    try:
        _read_all(filesystem, path)
    except OSError as error:
        raise ReadError(str(error)) from error


def _read_all(filesystem: Any, path: str) -> None:
    with filesystem.open_input_file(path) as file:
        num_bytes = 0
        while data := file.read(READ_BYTES):
            num_bytes += len(data)
        if num_bytes < file.size():
            raise OSError(f"{path}: the storage gave {num_bytes} of {file.size()} bytes")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings."""
    return _is_string(kind.value_type if pa.types.is_dictionary(kind) else kind) or bool(pa.types.is_null(kind))


def is_caption(kind: pa.DataType) -> bool:
    """Whether a column of this type holds strings or lists of strings."""
    return _is_string(kind.value_type) if _is_list(kind) else is_text(kind)


def is_image(kind: pa.DataType) -> bool:
    """Whether a column of this type holds bytes, or Hugging Face's images."""
    if pa.types.is_struct(kind):  # Image: {"bytes", "path"}
        return len(kind.get_all_field_indices("bytes")) == 1 and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_read(kind: pa.DataType) -> bool:
    is_integer = pa.types.is_integer(kind.value_type if _is_list(kind) else kind)
    return bool(is_integer or is_caption(kind) or is_image(kind) or _is_binary(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
