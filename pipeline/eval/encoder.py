"""Images and texts to features, in batches: the state that an actor keeps is the model. Shape legend: N rows, E joint
embedding."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

import pipeline

IMAGE_FEATURES = pa.schema([("sample", pa.int64()), ("features", pa.list_(pa.float32()))])
# The model's factor on cosine similarities is the same in every row.
TEXT_FEATURES = pa.schema([("text", pa.string()), ("features", pa.list_(pa.float32())), ("logit_scale", pa.float32())])


class Encoder:
    """A model that turns images and texts into tables of unnormalised float32 features."""

    def __init__(self, folder: str | Path, batch_size: int, device: str) -> None:
        self.model, self.preprocess, self.tokenize = pipeline.load(folder, device=device)
        self.batch_size = batch_size
        self.device = device

    def encode_images(self, images: Sequence[bytes], first_sample: int, source: str) -> pa.Table:
        """Features of images (JPEG, PNG, ...) whose sample numbers count up from `first_sample`: IMAGE_FEATURES.

        Raises:
            ValueError: an image cannot be read, naming `source` and the sample, for a set with a hole is not scored;
                or the model gives embeddings that are not finite.
        """
        samples = range(first_sample, first_sample + len(images))
        features = []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch_size):
                rows = slice(start, start + self.batch_size)
                pixels = [
                    self._decode(image, sample, source)
                    for image, sample in zip(images[rows], samples[rows], strict=True)
                ]
                features.append(self.model.encode_image(torch.stack(pixels).to(self.device)))
        return pa.table({"sample": list(samples), "features": _to_lists(features)}, schema=IMAGE_FEATURES)

    def encode_texts(self, texts: Sequence[str]) -> pa.Table:
        """Features of texts: TEXT_FEATURES, in their order. Raises ValueError for embeddings that are not finite."""
        features = []
        with torch.inference_mode():
            for start in range(0, len(texts), self.batch_size):
                tokens = self.tokenize(list(texts[start : start + self.batch_size]))
                features.append(self.model.encode_text(tokens.to(self.device)))
            scale = float(self.model.logit_scale.exp())
        columns = {"text": list(texts), "features": _to_lists(features), "logit_scale": [scale] * len(texts)}
        return pa.table(columns, schema=TEXT_FEATURES)

    def _decode(self, image: bytes, sample: int, source: str) -> Tensor:
        try:
            with Image.open(io.BytesIO(image)) as picture:
                return self.preprocess(picture.convert("RGB"))
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(f"{source}: the image of sample {sample} cannot be read ({error})") from error


def features_of(table: pa.Table) -> Tensor:
    """The features of an IMAGE_FEATURES or TEXT_FEATURES table as float32 [N, E]."""
    rows = table["features"].combine_chunks()
    return torch.from_numpy(rows.flatten().to_numpy().reshape(len(rows), -1).copy())


def _to_lists(batches: Iterable[Tensor]) -> pa.Array:
    features = torch.cat([batch.float().cpu() for batch in batches]).numpy()
    if not np.isfinite(features).all():
        raise ValueError("the model gives embeddings that are not finite; it has diverged and cannot be scored")
    offsets = np.arange(0, features.size + 1, features.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, features.ravel())
