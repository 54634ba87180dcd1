"""Encode images and texts to features, in batches.

Shape legend: N rows, C classes, T templates, E joint embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.model.images.preprocess import preprocess_for
from pipeline.model.objectives.bag_of_words import BagPredictor
from pipeline.model.objectives.caption_model import Captioner
from pipeline.model.weights.model_folder import Model
from pipeline.pictures.decode import decode

IMAGE_FEATURES = pa.schema([("sample", pa.int64()), ("features", pa.list_(pa.float32()))])
# The model's factor on cosine similarities is the same in every row.
TEXT_FEATURES = pa.schema([("text", pa.string()), ("features", pa.list_(pa.float32())), ("logit_scale", pa.float32())])
# One score per class of a set, for a model without text features.
CLASS_SCORES = pa.schema([("sample", pa.int64()), ("scores", pa.list_(pa.float32()))])


class Encoder:
    """Computes tables of unnormalised float32 features of images and texts, or class scores of images, with a model."""

    def __init__(self, model: Model, batch_size: int, device: str) -> None:
        self.network = model.network.to(device).eval()
        self.preprocess = preprocess_for(self.network.config.image.image_size)
        self.tokenize = model.tokenizer
        self.batch_size = batch_size
        self.device = device

    def encode_images(self, images: Sequence[bytes], first_sample: int, source: str) -> pa.Table:
        """Encode images (JPEG, PNG, ...) to IMAGE_FEATURES. Their sample numbers count up from `first_sample`.

        Raises:
            ValueError: an image cannot be read, or the model computes embeddings that are not finite. For an image the
                message names `source` and the sample. It is not skipped, because an incomplete set must not be scored.
        """
        samples = range(first_sample, first_sample + len(images))
        with torch.inference_mode():
            features = list(self._encode_images(images, samples, source))
        return pa.table({"sample": list(samples), "features": _to_lists(features)}, schema=IMAGE_FEATURES)

    def score_classes(
        self, images: Sequence[bytes], first_sample: int, source: str, prompts: Sequence[Sequence[str]]
    ) -> pa.Table:
        """Compute CLASS_SCORES: for each image and class the mean log-likelihood of the class's prompts.

        Args:
            images: as for `encode_images`, which also documents the errors.
            first_sample: as for `encode_images`.
            source: as for `encode_images`.
            prompts: the prompts of every class in every template, C x T.
        """
        assert isinstance(self.network, Captioner)
        samples = range(first_sample, first_sample + len(images))
        tokens, _ = self.tokenize.encode([text for texts in prompts for text in texts])
        with torch.inference_mode():
            scores = [
                self.network.score_captions(features, tokens.to(self.device))
                .view(len(features), len(prompts), -1)
                .mean(dim=2)
                for features in self._encode_images(images, samples, source)
            ]
        return pa.table({"sample": list(samples), "scores": _to_lists(scores)}, schema=CLASS_SCORES)

    def encode_texts(self, texts: Sequence[str]) -> pa.Table:
        """Encode texts to TEXT_FEATURES, in the same order. Raises ValueError for embeddings that are not finite."""
        network = self.network
        assert not isinstance(network, Captioner), "a caption model has no features of texts"
        features = []
        with torch.inference_mode():
            for start in range(0, len(texts), self.batch_size):
                tokens = self.tokenize(list(texts[start : start + self.batch_size]))
                features.append(network.encode_text(tokens.to(self.device)))
            scale = 1.0 if isinstance(network, BagPredictor) else float(network.logit_scale.exp())
        columns = {"text": list(texts), "features": _to_lists(features), "logit_scale": [scale] * len(texts)}
        return pa.table(columns, schema=TEXT_FEATURES)

    def _encode_images(self, images: Sequence[bytes], samples: range, source: str) -> Iterator[Tensor]:
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            pixels = [
                self._decode(image, sample, source) for image, sample in zip(images[rows], samples[rows], strict=True)
            ]
            yield self.network.encode_image(torch.stack(pixels).to(self.device))

    def _decode(self, image: bytes, sample: int, source: str) -> Tensor:
        try:
            return self.preprocess(decode(image))
        except ValueError as error:
            raise ValueError(f"{source}: the image of sample {sample} cannot be read ({error})") from error


def features_of(table: pa.Table, column: str = "features") -> Tensor:
    """The features of an IMAGE_FEATURES or TEXT_FEATURES table as float32 [N, E], or the scores of CLASS_SCORES."""
    rows = table[column].combine_chunks()
    return torch.from_numpy(rows.flatten().to_numpy().reshape(len(rows), -1).copy())


def _to_lists(batches: Iterable[Tensor]) -> pa.Array:
    features = torch.cat([batch.float().cpu() for batch in batches]).numpy()
    if not np.isfinite(features).all():
        raise ValueError("the model computes embeddings that are not finite; it has diverged and cannot be scored")
    offsets = np.arange(0, features.size + 1, features.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, features.ravel())
