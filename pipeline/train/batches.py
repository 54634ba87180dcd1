"""Rows of the snapshot -> arrays of a training step."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from pipeline.model.pixels import decode, random_square_crop
from pipeline.model.tokenizer import Tokenizer
from pipeline.train.plan import Plan, Purpose, Rows, ShardInfo, draw

Arrays = dict[str, np.ndarray[Any, Any]]
"""image uint8 n x 3 x S x S; tokens int32 n x context length; length int32 n; step int64 n."""


@dataclass(frozen=True)
class Shards:
    """The files of a snapshot and how to open them."""

    filesystem: FileSystem
    paths: tuple[str, ...]
    infos: tuple[ShardInfo, ...]

    def read(self, rows: Rows) -> pa.Table:
        """Captions and images of these rows, page checksums verified.

        Raises:
            FileNotFoundError: the shard is gone.
            ValueError: the shard is damaged, or not the one that the snapshot tells of.
        """
        path, expected = self.paths[rows.shard], self.infos[rows.shard].row_groups[rows.row_group]
        with self._open(path) as file:
            table = file.read_row_group(rows.row_group, columns=["caption", "image"])
        if table.num_rows != expected:
            raise ValueError(
                f"{path}: row group {rows.row_group} has {table.num_rows} rows, the snapshot says {expected}"
            )
        return table.take(pa.array(rows.rows))

    def captions(self, most: int) -> Iterator[str]:
        """The first captions, in the snapshot's order, less what is taken down."""
        for path, info in zip(self.paths, self.infos, strict=True):
            gone = set(info.taken_down)
            with self._open(path) as file:
                for row_group in range(len(info.row_groups)):
                    found = file.read_row_group(row_group, columns=["caption"])["caption"].to_pylist()
                    captions = [text for row, text in enumerate(found) if (row_group, row) not in gone][:most]
                    yield from captions
                    most -= len(captions)
                    if not most:
                        return

    @contextmanager
    def _open(self, path: str) -> Iterator[pq.ParquetFile]:
        try:
            with pq.ParquetFile(path, filesystem=self.filesystem, page_checksum_verification=True) as file:
                yield file
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: this shard of the snapshot is gone") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{path}: this shard of the snapshot is damaged ({error})") from error


@dataclass(frozen=True, kw_only=True)
class StepReader:
    """Reads one worker's share of a step. Plain data, so that reading tasks can have it."""

    shards: Shards
    plan: Plan
    local_batch_sizes: Sequence[int]
    rank: int
    seed: int
    image_size: int
    crop_share: float
    tokenizer_json: str = field(repr=False)
    context_length: int

    def read(self, steps: Sequence[int]) -> Iterator[Arrays]:
        """The share of each step, in order.

        Raises:
            ValueError: a file is not what the snapshot says, or an image cannot be decoded.
        """
        tokenizer = Tokenizer.from_json(self.tokenizer_json, self.context_length)
        for step in steps:
            epoch, places = self.plan.share(step, self.local_batch_sizes, self.rank)
            numbers = np.concatenate([rows.numbers for rows in places])
            table = pa.concat_tables(self.shards.read(rows) for rows in places)
            yield {
                "image": self._crop(table["image"].to_pylist(), numbers, epoch),
                **_encode(tokenizer, table["caption"].to_pylist()),
                "step": np.full(len(numbers), step, np.int64),
            }

    def _crop(self, images: Sequence[bytes], numbers: np.ndarray[Any, Any], epoch: int) -> np.ndarray[Any, Any]:
        """Random square crops; where each lies depends on seed, epoch and row, so not on who decodes it."""
        tops, lefts = (
            draw(self.seed, purpose, epoch, numbers) / 2.0**64 for purpose in (Purpose.CROP_TOP, Purpose.CROP_LEFT)
        )
        return np.stack(
            [
                random_square_crop(decode(image), self.image_size, self.crop_share, (top, left))
                for image, top, left in zip(images, tops, lefts, strict=True)
            ]
        )


def _encode(tokenizer: Tokenizer, captions: Sequence[str]) -> Arrays:
    tokens, lengths = tokenizer.encode_arrays(captions)
    room = tokenizer.context_length - tokens.shape[1]
    return {"tokens": np.pad(tokens, ((0, 0), (0, room))), "length": lengths}
