"""From a picture to what the image tower takes, bit for bit as open_clip prepares pictures for the released models.

Shape: S side of the square input.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.model.towers.image_tower import normalise

Preprocess = Callable[[Image.Image], Tensor]


def preprocess_for(image_size: int) -> Preprocess:
    """How evaluation sees a picture: shorter side resized to S, centre crop, RGB, normalised; -> float32 3 x S x S.

    As the released transform, it resizes before it converts to RGB: a palette image loses pixels instead of blending
    its colours, and what lies behind transparent pixels shows. It differs where that transform makes a picture white:
    of 16 bits a pixel the upper eight count.

    Raises:
        ValueError: the picture is of mode F, of which nobody knows which value is white.
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
    """The picture with eight bits a channel. Raises ValueError for mode F."""
    if image.mode == "F":
        raise ValueError("an image of mode F has no known range: scale it to 0..255 and convert it to 'L' first")
    if not image.mode.startswith("I"):
        return image
    # Mode I is how Pillow reads some files of 16 bits
    return Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
