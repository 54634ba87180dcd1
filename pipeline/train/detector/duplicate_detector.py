"""Training of the duplicate detector (CLIP paper, appendix C): InfoNCE between two versions of each picture.

Of a batch of N pictures two versions are made each; an embedding is to find the other version of its picture among all
N, at a fixed temperature. One process on one device; versions are made by threads, a batch ahead of the network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.optim import AdamW

from pipeline import paper
from pipeline.hashing import draws, mix
from pipeline.model.encoders.duplicate_detector import Detector, DetectorConfig
from pipeline.model.images.random_crop import decode
from pipeline.model.objectives.loss import contrastive_loss
from pipeline.resume_safe import RESUME_SAFE
from pipeline.train.detector.distortions import NUM_DRAWS, distort

_ORDER, _VERSIONS = 1, 2
"""What a draw is for."""


@dataclass(frozen=True, kw_only=True)
class DetectorTraining:
    """How a detector is trained. What the paper does not state has defaults that learn quickly on photographs."""

    batch_size: int = paper.DETECTOR_BATCH_SIZE.value
    num_images: int = paper.DETECTOR_NUM_IMAGES.value
    """Pictures seen, the same one again counted again."""
    temperature: float = paper.DETECTOR_TEMPERATURE.value
    learning_rate: float = 2e-3
    """The highest rate, after a tenth of the steps; then half a cosine down to zero."""
    weight_decay: float = 0.05
    flips: bool = False
    """Whether a mirror image is the same picture."""
    seed: int = 0
    num_threads: int = field(default=2, metadata=RESUME_SAFE)
    """Threads that make versions."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0 and name not in {"weight_decay", "flips", "seed"}:
                raise ValueError(f"train.{name} = {value}: must be above zero")
        if self.batch_size < 2:
            raise ValueError(f"train.batch_size = {self.batch_size}: a picture needs another one to differ from")

    @property
    def num_steps(self) -> int:
        """Steps of the optimizer."""
        return max(1, self.num_images // self.batch_size)


@dataclass(frozen=True)
class Step:
    """A step of the training that has been taken."""

    number: int
    loss: float
    accuracy: float
    """Share of the versions that are nearest to the other version of their picture: the proxy task."""


def train_detector(
    detector: Detector, images: Sequence[bytes], training: DetectorTraining, device: str = "cpu"
) -> Iterator[Step]:
    """Train a detector in place, a step at a time; what comes out depends on the seed and the images alone.

    Args:
        detector: of `new_detector`.
        images: encoded, of which `batch_size` at least.
        training: the recipe.
        device: where the network runs; half precision (bfloat16) on a GPU.

    Raises:
        ValueError: there are too few images, one cannot be decoded, or the loss is not finite.
    """
    if len(images) < training.batch_size:
        raise ValueError(f"train.batch_size = {training.batch_size}: there are only {len(images)} images to train on")
    detector.to(device).train()
    decayed = [weight for weight in detector.parameters() if weight.ndim >= 2]
    rest = [weight for weight in detector.parameters() if weight.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": rest, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    log_scale = torch.tensor(-math.log(training.temperature), device=device)
    for number, (one, other) in enumerate(_batches(images, detector.config.image.image_size, training)):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _schedule(number, training.num_steps)
        with torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext():
            embeddings = detector(torch.cat([one, other]).to(device))
        first, second = embeddings.chunk(2)
        loss = contrastive_loss(first, second, log_scale)
        if not math.isfinite(value := loss.item()):
            raise ValueError(f"train.learning_rate = {training.learning_rate}: the loss of step {number} is {value}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        nearest = (first.detach() @ second.detach().T).argmax(dim=1).cpu()
        yield Step(number, value, float((nearest == torch.arange(len(nearest))).float().mean()))
    detector.eval()


def new_detector(config: DetectorConfig, seed: int) -> Detector:
    """An untrained detector, the same one for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(config)


def _schedule(step: int, num_steps: int) -> float:
    warmup = max(1, num_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _batches(images: Sequence[bytes], image_size: int, training: DetectorTraining) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step two versions of each of its pictures: uint8 B x 3 x S x S each."""
    with ThreadPoolExecutor(training.num_threads) as pool:

        def versions(number: int, chances: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            pixels = decode(images[number])
            one, other = (distort(pixels, image_size, row.tolist(), flips=training.flips) for row in chances)
            return torch.from_numpy(one), torch.from_numpy(other)

        def begin(step: int) -> Iterator[tuple[Tensor, Tensor]]:
            numbers = batch_of(step, len(images), training)
            return pool.map(versions, numbers.tolist(), chances_of(step, numbers, training.seed))

        ahead = begin(0)
        for step in range(training.num_steps):
            ready, ahead = ahead, begin(step + 1) if step + 1 < training.num_steps else iter(())
            one, other = zip(*ready, strict=True)
            yield torch.stack(one), torch.stack(other)


def batch_of(step: int, num_images: int, training: DetectorTraining) -> npt.NDArray[np.int64]:
    """Which images make a step: each one once in an epoch, in another order each time, no one twice in a batch."""
    epoch, place = divmod(step, num_images // training.batch_size)
    numbers = np.arange(num_images, dtype=np.uint64)
    keys = draws(training.seed, np.full_like(numbers, _ORDER), np.full_like(numbers, epoch), numbers)
    start = place * training.batch_size
    return np.argsort(keys, kind="stable")[start : start + training.batch_size]


def chances_of(step: int, numbers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """The uniform draws of both versions of each picture of a step: float64 [B, 2, NUM_DRAWS]."""
    words = numbers.astype(np.uint64)
    keys = draws(seed, np.full_like(words, _VERSIONS), np.full_like(words, step), words)
    places = mix(np.arange(2 * NUM_DRAWS, dtype=np.uint64))
    return np.asarray(mix(keys[:, None] ^ places) / 2.0**64).reshape(len(numbers), 2, NUM_DRAWS)
