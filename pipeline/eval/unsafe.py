"""Classify unsafe images zero-shot, with a trained model and two lists of prompts.

This is an example. docs/safety.md explains how to configure it, how to write another classifier, and its limits.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.eval.features.encoder import Encoder, features_of
from pipeline.eval.protocols.zero_shot import build_classifier, class_probabilities
from pipeline.model.objectives.clip import CLIP
from pipeline.model.weights.loading import load_model


class ZeroShotClassifier:
    """Computes the probability that an image is unsafe: the sum of the probabilities of all unsafe prompts.

    Args:
        model: folder of a model, at the same path on every node.
        unsafe: complete prompts that describe images to reject, such as "a photo of a wound".
        safe: complete prompts for all other images; an image that fits none of them may be classified as unsafe.
        batch_size: images per forward pass.
        device: device of the model, such as "cpu" or "cuda".

    Raises:
        FileNotFoundError: the folder has no model.
        ValueError: a list of prompts is empty, or the model is not a CLIP.
    """

    def __init__(
        self, model: str, unsafe: Sequence[str], safe: Sequence[str], batch_size: int = 64, device: str = "cpu"
    ) -> None:
        for name, prompts in (("unsafe", unsafe), ("safe", safe)):
            if isinstance(prompts, str) or not prompts:
                raise ValueError(f"safety.classifier_options.{name} = {prompts!r}: must be a list of prompts")
        loaded = load_model(model)
        if not isinstance(loaded.network, CLIP):
            raise ValueError(f"safety.classifier_options.model = {model}: must be a CLIP, trained contrastively")
        self._encoder = Encoder(loaded, batch_size, device)
        self._num_unsafe = len(unsafe)
        texts = self._encoder.encode_texts([*unsafe, *safe])
        self._prompts = build_classifier(features_of(texts)[:, None])
        self._logit_scale = texts["logit_scale"][0].as_py()

    def __call__(self, images: Sequence[bytes]) -> list[float]:
        """Compute the probability that each image is unsafe.

        Raises:
            ValueError: an image cannot be decoded.
        """
        features = features_of(self._encoder.encode_images(images, 0, "safety.classifier"))
        probabilities = class_probabilities(features, self._prompts, self._logit_scale)
        unsafe: list[float] = probabilities[:, : self._num_unsafe].sum(dim=1).clamp(max=1).tolist()
        return unsafe
