"""Write the pairs of a shard as a webdataset tar in img2dataset's layout, which open_clip can train from.

A pair is three members with the same key: key.jpg (or .png, .webp), the unchanged image; key.json, img2dataset's fields
and ours; key.txt, the caption. The key is the shard's number and the pair's row in the shard, so it does not change
when other pairs are taken down. A tar depends only on its pairs: times and owners are zero.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.data.images.image_header import image_type

SUFFIX = ".tar"
_EXTENSIONS = {"PNG": "png", "WEBP": "webp"}
"""Extensions by image type. Other types are named jpg: open_clip reads no other name, and decoders go by content."""
_SHARD_DIGITS, _ROW_DIGITS = 5, 4
"""Minimum number of digits, as in img2dataset's output."""


def shard_name(shard: int, num_shards: int) -> str:
    """The number of a shard with leading zeros, such as 00012."""
    return str(shard).zfill(max(_SHARD_DIGITS, len(str(num_shards - 1))))


class TarWriter:
    """Writes pairs, row group by row group, and counts them.

    Args:
        sink: file to write to.
        shard: prefix of the keys (`shard_name`).
        max_rows: maximum number of pairs in a shard, including pairs that were taken down.
    """

    def __init__(self, sink: BinaryIO, shard: str, max_rows: int) -> None:
        self.num_pairs = 0
        self._sink = sink
        self._shard = shard
        self._digits = max(_ROW_DIGITS, len(str(max_rows - 1)))
        self._num_bytes = 0

    def write(self, table: pa.Table, rows: Sequence[int]) -> None:
        """Write pairs.

        Args:
            table: PAIRS.
            rows: row of each pair in its shard.
        """
        for row, pair in zip(rows, table.to_pylist(), strict=True):
            key = f"{self._shard}{row:0{self._digits}d}"
            image = pair["image"]
            self._member(f"{key}.{_EXTENSIONS.get(image_type(image) or '', 'jpg')}", image)
            self._member(f"{key}.json", json.dumps(fields_of(key, pair)).encode())
            self._member(f"{key}.txt", pair["caption"].encode())
            self.num_pairs += 1

    def close(self) -> None:
        """Write the end of the tar."""
        end = 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -(self._num_bytes + end) % tarfile.RECORDSIZE))

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        self._write(data)
        self._write(bytes(-len(data) % tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self._num_bytes += len(data)


def fields_of(key: str, pair: dict[str, Any]) -> dict[str, Any]:
    """The content of key.json: all columns of PAIRS except the image, the hash in hexadecimal, and a status."""
    columns = {name: value for name, value in pair.items() if name != "image"}
    phash = None if pair["phash"] is None else f"{pair['phash']:016x}"
    return {**columns, "phash": phash, "key": key, "status": "success", "error_message": None}
