"""Read candidates from tables of URLs with captions, or of images with captions (Parquet, CSV).

A row that cannot be read is a row with a reason, and the rows after it are read. So is a row group that is damaged.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.sources.byte_ranges import READ_BYTES
from pipeline.data.sources.page import Candidate, as_table, candidate
from pipeline.data.sources.warc_records import ReadError
from pipeline.printable import message_of, printable, storable
from pipeline.reasons import Reason

TABLE_SUFFIXES = (".parquet", ".csv")
URL_COLUMNS = ("url", "URL")
CAPTION_COLUMNS = ("caption", "text", "TEXT", "captions")
IMAGE_COLUMNS = ("image", "jpg", "png", "webp")
_BATCH_ROWS = 256
MAX_FIELD_CHARACTERS = 2**20
"""Maximum length of a CSV field. A quotation mark that is never closed spoils at most the rows up to here."""


class Row(NamedTuple):
    """One row of a table, or the reason why it cannot be read."""

    number: int
    """Index in the table."""
    values: Mapping[str, Any]
    """Values by column. Strings of Parquet tables are bytes, because nothing guarantees that they are valid UTF-8."""
    reason: Reason | None = None
    message: str | None = None


def check_table(uri: str, filesystem: Any, path: str) -> None:
    """Make sure that a table has a column of URLs or images and a column of captions.

    Raises:
        ValueError: a column is missing or has the wrong type, or the file is not in the format of its suffix. If a
            column is missing, the message lists the existing columns.
    """
    try:
        schema = _table_schema(uri, filesystem, path)
    except (pa.ArrowInvalid, csv.Error) as error:
        kind = "CSV" if uri.endswith(".csv") else "Parquet"
        raise ValueError(f"{uri}: cannot be read as {kind} ({error})") from error
    names, shown = schema.names, [printable(name) for name in schema.names]
    if not set(names) & set(CAPTION_COLUMNS):
        raise ValueError(f"{uri}: no caption column; expected one of {list(CAPTION_COLUMNS)}, found {shown}")
    if not set(names) & {*URL_COLUMNS, *IMAGE_COLUMNS}:
        raise ValueError(
            f"{uri}: no URL or image column; expected one of {[*URL_COLUMNS, *IMAGE_COLUMNS]}, found {shown}"
        )
    check_types(uri, schema)


def check_types(uri: str, schema: pa.Schema) -> None:
    """Make sure that each column of URLs, captions or images exists once and has the right type.

    Raises:
        ValueError: one has not.
    """
    checks = (("strings", _is_text), ("strings, or lists of them", _is_caption), ("bytes", _is_image))
    for column, (expected, fits) in zip(pair_columns(schema.names), checks, strict=True):
        if column and schema.names.count(column) > 1:
            raise ValueError(f"{uri}: {schema.names.count(column)} columns are called {column!r}; rename all but one")
        if column and not fits(schema.field(column).type):
            raise ValueError(f"{uri}: column {column!r} holds {schema.field(column).type}, expected {expected}")


def read_table(uri: str, filesystem: Any, path: str) -> pa.Table:
    """Read candidates from a table of URLs and captions, or of images and captions (Parquet or CSV).

    The column names are those of LAION, DataComp, CC12M, img2dataset and Hugging Face. Each caption of a row gives one
    candidate; `record_offset` is the row number.

    Raises:
        ReadError: the storage failed to deliver the file's bytes.
    """
    rows = _csv_rows(filesystem, path) if uri.endswith(".csv") else parquet_rows(filesystem, path)
    candidates: list[Candidate] = []
    row_numbers: list[int] = []
    for row in rows:
        found = _candidates(row)
        candidates += found
        row_numbers += [row.number] * len(found)
    return as_table(candidates, archive=[uri] * len(candidates), record_offset=row_numbers)


def pair_columns(names: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The names of the columns that contain URLs, captions and images; None for a missing column."""
    url, caption, image = (
        next((name for name in accepted if name in names), None)
        for accepted in (URL_COLUMNS, CAPTION_COLUMNS, IMAGE_COLUMNS)
    )
    return url, caption, image


def values_of(column: pa.Array) -> list[Any]:
    """The values of a column, with strings as bytes, and with the bytes of Hugging Face's images."""
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


def _candidates(row: Row) -> list[Candidate]:
    if row.reason is not None:
        return [Candidate(reason=row.reason, caption=row.message)]
    url_column, caption_column, image_column = pair_columns(list(row.values))
    assert caption_column is not None
    captions = row.values[caption_column]
    url = ""
    try:
        url = _text(row.values[url_column]) if url_column else ""
        image = row.values[image_column] if image_column else None
        texts = [_text(text) for text in (captions or [""])] if isinstance(captions, list) else [_text(captions)]
        return [candidate(url, text, "table", image) for text in texts]
    except UnicodeDecodeError as error:
        return [Candidate(url=url or None, caption=message_of(error), reason=Reason.BROKEN_RECORD)]
    except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
        return [Candidate(url=url or None, caption=message_of(error), reason=Reason.UNFORESEEN)]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def parquet_rows(filesystem: Any, path: str, further_columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of a Parquet file: its columns of URLs, captions and images, and those further ones that it has.

    A row group that is damaged is one row with a reason.

    Raises:
        ReadError: the storage failed to deliver the file's bytes.
    """
    with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        columns = [name for name in pair_columns(names) if name]
        columns += [name for name in further_columns if names.count(name) == 1 and name not in columns]
        first = 0
        for group in range(file.num_row_groups):
            number = first
            try:
                for batch in file.iter_batches(_BATCH_ROWS, [group], columns):
                    for values in zip(*(values_of(batch[name]) for name in columns), strict=True):
                        yield Row(number, dict(zip(columns, values, strict=True)))
                        number += 1
            except (OSError, pa.ArrowException) as error:
                _check_storage(filesystem, path)
                num_lost = first + file.metadata.row_group(group).num_rows - number
                yield Row(number, {}, Reason.BROKEN_ARCHIVE, f"{num_lost} rows: {message_of(error)}")
            first += file.metadata.row_group(group).num_rows


def _check_storage(filesystem: Any, path: str) -> None:
    """Make sure that the storage delivers the bytes of a file, so that an error is a fault of the bytes.

    Raises:
        ReadError: it does not.
    """
    try:
        with filesystem.open_input_file(path) as file:
            num_bytes = 0
            while data := file.read(READ_BYTES):
                num_bytes += len(data)
            if num_bytes < file.size():
                raise OSError(f"{path}: the storage gave {num_bytes} of {file.size()} bytes")
    except OSError as error:
        raise ReadError(str(error)) from error


def _csv_rows(filesystem: Any, path: str) -> Iterator[Row]:
    with filesystem.open_input_stream(path) as stream:
        rows = _csv_reader(stream)
        names = next(rows)
        number = 0
        while True:
            try:
                fields = next(rows, None)
            except csv.Error as error:  # a field is too long; the reader goes on with the next line
                yield Row(number, {}, Reason.BROKEN_RECORD, message_of(error))
            else:
                if fields is None:
                    return
                if not fields:  # an empty line
                    continue
                yield _csv_row(number, names, fields)
            number += 1


def _csv_row(number: int, names: list[str], fields: list[str]) -> Row:
    text = ",".join(fields)
    shown = storable(text)
    if len(fields) != len(names):
        message = f"{len(fields)} fields instead of {len(names)}: {shown}"
    elif shown != text:
        message = f"not UTF-8: {shown}"
    else:
        return Row(number, dict(zip(names, fields, strict=True)))
    return Row(number, {}, Reason.BROKEN_RECORD, printable(message))


def _csv_reader(stream: Any) -> Iterator[list[str]]:
    """The rows of a CSV file, without empty lines; bytes that are not UTF-8 become lone surrogates."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    buffered = io.BufferedReader(stream)
    return csv.reader(io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline=""))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return _is_string(kind.value_type if pa.types.is_dictionary(kind) else kind) or bool(pa.types.is_null(kind))


def _is_caption(kind: pa.DataType) -> bool:
    return _is_string(kind.value_type) if _is_list(kind) else _is_text(kind)


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face's Image: {"bytes", "path"}
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _table_schema(uri: str, filesystem: Any, path: str) -> pa.Schema:
    if not uri.endswith(".csv"):
        return pq.read_schema(path, filesystem=filesystem)
    with filesystem.open_input_stream(path) as stream:
        names = next(_csv_reader(stream), None)
    if names is None:
        raise csv.Error("it is empty")
    return pa.schema([(storable(name), pa.string()) for name in names])
