"""Read candidates from tables of URLs with captions, or of images with captions (Parquet, CSV)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline.data.sources.page import Candidate, as_table, candidate

TABLE_SUFFIXES = (".parquet", ".csv")
URL_COLUMNS = ("url", "URL")
CAPTION_COLUMNS = ("caption", "text", "TEXT", "captions")
IMAGE_COLUMNS = ("image", "jpg", "png", "webp")
_CSV = {
    "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
    "convert_options": pyarrow.csv.ConvertOptions(  # a caption may look like a number or a date
        column_types={name: pa.string() for name in (*URL_COLUMNS, *CAPTION_COLUMNS)}
    ),
}


def check_table(uri: str, filesystem: Any, path: str) -> None:
    """Make sure that a table has a column of URLs or images and a column of captions.

    Raises:
        ValueError: a column is missing or has the wrong type, or the file is not in the format of its suffix. If a
            column is missing, the message lists the existing columns.
    """
    try:
        schema = _table_schema(uri, filesystem, path)
    except pa.ArrowInvalid as error:
        kind = "CSV" if uri.endswith(".csv") else "Parquet"
        raise ValueError(f"{uri}: cannot be read as {kind} ({error})") from error
    names = list(schema.names)
    if not set(names) & set(CAPTION_COLUMNS):
        raise ValueError(f"{uri}: no caption column; expected one of {list(CAPTION_COLUMNS)}, found {names}")
    if not set(names) & {*URL_COLUMNS, *IMAGE_COLUMNS}:
        raise ValueError(
            f"{uri}: no URL or image column; expected one of {[*URL_COLUMNS, *IMAGE_COLUMNS]}, found {names}"
        )
    checks = (("strings", _is_text), ("strings, or lists of them", _is_caption), ("bytes", _is_bytes))
    for column, (expected, fits) in zip(pair_columns(names), checks, strict=True):
        if column and not fits(schema.field(column).type):
            raise ValueError(f"{uri}: column {column!r} holds {schema.field(column).type}, expected {expected}")


def read_table(uri: str, filesystem: Any, path: str) -> pa.Table:
    """Read candidates from a table of URLs and captions, or of images and captions (Parquet or CSV).

    The column names are those of LAION, DataComp, CC12M and img2dataset. Each caption of a row gives one candidate;
    `record_offset` is the row number.
    """
    table = _read_any(uri, filesystem, path)
    url_column, caption_column, image_column = pair_columns(table.column_names)
    assert caption_column is not None, f"{uri} was not checked"
    candidates: list[Candidate] = []
    row_numbers: list[int] = []
    for row_number, row in enumerate(_rows(table, [c for c in (url_column, caption_column, image_column) if c])):
        captions = row[caption_column]
        url = row[url_column] or "" if url_column else ""
        image = row[image_column] if image_column else None
        for caption in (captions or [""]) if isinstance(captions, list) else [captions]:
            candidates.append(candidate(url, caption or "", "table", image))
            row_numbers.append(row_number)
    return as_table(candidates, archive=[uri] * len(candidates), record_offset=row_numbers)


def pair_columns(names: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The names of the columns that contain URLs, captions and images; None for a missing column."""
    url, caption, image = (
        next((name for name in accepted if name in names), None)
        for accepted in (URL_COLUMNS, CAPTION_COLUMNS, IMAGE_COLUMNS)
    )
    return url, caption, image


def _rows(table: pa.Table, columns: list[str]) -> Iterator[dict[str, Any]]:
    for batch in table.select(columns).to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_caption(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if is_list else kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _table_schema(uri: str, filesystem: Any, path: str) -> pa.Schema:
    if uri.endswith(".csv"):
        with filesystem.open_input_stream(path) as stream, pyarrow.csv.open_csv(stream, **_CSV) as reader:
            return reader.schema
    return pq.read_schema(path, filesystem=filesystem)


def _read_any(uri: str, filesystem: Any, path: str) -> pa.Table:
    if uri.endswith(".csv"):
        with filesystem.open_input_stream(path) as stream:
            return pyarrow.csv.read_csv(stream, **_CSV)
    return pq.read_table(path, filesystem=filesystem, page_checksum_verification=True)
