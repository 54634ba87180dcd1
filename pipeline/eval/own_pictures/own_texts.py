"""Labels and searches of a person's own against encoded images. Shape legend: N images, C labels, T templates."""

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
    """The number of an image, and the cosine of the angle between it and the text."""

    image: int
    similarity: float


def check_labels(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse what no probabilities can be given for.

    Raises:
        ValueError: fewer than two labels, an empty or a repeated one, or a template without `{}`.
    """
    if not labels:
        raise ValueError('labels: say what may be in the images, such as --labels "a dog" "a cat"')
    if any(not label.strip() for label in labels):
        raise ValueError("labels: one of them is empty")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"labels: {twice[0]!r} is there twice")
    if len(labels) == 1:
        raise ValueError(f"labels: {labels[0]!r} alone has a probability of 100% whatever is in the images; give more")
    check_templates(templates, "template")


def check_text(text: str) -> None:
    """Refuse to look for nothing. Raises ValueError."""
    if not text.strip():
        raise ValueError('text: say what to look for, such as --text "a red circle"')


def build_labels(
    model: CLIP, tokenize: Tokenize, labels: Sequence[str], templates: Sequence[str], device: str
) -> Tensor:
    """The classifier of labels set into every template, one forward pass for each: float32 [C, E], on the CPU.

    Raises:
        ValueError: two labels are the same to the model.
    """
    known: dict[bytes, str] = {}
    features = []
    for label in labels:
        tokens = tokenize(prompts_of(label, templates))
        other = known.setdefault(tokens.numpy().tobytes(), label)
        if other != label:
            raise ValueError(
                f"labels: {other!r} and {label!r} are the same to the model, which reads lower case, and no more than "
                f"{tokens.shape[1]} tokens"
            )
        with torch.inference_mode():
            features.append(model.encode_text(tokens.to(device)).float().cpu())
    return build_classifier(torch.stack(features))


def guess(
    image_features: Tensor, classifier: Tensor, labels: Sequence[str], logit_scale: float
) -> list[tuple[Guess, ...]]:
    """All labels for each image, the most probable first; of equal ones, the one that was named first."""
    probabilities = class_probabilities(image_features, classifier, logit_scale)
    order = probabilities.sort(dim=1, descending=True, stable=True)
    return [
        tuple(Guess(labels[index], value) for value, index in zip(values, indices, strict=True))
        for values, indices in zip(order.values.tolist(), order.indices.tolist(), strict=True)
    ]


def search(
    model: CLIP, tokenize: Tokenize, text: str, image_features: Tensor, num_best: int, device: str
) -> list[Match]:
    """The images nearest to a text, the nearest first; of equal ones, the one that comes first."""
    with torch.inference_mode():
        feature = model.encode_text(tokenize(text).to(device)).float().cpu()
    similarities = (F.normalize(image_features, dim=-1) @ F.normalize(feature, dim=-1).T).squeeze(1)
    order = similarities.sort(descending=True, stable=True)
    best = zip(order.indices.tolist()[:num_best], order.values.tolist()[:num_best], strict=True)
    return [Match(image, similarity) for image, similarity in best]
