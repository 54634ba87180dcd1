"""Score a model during training, on all sets, in one process, without storing features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa

from pipeline.eval.features.encoder import Encoder
from pipeline.eval.flows import benchmark_flow
from pipeline.eval.protocols.suite import prompts_by_class, texts_of
from pipeline.model.weights.model_folder import Model


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the models of a training run's checkpoints are scored."""

    datasets: str | None = None
    """Folder of evaluation sets, as for jobs.benchmark. Each checkpoint's model is scored on all of them; unset: no
    validation. Do not use images here on which the final model is evaluated."""
    cpus: float = 1
    """Logical CPUs that a validation holds while it runs, in addition to those of the workers."""
    gpus: float = 0
    """GPUs that a validation holds while it runs."""
    batch_size: int = 64
    """Images or texts per forward pass."""

    def __post_init__(self) -> None:
        for name, least in (("cpus", 0), ("gpus", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"validation.{name} = {getattr(self, name)}: must be at least {least}")


def score_model(
    model: Model, *, sources: Sequence[benchmark_flow.Source], batch_size: int, device: str
) -> dict[str, float]:
    """Score a model on all sets that it can be scored on. Returns scores by name, as in jobs.benchmark.

    Args:
        model: a model of any objective.
        sources: the sets.
        batch_size: images or texts per forward pass.
        device: "cpu" or "cuda".

    Raises:
        ValueError: an image cannot be read, or the model computes embeddings that are not finite.
    """
    encoder = Encoder(model, batch_size, device)
    scores: dict[str, float] = {}
    objective = model.network.config.objective
    for source in sources:
        if benchmark_flow.covers(objective, source):
            texts = None if objective == "caption" else encoder.encode_texts(texts_of(source.dataset, source.captions))
            evaluation = benchmark_flow.score(source, objective, _encode_images(encoder, source), texts)
            scores |= {name: score.value for name, score in evaluation.scores.items()}
    return scores


def _encode_images(encoder: Encoder, source: benchmark_flow.Source) -> pa.Table:
    tables = []
    for row_group, start in enumerate(accumulate(source.row_groups[:-1], initial=0)):
        images = benchmark_flow.read_images(source.uri, row_group)["image"].to_pylist()
        if encoder.network.config.objective == "caption":
            tables.append(encoder.score_classes(images, start, source.uri, prompts_by_class(source.dataset)))
        else:
            tables.append(encoder.encode_images(images, start, source.uri))
    return pa.concat_tables(tables)
