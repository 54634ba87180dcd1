"""Networks and batches that are small enough to check gradients."""

import torch
from torch import Tensor

from pipeline.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from pipeline.model.objectives.clip import CLIP

CONFIG = ModelConfig(
    embed_dim=16,
    image=ImageTowerConfig(
        architecture="convnext_atto",
        image_size=32,
        options={
            "depths": [1, 1, 1, 1],
            "dims": [8, 8, 16, 16],
            "kernel_sizes": 3,
            "ls_init_value": None,
            "drop_rate": 0.3,
        },
    ),
    text=TextTowerConfig(width=16, heads=2, layers=2, context_length=12, vocab_size=600),
)
"""A configuration with dropout in the image tower, so that features are random in training."""


def small_clip(seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(CONFIG)


def small_batch(size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8, tokens int64 with end tokens, and the lengths of the texts."""
    generator = torch.Generator().manual_seed(seed)
    side, length = CONFIG.image.image_size, CONFIG.text.context_length
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    lengths = torch.randint(3, length + 1, (size,), generator=generator)
    tokens = torch.randint(0, CONFIG.text.vocab_size - 2, (size, length), generator=generator)
    positions = torch.arange(length)
    tokens[positions >= lengths[:, None]] = 0
    tokens[positions == lengths[:, None] - 1] = CONFIG.text.vocab_size - 1
    return images, tokens, lengths
