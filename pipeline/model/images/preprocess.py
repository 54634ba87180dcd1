"""Prepare pictures for evaluation, bit for bit as open_clip does for the released models.

Shapes: S side of the square input.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.model.towers.image_tower import normalise

Preprocess = Callable[[Image.Image], Tensor]


def preprocess_for(image_size: int) -> Preprocess:
    """The preprocessing of evaluation: a PIL image -> normalised float32 3 x S x S.

    Resizes the shorter side to S, crops the centre and converts to RGB. As in the released transform, the conversion
    comes after the resize: a palette image is resampled without blending its colours, and the colours behind
    transparent pixels become visible. Unlike the released transform, which turns images of 16 bits per channel white,
    it uses their upper eight bits.

    Raises:
        ValueError: the picture has mode F, whose range of values is unknown. The returned function raises it.
    """

    def preprocess(image: Image.Image) -> Tensor:
        scaled = eight_bits(image)
        short, long = sorted(scaled.size)
        longer = int(image_size * long / short)
        size = (image_size, longer) if scaled.width <= scaled.height else (longer, image_size)
        if size != scaled.size:
            scaled = scaled.resize(size, Image.Resampling.BICUBIC)
        left, top = (round((side - image_size) / 2) for side in size)
        square = scaled.crop((left, top, left + image_size, top + image_size)).convert("RGB")
        return normalise(torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous())

    return preprocess


def eight_bits(image: Image.Image) -> Image.Image:
    """The picture with eight bits per channel. Raises ValueError for mode F."""
    if image.mode == "F":
        raise ValueError("an image of mode F has no known range: scale it to 0..255 and convert it to 'L' first")
    if not image.mode.startswith("I"):
        return image
    # Pillow reads some files of 16 bits per channel as mode I
    return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
