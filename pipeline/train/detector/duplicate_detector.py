"""Train the duplicate detector (CLIP paper, appendix C) with InfoNCE between two versions of each picture.

Each of the N pictures of a batch is distorted twice. The embedding of one version must identify the other version of
the same picture among N candidates, at a fixed temperature. Training runs in one process on one device; threads make
the versions one batch ahead.
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
"""Purposes of random draws; draws for different purposes are independent."""


@dataclass(frozen=True, kw_only=True)
class DetectorTraining:
    """Training options; defaults that the paper does not state were chosen for fast learning on photographs."""

    batch_size: int = paper.DETECTOR_BATCH_SIZE.value
    num_images: int = paper.DETECTOR_NUM_IMAGES.value
    """Total number of pictures in all batches; a picture counts each time it is used."""
    temperature: float = paper.DETECTOR_TEMPERATURE.value
    learning_rate: float = 2e-3
    """Maximum learning rate, reached after a tenth of the steps; half a cosine to zero follows."""
    weight_decay: float = 0.05
    flips: bool = False
    """Whether versions may be mirrored, so that the detector treats mirror images as duplicates."""
    seed: int = 0
    num_threads: int = field(default=2, metadata=RESUME_SAFE)
    """Number of threads that make distorted versions."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0 and name not in {"weight_decay", "flips", "seed"}:
                raise ValueError(f"train.{name} = {value}: must be above zero")
        if self.batch_size < 2:
            raise ValueError(f"train.batch_size = {self.batch_size}: must be at least 2; the loss compares pictures")

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps."""
        return max(1, self.num_images // self.batch_size)


@dataclass(frozen=True)
class Step:
    """Metrics of a completed training step."""

    number: int
    loss: float
    accuracy: float
    """Share of first versions whose nearest second version is of the same picture: the proxy task."""


def train_detector(
    detector: Detector, images: Sequence[bytes], training: DetectorTraining, device: str = "cpu"
) -> Iterator[Step]:
    """Train a detector in place and yield each step's metrics; the result depends only on the seed and the images.

    Args:
        detector: a detector from `new_detector`.
        images: encoded images, at least `batch_size`.
        training: the training options.
        device: device of the network; a GPU uses half precision (bfloat16).

    Raises:
        ValueError: there are fewer than `batch_size` images, one cannot be decoded, or the loss is not finite.
    """
    if len(images) < training.batch_size:
        raise ValueError(f"train.batch_size = {training.batch_size}: there are only {len(images)} images to train on")
    detector.to(device).train()
    decayed = [weight for weight in detector.parameters() if weight.ndim >= 2]
    undecayed = [weight for weight in detector.parameters() if weight.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": undecayed, "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    log_scale = torch.tensor(-math.log(training.temperature), device=device)
    for number, (first_versions, second_versions) in enumerate(
        _batches(images, detector.config.image.image_size, training)
    ):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _schedule(number, training.num_steps)
        with torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext():
            embeddings = detector(torch.cat([first_versions, second_versions]).to(device))
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
    """An untrained detector with initial weights determined by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector(config)


def _schedule(step: int, num_steps: int) -> float:
    warmup = max(1, num_steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _batches(images: Sequence[bytes], image_size: int, training: DetectorTraining) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each step, the first and second versions of its pictures: two tensors of uint8 B x 3 x S x S."""
    with ThreadPoolExecutor(training.num_threads) as pool:

        def make_versions(number: int, draws_of_image: npt.NDArray[np.float64]) -> tuple[Tensor, Tensor]:
            pixels = decode(images[number])
            first, second = (distort(pixels, image_size, row.tolist(), flips=training.flips) for row in draws_of_image)
            return torch.from_numpy(first), torch.from_numpy(second)

        def start_batch(step: int) -> Iterator[tuple[Tensor, Tensor]]:
            numbers = images_of_step(step, len(images), training)
            return pool.map(make_versions, numbers.tolist(), distortion_draws(step, numbers, training.seed))

        upcoming = start_batch(0)
        for step in range(training.num_steps):
            current, upcoming = upcoming, start_batch(step + 1) if step + 1 < training.num_steps else iter(())
            first, second = zip(*current, strict=True)
            yield torch.stack(first), torch.stack(second)


def images_of_step(step: int, num_images: int, training: DetectorTraining) -> npt.NDArray[np.int64]:
    """The indices of a step's images.

    Each epoch has a new order and uses each image at most once; images that do not fill a batch are omitted.
    """
    epoch, batch = divmod(step, num_images // training.batch_size)
    numbers = np.arange(num_images, dtype=np.uint64)
    keys = draws(training.seed, np.full_like(numbers, _ORDER), np.full_like(numbers, epoch), numbers)
    start = batch * training.batch_size
    return np.argsort(keys, kind="stable")[start : start + training.batch_size]


def distortion_draws(step: int, numbers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """The uniform draws in [0, 1) for both versions of each picture of a step: float64 [B, 2, NUM_DRAWS]."""
    words = numbers.astype(np.uint64)
    keys = draws(seed, np.full_like(words, _VERSIONS), np.full_like(words, step), words)
    salts = mix(np.arange(2 * NUM_DRAWS, dtype=np.uint64))
    return np.asarray(mix(keys[:, None] ^ salts) / 2.0**64).reshape(len(numbers), 2, NUM_DRAWS)
