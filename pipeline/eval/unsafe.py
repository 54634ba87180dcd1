"""An example of a classifier of unsafe images: zero-shot, by a model of our own and two lists of prompts.

docs/safety.md says how to configure it, how to write another one, and what this one is not good for.
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.eval.features.encoder import Encoder, features_of
from pipeline.eval.protocols.zero_shot import build_classifier, class_probabilities
from pipeline.model.objectives.clip import CLIP
from pipeline.model.weights.loading import load_model


class ZeroShotClassifier:
    """Judges an image by the texts nearest to it: the probability that it is unsafe is that of the unsafe prompts.

    Args:
        model: folder of a model, at the same place on every node.
        unsafe: prompts of what must not get in, each complete, such as "a photo of a wound".
        safe: prompts of all else; an image that none of them fits goes to the unsafe ones.
        batch_size: images in a forward pass.
        device: where the model runs.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: a list of prompts is empty, or the model is no CLIP.
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
        """The probability that each image is unsafe. Raises ValueError for one that cannot be decoded."""
        features = features_of(self._encoder.encode_images(images, 0, "safety.classifier"))
        probabilities = class_probabilities(features, self._prompts, self._logit_scale)
        unsafe: list[float] = probabilities[:, : self._num_unsafe].sum(dim=1).clamp(max=1).tolist()
        return unsafe
