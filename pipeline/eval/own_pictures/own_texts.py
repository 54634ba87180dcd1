"""Compare a user's own labels and search texts with encoded images. Shapes: N images, C labels, E joint embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.eval.protocols.zero_shot import build_classifier, class_probabilities
from pipeline.eval.sets.prompts import check_templates, prompts_of
from pipeline.model.objectives.clip import CLIP

Tokenize = Callable[[str | list[str]], Tensor]


@dataclass(frozen=True)
class Guess:
    """A label and its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Match:
    """The index of an image, and its cosine similarity with the text."""

    image: int
    similarity: float


def check_labels(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Check that probabilities can be computed for the labels.

    Raises:
        ValueError: there are fewer than two labels, a label is empty or repeated, or a template lacks `{}`.
    """
    if not labels:
        raise ValueError('labels: give what may be in the images, such as --labels "a dog" "a cat"')
    if any(not label.strip() for label in labels):
        raise ValueError("labels: a label is empty")
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise ValueError(f"labels: {repeated[0]!r} is given more than once")
    if len(labels) == 1:
        raise ValueError(
            f"labels: {labels[0]!r} is the only label, so its probability is always 100%; give more labels"
        )
    check_templates(templates, "template")


def check_text(text: str) -> None:
    """Raise ValueError for an empty search text."""
    if not text.strip():
        raise ValueError('text: give what to look for, such as --text "a red circle"')


def build_labels(
    model: CLIP, tokenize: Tokenize, labels: Sequence[str], templates: Sequence[str], device: str
) -> Tensor:
    """The classifier of the labels in all templates: float32 C x E, on the CPU. One forward pass per label.

    Raises:
        ValueError: the model cannot distinguish two labels.
    """
    label_by_tokens: dict[bytes, str] = {}
    features = []
    for label in labels:
        tokens = tokenize(prompts_of(label, templates))
        first = label_by_tokens.setdefault(tokens.numpy().tobytes(), label)
        if first != label:
            raise ValueError(
                f"labels: {first!r} and {label!r} are the same to the model, which ignores case and reads at most "
                f"{tokens.shape[1]} tokens"
            )
        with torch.inference_mode():
            features.append(model.encode_text(tokens.to(device)).float().cpu())
    return build_classifier(torch.stack(features))


def guess(
    image_features: Tensor, classifier: Tensor, labels: Sequence[str], logit_scale: float
) -> list[tuple[Guess, ...]]:
    """All labels for each image, most probable first. Labels of equal probability keep their order."""
    probabilities = class_probabilities(image_features, classifier, logit_scale)
    order = probabilities.sort(dim=1, descending=True, stable=True)
    return [
        tuple(Guess(labels[index], value) for value, index in zip(values, indices, strict=True))
        for values, indices in zip(order.values.tolist(), order.indices.tolist(), strict=True)
    ]


def search(
    model: CLIP, tokenize: Tokenize, text: str, image_features: Tensor, num_best: int, device: str
) -> list[Match]:
    """The images most similar to a text, most similar first. Images of equal similarity keep their order."""
    with torch.inference_mode():
        feature = model.encode_text(tokenize(text).to(device)).float().cpu()
    similarities = (F.normalize(image_features, dim=-1) @ F.normalize(feature, dim=-1).T).squeeze(1)
    order = similarities.sort(descending=True, stable=True)
    best = zip(order.indices.tolist()[:num_best], order.values.tolist()[:num_best], strict=True)
    return [Match(image, similarity) for image, similarity in best]
