"""Read and decode the rows of training steps into arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from pipeline.data.snapshots.epoch_order import Purpose, Rows, draw
from pipeline.data.snapshots.reading import ShardReader, Shards
from pipeline.model.images.random_crop import REDUCED_SHRINK, Pixels, decode, random_square_crop
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.train.reading.plan import Plan

Arrays = dict[str, np.ndarray[Any, Any]]
"""Columns of n pairs: image uint8 [n, 3, S, S], tokens int32 [n, context_length], length int32 [n], step int64 [n]."""


@dataclass(frozen=True, kw_only=True)
class StepReader:
    """Reads one worker's share of a step. It is plain data until the first read, so that Ray can send it to tasks.

    A reader caches row groups, the epoch's order and the tokenizer for later steps. For 400 million pairs, computing
    the
    order takes as long as reading 1,000 images.
    """

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
        """Read this worker's share of each step, in the order of `steps`.

        Raises:
            ValueError: a file does not match the snapshot, or an image cannot be decoded.
        """
        cv2.setNumThreads(1)  # a reading task reserves one CPU
        for step in steps:
            epoch, row_groups = self.plan.share(step, self.local_batch_sizes, self.rank)
            num_rows = sum(len(rows.numbers) for rows in row_groups)
            images = np.empty((num_rows, 3, self.image_size, self.image_size), np.uint8)
            captions: list[str] = []
            for rows in row_groups:
                table = self._shard_reader.take(rows)
                self._crop(rows, table["image"], epoch, images[len(captions) :])
                captions += table["caption"].to_pylist()
            step_numbers = np.full(num_rows, step, np.int64)
            yield {"image": images, **_encode(self._tokenizer, captions), "step": step_numbers}

    @cached_property
    def _shard_reader(self) -> ShardReader:
        return ShardReader(self.shards)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_json(self.tokenizer_json, self.context_length)

    def _crop(self, rows: Rows, images: pa.ChunkedArray, epoch: int, crops: Pixels) -> None:
        """Write random square crops of a row group's images into `crops`.

        The position of a crop depends only on seed, epoch and row, and not on the worker that decodes it.
        """
        tops, lefts = (
            draw(self.seed, purpose, epoch, rows.numbers) / 2.0**64 for purpose in (Purpose.CROP_TOP, Purpose.CROP_LEFT)
        )
        least_side = REDUCED_SHRINK * self.image_size / self.crop_share
        for index, (row, image, top, left) in enumerate(zip(rows.rows, images.to_pylist(), tops, lefts, strict=True)):
            try:
                pixels = decode(image, least_side)
            except ValueError as error:
                where = f"{self.shards.paths[rows.shard]}: row {row} of row group {rows.row_group}"
                raise ValueError(
                    f"{where}: {error}; images are decoded before a snapshot is written, so the file may be damaged"
                ) from error
            crops[index] = random_square_crop(pixels, self.image_size, self.crop_share, (top, left))


def _encode(tokenizer: Tokenizer, captions: Sequence[str]) -> Arrays:
    tokens, lengths = tokenizer.encode_arrays(captions)
    padding = tokenizer.context_length - tokens.shape[1]
    return {"tokens": np.pad(tokens, ((0, 0), (0, padding))), "length": lengths}
