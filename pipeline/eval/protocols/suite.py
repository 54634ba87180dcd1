"""Define the table of benchmarks, and compute scores from the features that benchmark_flow.py encoded.

Text features are passed as a mapping from the text, so classes and captions are joined by name, never by position.
Shape legend: N samples, E joint embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.eval.protocols import retrieval
from pipeline.eval.protocols.statistics import Score, chance_of_recall, grouped_interval, proportion_interval
from pipeline.eval.sets.evaluation_sets import Dataset, Kind
from pipeline.eval.sets.prompts import prompts_of

NUM_LABELS_KEPT = 5

CLASSIFIED = pa.schema(
    [
        ("sample", pa.int64()),
        ("truth", pa.string()),
        ("predicted", pa.string()),
        # The most probable classes, best first, and their probabilities.
        ("labels", pa.list_(pa.string())),
        ("probabilities", pa.list_(pa.float32())),
    ]
)
RANKED = pa.schema(
    [
        ("direction", pa.string()),
        ("sample", pa.int64()),
        # The caption that is the query; null if the query is an image.
        ("caption", pa.string()),
        # Wrong candidates that score at least as high as the best right one.
        ("rank", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Benchmark:
    """A row of the table: the name of a set, its title in reports, and a short description."""

    name: str
    title: str
    about: str


SUITE = (
    # The rendered pictures are held out: they are drawn like those of the demo's web, but from another seed.
    Benchmark("rendered_shape", "Shape", "rendered pictures, 8 shapes"),
    Benchmark("rendered_colour", "Colour", "rendered pictures, 10 colours"),
    Benchmark("rendered_count", "Count", "rendered pictures, one to five things"),
    Benchmark("rendered_digit", "Digit", "rendered pictures of printed digits"),
    Benchmark("sklearn_digits", "Handwriting", "1,797 digits written by people, never seen in training"),
    Benchmark("rendered_pairs", "Pairs", "rendered pictures and their captions"),
)
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores and predictions of one set.

    Attributes:
        scores: scores by name, such as "rendered_shape" or "rendered_pairs/image_to_text_r@1".
        per_class: accuracy of each class by its name; empty for retrieval.
        predictions: CLASSIFIED with one row per sample, or RANKED with one row per query.
    """

    scores: dict[str, Score]
    per_class: dict[str, Score]
    predictions: pa.Table


def texts_of(dataset: Dataset, captions: Sequence[Sequence[str]]) -> list[str]:
    """List every text of the set to encode, each once, in order of first use.

    Args:
        dataset: the set.
        captions: the captions of each sample, for retrieval; empty for classification.
    """
    return list(dict.fromkeys(text for texts in (*prompts_by_class(dataset), *captions) for text in texts))


def prompts_by_class(dataset: Dataset) -> list[list[str]]:
    """The prompts of each class, in the order of the classes and of the templates."""
    return [prompts_of(name, dataset.templates) for name in dataset.classes]


def prompt_features(dataset: Dataset, text_features: Mapping[str, Tensor]) -> Tensor:
    """Stack the features of all prompts to [C, T, E] (C classes, T templates). `text_features` has prompts as keys."""
    return torch.stack([torch.stack([text_features[text] for text in texts]) for texts in prompts_by_class(dataset)])


def score_classification(dataset: Dataset, labels: Sequence[int], probabilities: Tensor) -> Evaluation:
    """Compute zero-shot top-1 accuracy, overall and per class. The chance level is a random guess of the class.

    Args:
        dataset: a classification set.
        labels: index of each sample's class in the set's classes, [N].
        probabilities: probability of each class for each sample, in order of the samples, [N, C].
    """
    assert dataset.kind is Kind.CLASSIFICATION
    assert probabilities.shape == (len(labels), len(dataset.classes)), probabilities.shape
    # A stable sort, so that classes with equal probabilities keep the order of the set's classes.
    ordered, order = probabilities.sort(dim=1, descending=True, stable=True)
    truth = np.asarray(labels)
    right = order[:, 0].numpy() == truth
    chance = 1 / len(dataset.classes)
    per_class = {
        name: _proportion(right[truth == index], chance, "accuracy")
        for index, name in enumerate(dataset.classes)
        if (truth == index).any()
    }
    names = np.array(dataset.classes, dtype=object)
    predictions = pa.table(
        {
            "sample": np.arange(len(truth)),
            "truth": names[truth],
            "predicted": names[order[:, 0].numpy()],
            "labels": names[order[:, :NUM_LABELS_KEPT].numpy()].tolist(),
            "probabilities": ordered[:, :NUM_LABELS_KEPT].tolist(),
        },
        schema=CLASSIFIED,
    )
    scores = {dataset.name: _proportion(right, chance, "accuracy")}
    return Evaluation(scores=scores, per_class=per_class, predictions=predictions)


def score_retrieval(
    dataset: Dataset,
    captions: Sequence[Sequence[str]],
    image_features: Tensor,
    text_features: Mapping[str, Tensor],
) -> Evaluation:
    """Compute R@1, R@5 and R@10 in both directions. The chance level is a random draw of k candidates.

    Args:
        dataset: a retrieval set.
        captions: the captions of each sample, at least one per sample.
        image_features: unnormalised embeddings in order of the samples, [N, E].
        text_features: unnormalised embedding [E] of every caption, keyed by the caption.
    """
    assert dataset.kind is Kind.RETRIEVAL
    assert len(captions) == len(image_features)
    texts = [text for own in captions for text in own]
    counts = np.array([len(own) for own in captions])
    image_of_text = np.repeat(np.arange(len(captions)), counts)
    features = torch.stack([text_features[text] for text in texts])
    ranks_by_image = retrieval.text_ranks(image_features, features, torch.from_numpy(image_of_text)).numpy()
    ranks_by_text = retrieval.image_ranks(image_features, features, torch.from_numpy(image_of_text)).numpy()
    scores = {}
    for k in retrieval.RECALL_AT:
        metric = f"r@{k}"
        chance = float(np.mean([chance_of_recall(int(count), len(texts), k) for count in counts]))
        scores[f"{dataset.name}/image_to_text_{metric}"] = _proportion(ranks_by_image < k, chance, metric)
    for k in retrieval.RECALL_AT:
        metric = f"r@{k}"
        chance = chance_of_recall(1, len(captions), k)
        score = _grouped(ranks_by_text < k, image_of_text, counts, chance, metric)
        scores[f"{dataset.name}/text_to_image_{metric}"] = score
    by_image, by_text = DIRECTIONS
    predictions = pa.table(
        {
            "direction": [by_image] * len(captions) + [by_text] * len(texts),
            "sample": np.concatenate([np.arange(len(captions)), image_of_text]),
            "caption": [None] * len(captions) + texts,
            "rank": np.concatenate([ranks_by_image, ranks_by_text]),
        },
        schema=RANKED,
    )
    return Evaluation(scores=scores, per_class={}, predictions=predictions)


def benchmark_of(score_name: str) -> Benchmark:
    """Find the row of the table that a score belongs to. A set that is not in the table gets its name as title."""
    name = score_name.partition("/")[0]
    return next((row for row in SUITE if row.name == name), Benchmark(name, name.replace("_", " "), ""))


def _proportion(right: np.ndarray, chance: float, metric: str) -> Score:
    low, high = proportion_interval(int(right.sum()), len(right))
    return Score(value=float(right.mean()), low=low, high=high, chance=chance, metric=metric, num_samples=len(right))


def _grouped(right: np.ndarray, groups: np.ndarray, counts: np.ndarray, chance: float, metric: str) -> Score:
    """Score samples in groups: the interval is exact if each group has one sample, else that of groups."""
    if (counts == 1).all():
        return _proportion(right, chance, metric)
    hits = np.bincount(groups, weights=right, minlength=len(counts)).astype(np.float64)
    low, high = grouped_interval(hits, counts.astype(np.float64))
    return Score(value=float(right.mean()), low=low, high=high, chance=chance, metric=metric, num_samples=len(right))
