"""Read candidates from tables of URLs with captions, or of images with captions (Parquet, CSV).

A row that cannot be read is a row with a reason, and the rows after it are read. So is a row group that is damaged.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.data.sources.csv_rows import column_names, csv_rows
from pipeline.data.sources.page import Candidate, as_table, candidate
from pipeline.data.sources.parquet_rows import is_caption, is_image, is_text, parquet_rows, read_schema
from pipeline.data.sources.rows import (
    CAPTION_COLUMNS,
    IMAGE_COLUMNS,
    URL_COLUMNS,
    Row,
    pair_columns,
    reason_of_row,
    shown,
)
from pipeline.printable import message_of

TABLE_SUFFIXES = (".parquet", ".csv")


def check_table(uri: str, filesystem: Any, path: str) -> None:
    """Make sure that a table has a column of URLs or images and a column of captions.

    Raises:
        ValueError: a column is missing or has the wrong type, or the file is not in the format of its suffix. If a
            column is missing, the message lists the existing columns.
        OSError: the storage failed to deliver the file's bytes.
    """
    if uri.endswith(".csv"):
        with filesystem.open_input_stream(path) as stream:
            try:
                schema = pa.schema([(name, pa.string()) for name in column_names(stream)])
            except csv.Error as error:
                raise ValueError(f"{uri}: cannot be read as CSV ({error})") from error
    else:
        schema = read_schema(uri, filesystem, path)
    names = schema.names
    if not set(names) & set(CAPTION_COLUMNS):
        raise ValueError(f"{uri}: no caption column; expected one of {list(CAPTION_COLUMNS)}, found {shown(names)}")
    if not set(names) & {*URL_COLUMNS, *IMAGE_COLUMNS}:
        raise ValueError(
            f"{uri}: no URL or image column; expected one of {[*URL_COLUMNS, *IMAGE_COLUMNS]}, found {shown(names)}"
        )
    check_types(uri, schema)


def check_types(uri: str, schema: pa.Schema) -> None:
    """Make sure that each column of URLs, captions or images exists once and has the right type.

    Raises:
        ValueError: one has not.
    """
    checks = (("strings", is_text), ("strings, or lists of them", is_caption), ("bytes", is_image))
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
    candidates: list[Candidate] = []
    row_numbers: list[int] = []
    for row in _rows(uri, filesystem, path):
        found = _candidates(row)
        candidates += found
        row_numbers += [row.number] * len(found)
    return as_table(candidates, archive=[uri] * len(candidates), record_offset=row_numbers)


def _rows(uri: str, filesystem: Any, path: str) -> Iterator[Row]:
    if not uri.endswith(".csv"):
        yield from parquet_rows(filesystem, path)
        return
    with filesystem.open_input_stream(path) as stream:
        yield from csv_rows(stream)


def _candidates(row: Row) -> list[Candidate]:
    if row.reason is not None:
        return [Candidate(reason=row.reason, caption=row.message)]
    url_column, caption_column, image_column = pair_columns(list(row.values))
    url = ""
    try:
        assert caption_column is not None, "check_table has found it"
        captions = row.values[caption_column]
        url = _text(row.values[url_column]) if url_column else ""
        image = row.values[image_column] if image_column else None
        texts = [_text(text) for text in (captions or [""])] if isinstance(captions, list) else [_text(captions)]
        return [candidate(url, text, "table", image) for text in texts]
    except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
        return [Candidate(url=url or None, caption=message_of(error), reason=reason_of_row(error))]


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""
