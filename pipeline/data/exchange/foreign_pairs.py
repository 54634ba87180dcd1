"""Read pairs that other tools have made, without changing the bytes of images and captions.

Inputs are webdataset tars (img2dataset's, open_clip's, our own exports) and tables with images (img2dataset's Parquet
output, our own shards). The tool's values are taken if they are plausible: URL, original size, SHA-256 of the original,
and for our own exports all columns. Size and perceptual hash are always computed. If the tool does not give them, the
SHA-256 (then of the image's present bytes) and the caption's language are computed as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import blake2b, sha256
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.images.image_header import ImageConfig, inspect, perceptual_hash
from pipeline.data.snapshots import shard
from pipeline.data.sources import img2dataset
from pipeline.data.sources.parquet_rows import parquet_rows
from pipeline.data.sources.rows import IMAGE_COLUMNS, pair_columns, reason_of_row, shown
from pipeline.data.sources.rows import Row as TableRow
from pipeline.data.sources.tables import check_types
from pipeline.data.sources.tar_headers import open_tar
from pipeline.data.sources.warc_records import ReadError, Source
from pipeline.data.text.caption_rules import CaptionConfig
from pipeline.data.text.language import identifier
from pipeline.hashing import hash128
from pipeline.printable import message_of, storable
from pipeline.reasons import Reason
from pipeline.schemas import IMPORTED, conform

_READABLE = ImageConfig(min_side=1, max_aspect_ratio=float(ImageConfig.max_pixels))
"""Accepts any size and shape, because the makers of the pairs have chosen the images."""
_ID, _SHA256 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_INT32 = 2**31
_BATCH_ROWS = 256
FURTHER_COLUMNS = (
    *("pair_id", "url", "page_url", "caption_source", "language", "spare_captions", "query_ids", "sha256"),
    *("original_width", "original_height"),
)
"""The columns of tables that are taken over, beside the caption and the image."""

Row = dict[str, Any]


def check_input(uri: str, schema: pa.Schema) -> None:
    """Check that a table has images and captions.

    Raises:
        ValueError: a column is missing or has the wrong type; the message lists the table's columns.
    """
    _, caption, image = pair_columns(schema.names)
    for column, content in ((image, f"images; expected one of {list(IMAGE_COLUMNS)}"), (caption, "captions")):
        if column is None:
            raise ValueError(
                f"{uri}: no column of {content}, found {shown(schema.names)}; jobs.crawl can fetch images by URL"
            )
    check_types(uri, schema)


def read_tar(stream: BinaryIO, listed: Iterable[TableRow] = ()) -> pa.Table:
    """Read IMPORTED from a webdataset tar, and from the rows of img2dataset's table that are missing in the tar.

    Args:
        stream: the tar; must be seekable.
        listed: the rows of img2dataset's table of the tar (column key), if it exists.

    Raises:
        ReadError: the stream itself fails, whereas a damaged tar gives a row with a reason.
    """
    rows: list[Row] = []
    keys: set[str] = set()
    source: Any = Source(stream)
    try:
        with open_tar(source) as tar:
            for sample in img2dataset.samples(tar, source):
                rows.append(_guarded(partial(_row_of_sample, sample)))
                keys.add(sample.key)
    except ReadError:
        raise
    except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
        rows.append({"caption": message_of(error), "reason": img2dataset.reason_of_damage(error)})
    rows += [_guarded(partial(_row_without_image, row)) for row in img2dataset.missing_rows(listed, keys)]
    return _as_table(rows)


def read_table(filesystem: Any, path: str) -> pa.Table:
    """Read IMPORTED from a Parquet file with images and captions; all captions after an image's first are spare.

    Raises:
        ReadError: the storage failed to deliver the file's bytes, whereas damage gives a row with a reason.
    """
    rows = parquet_rows(filesystem, path, FURTHER_COLUMNS)
    parts = []
    while batch := list(islice(rows, _BATCH_ROWS)):
        parts.append(_as_table([_guarded(partial(_row_of_table, row)) for row in batch]))
    return pa.concat_tables([IMPORTED.empty_table(), *parts])


def _guarded(read: Callable[[], Row]) -> Row:
    """A row, or one with the error that reading it raised."""
    try:
        return read()
    except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
        return {"caption": message_of(error), "reason": reason_of_row(error)}


def _row_of_table(row: TableRow) -> Row:
    if row.reason is not None:
        return {"caption": row.message, "reason": row.reason}
    fields = dict(row.values)
    _, caption, image = pair_columns(list(fields))
    assert caption is not None
    assert image is not None
    captions = fields.pop(caption)
    first, *spare = (captions or [None]) if isinstance(captions, list) else [captions]
    return _row(fields | ({"spare_captions": spare} if spare else {}), first, fields.pop(image))


def _row_without_image(row: TableRow) -> Row:
    if row.reason is not None:
        return {"caption": row.message, "reason": row.reason}
    return _row(row.values, row.values.get("caption"), None)


def _row_of_sample(sample: img2dataset.Sample) -> Row:
    fields = sample.fields()
    if fields is None:
        return {"caption": sample.text, "reason": Reason.BROKEN_RECORD}
    if sample.image_is_too_long:
        return {"caption": sample.text, "reason": Reason.TOO_MANY_BYTES}
    caption = sample.text if sample.parts.get("txt") is not None else fields.get("caption")
    return _row(fields, caption, sample.image)


def _row(fields: Mapping[str, Any], caption: Any, image: bytes | None) -> Row:
    """A row of IMPORTED from the tool's values and from the image."""
    texts = {name: _text(fields.get(name)) for name in ("url", "page_url", "caption_source", "language")}
    row: Row = {
        **texts,
        "caption": _text(caption),
        "image": image,
        "original_width": _integer(fields.get("original_width")),
        "original_height": _integer(fields.get("original_height")),
        "spare_captions": _list(fields.get("spare_captions"), _text),
        "query_ids": _list(fields.get("query_ids"), _integer),
    }
    if not image:
        return row | {"reason": Reason.IMAGE_MISSING}
    if not row["caption"]:
        return row | {"reason": Reason.CAPTION_EMPTY}
    try:
        header = inspect(image, _READABLE)
        if isinstance(header, tuple):
            return row | {"reason": header[0]}
        row["phash"] = int(perceptual_hash([image])[0])
    except Exception:  # noqa: BLE001 - whatever a decoder raises for one image costs its own row only
        return row | {"reason": Reason.CORRUPT_IMAGE}
    if "language" not in fields:
        guess = identifier()([row["caption"]])[0]
        row["language"] = guess.language if guess.confidence >= CaptionConfig.min_language_confidence else None
    given = {name: _text(fields.get(name)) for name in ("pair_id", "sha256")}
    url = row["url"] or f"table:{blake2b(image, digest_size=16).hexdigest()}"
    return row | {
        "pair_id": given["pair_id"] if _is(given["pair_id"], _ID) else hash128(url, row["caption"]),
        "sha256": given["sha256"] if _is(given["sha256"], _SHA256) else sha256(image).hexdigest(),
        "url": url,
        "width": header.shown_size[0],
        "height": header.shown_size[1],
    }


def _as_table(rows: list[Row]) -> pa.Table:
    columns = {field.name: pa.array([row.get(field.name) for row in rows], field.type) for field in IMPORTED}
    return conform(pa.table(columns), IMPORTED)


def _text(value: Any) -> str | None:
    """The value as a string that Arrow can store, or None if it is no string.

    Raises:
        UnicodeDecodeError: a string of a table is not UTF-8.
    """
    if isinstance(value, bytes):
        return value.decode()
    return storable(value) if isinstance(value, str) else None


def _integer(value: Any) -> int | None:
    is_int32 = isinstance(value, int) and not isinstance(value, bool) and -_INT32 <= value < _INT32
    return value if is_int32 else None


def _list(values: Any, read: Any) -> list[Any] | None:
    return [read(value) for value in values] if isinstance(values, list) else None


def _is(value: Any, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def shard_of(table: pa.Table, count: int, seed: int) -> npt.NDArray[np.int32]:
    """The shard of each row; dropped rows have no id and get the first shard."""
    ids = pc.fill_null(table["pair_id"], "0" * 32)
    return shard.shard_of(pa.table({"pair_id": ids}), count, seed)


def is_first(table: pa.Table) -> pa.BooleanArray:
    """For each row whether it is the first with its pair_id."""
    _, rows = np.unique(table["pair_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    first = np.zeros(table.num_rows, bool)
    first[rows] = True
    return pa.array(first)


def mark_duplicates(table: pa.Table) -> pa.Table:
    """Drop all rows but the first with each pair_id, by a column `reason`."""
    reasons = [None if first else Reason.DUPLICATE_PAIR for first in is_first(table).to_pylist()]
    return table.append_column("reason", pa.array(reasons, pa.string()))
