"""Rows of the snapshot -> arrays of a training step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.order import Purpose, draw
from pipeline.data.reading import Shards, reader_of
from pipeline.model.pixels import decode, random_square_crop
from pipeline.model.tokenizer import Tokenizer
from pipeline.train.plan import Plan

Arrays = dict[str, np.ndarray[Any, Any]]
"""image uint8 n x 3 x S x S; tokens int32 n x context length; length int32 n; step int64 n."""


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
        tokenizer, reader = Tokenizer.from_json(self.tokenizer_json, self.context_length), reader_of(self.shards)
        for step in steps:
            epoch, places = self.plan.share(step, self.local_batch_sizes, self.rank)
            numbers = np.concatenate([rows.numbers for rows in places])
            table = pa.concat_tables(reader.take(rows) for rows in places)
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
