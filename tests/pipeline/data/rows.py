"""Build rows of the stages' schemas from only the columns that a test needs, and small images."""

import io
import struct
import tempfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.exchange.foreign_pairs import FURTHER_COLUMNS
from pipeline.data.sources.parquet_rows import parquet_rows
from pipeline.data.sources.rows import Row
from pipeline.hashing import hash128
from pipeline.schemas import CANDIDATES, FETCHED, PICTURES, conform


def candidates(**columns: Sequence[Any]) -> pa.Table:
    """CANDIDATES with these columns; pair ids default to hashes of the row numbers."""
    return conform(pa.table(_with_ids(columns)), CANDIDATES)


def table_rows(table: pa.Table) -> list[Row]:
    """The rows of a table as they are read from a Parquet file, with the columns of img2dataset."""
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        pq.write_table(table, file.name)
        return list(parquet_rows(pyarrow.fs.LocalFileSystem(), file.name, ["key", *FURTHER_COLUMNS]))


def fetched(**columns: Sequence[Any]) -> pa.Table:
    """FETCHED with these columns; pair ids default to hashes of the row numbers."""
    return conform(pa.table(_with_ids(columns)), FETCHED)


def pictures_of(**columns: Sequence[Any]) -> pa.Table:
    """PICTURES with these columns; pair ids default to hashes of the row numbers."""
    return conform(pa.table(_with_ids(columns)), PICTURES)


def ids(count: int, salt: str = "") -> list[str]:
    """`count` different pair ids."""
    return [hash128(salt, str(number)) for number in range(count)]


def _with_ids(columns: dict[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    count = len(next(iter(columns.values())))
    return {"pair_id": ids(count), **columns}


def encode(image: Image.Image, image_type: str = "PNG", **options: Any) -> bytes:
    """Encode a picture."""
    sink = io.BytesIO()
    image.save(sink, image_type, **options)
    return sink.getvalue()


def photo_like(seed: int, width: int = 120, height: int = 90, mode: str = "RGB") -> Image.Image:
    """A picture of smooth random colours, which survive resizing and JPEG like a photograph."""
    coarse: npt.NDArray[np.uint8] = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def opened(data: bytes) -> Image.Image:
    """Open an encoded picture."""
    return Image.open(io.BytesIO(data))


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header gives this size, but which contains only a few zero bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
