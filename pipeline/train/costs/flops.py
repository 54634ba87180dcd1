"""Floating-point operations of training, counted from the network, and the share of a device's peak that they are.

Model FLOPs utilisation (MFU, Chowdhery et al. 2022) asks what a step is worth, not what it did: forward and backward
pass of every sample, three times the forward pass, with captions at the full context, as others count theirs. Forward
passes that gradient caching or checkpointing repeats are not counted, nor that captions here are cut to their length.
So it compares samples per second with those of others; what the device did is another figure.

Counted are products of matrices and convolutions, a multiplication and an addition as two. The similarities of the
contrastive loss are left out: 8 N E for each of N samples, at most 0.5% of a step of the paper (RN50's).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.model.config import ModelConfig
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import empty_network

PEAKS: tuple[tuple[str, float], ...] = (
    ("V100 PCIE", 112e12),
    ("V100", 125e12),  # float16, for it has no bfloat16
    ("A10", 125e12),
    ("A30", 165e12),
    ("A100", 312e12),
    ("L4", 121e12),
    ("L40S", 362e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("B200", 2250e12),
)
"""FLOP/s of a device whose name has these words, the first that fits: bfloat16 products of dense matrices, by NVIDIA's
data sheets, which from the A100 on print twice as much beside it, for sparse ones."""


@dataclass(frozen=True)
class ForwardFlops:
    """Of one sample."""

    image: int
    text: int
    """What reads the caption, or writes it."""

    @property
    def training(self) -> int:
        """Forward and backward pass: the gradients of a product's two factors take a product each."""
        return 3 * (self.image + self.text)


def forward_flops(config: ModelConfig, num_tokens: int | None = None) -> ForwardFlops:
    """Counted on the meta device, so quickly and without memory.

    Args:
        config: any objective.
        num_tokens: length of the caption, start and end included; unset: the whole context.
    """
    network = empty_network(config).eval()
    size = config.image.image_size
    images = torch.empty(1, 3, size, size, device="meta")
    tokens = torch.zeros(1, num_tokens or config.text.context_length, dtype=torch.int64, device="meta")
    image = _count(lambda: network.image_tower(images))
    if isinstance(network, CLIP):
        return ForwardFlops(image, _count(lambda: network.encode_text(tokens)))
    return ForwardFlops(image, _count(lambda: network.summed_loss(images, tokens)) - image)


def _count(forward: Callable[[], Tensor]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    return int(counter.get_total_flops())


def peak_flops(device_name: str) -> float | None:
    """FLOP/s that the device of this name (torch.cuda.get_device_name) could do; None where it is not in the table,
    and for a slice of a device."""
    words = set(re.split(r"[^A-Za-z0-9]+", device_name.upper()))
    if "MIG" in words:
        return None
    return next((peak for name, peak in PEAKS if set(name.upper().split()) <= words), None)


def utilisation_per_rate(config: ModelConfig, device: torch.device, num_workers: int) -> float | None:
    """What a run's samples per second are to be multiplied by for its MFU; None where no peak is known, as on a CPU.

    Args:
        config: of what is trained.
        device: of this worker; the others have the same.
        num_workers: among whom the samples are shared.
    """
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else forward_flops(config).training / (num_workers * peak)
