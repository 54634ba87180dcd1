"""Count the floating-point operations of training from the network, and relate them to a device's peak.

Model FLOPs utilisation (MFU, Chowdhery et al. 2022) counts the work that a step requires, not the work that the device
does: forward and backward pass of every sample, which cost three times the forward pass. Every caption counts at the
full context length, as in other projects, although this program cuts captions to their length. Forward passes that
gradient caching or checkpointing repeats are not counted. MFU thus compares samples per second between projects; it
does not measure what the device computed.

Matrix products and convolutions are counted, a multiplication and an addition as two operations. The similarities of
the contrastive loss are left out: 8 N E for each of N samples, at most 0.5% of a step in the paper (for RN50).
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

PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("V100 PCIE", 112e12),
    ("V100", 125e12),  # float16, because the V100 has no bfloat16
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
"""Peak FLOP/s by the words in a device's name; the first match counts. The values are for bfloat16 products of dense
matrices, from NVIDIA's data sheets. From the A100 on, the data sheets also print twice that value, for sparse ones."""


@dataclass(frozen=True)
class ForwardFlops:
    """Operations of one sample's forward pass."""

    image: int
    """Operations of the image tower."""
    text: int
    """Operations of the part that encodes or predicts the caption."""

    @property
    def training(self) -> int:
        """Operations of forward and backward pass. The backward pass computes two products for each forward product."""
        return 3 * (self.image + self.text)


def forward_flops(config: ModelConfig, num_tokens: int | None = None) -> ForwardFlops:
    """Count the operations of one sample's forward pass. Runs on the meta device, so it is fast and needs no memory.

    Args:
        config: the model, of any objective.
        num_tokens: length of the caption, including start and end token; None: the full context length.
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
    """The peak FLOP/s of a device by its name (torch.cuda.get_device_name).

    None if PEAK_FLOPS does not contain the device, and for a MIG slice of a device.
    """
    words = set(re.split(r"[^A-Za-z0-9]+", device_name.upper()))
    if "MIG" in words:
        return None
    return next((peak for name, peak in PEAK_FLOPS if set(name.upper().split()) <= words), None)


def utilisation_per_rate(config: ModelConfig, device: torch.device, num_workers: int) -> float | None:
    """The factor that turns a run's samples per second into its MFU; None if no peak is known, as on a CPU.

    Args:
        config: the model that is trained.
        device: device of this worker; all workers must have the same kind.
        num_workers: number of workers that share the samples.
    """
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else forward_flops(config).training / (num_workers * peak)
