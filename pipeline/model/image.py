"""The image tower (timm) and the pictures it takes: resize, crop, normalise.

Shapes: B batch, S side of the square input, D width, E joint embedding.
"""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ImageTowerConfig

Preprocess = Callable[[Image.Image], Tensor]
Pixels = npt.NDArray[np.uint8]


class ImageTower(nn.Module):
    """Normalised images float B x 3 x S x S -> features float B x E: a timm model and a linear projection."""

    def __init__(self, config: ImageTowerConfig, embed_dim: int) -> None:
        super().__init__()
        self.trunk = timm.create_model(config.architecture, pretrained=False, num_classes=0, **config.options)
        width = self.trunk.num_features
        self.projection = nn.Linear(width, embed_dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Features float B x E, not normalised."""
        features: Tensor = self.projection(self.trunk(images))
        return features


def normalise(images: Tensor) -> Tensor:
    """uint8 ... x 3 x S x S in 0..255 -> float32 of the same shape, with the paper's mean and deviation per channel."""
    mean = torch.tensor(paper.IMAGE_MEAN.value, device=images.device).view(3, 1, 1)
    std = torch.tensor(paper.IMAGE_STD.value, device=images.device).view(3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)


def preprocess_for(image_size: int) -> Preprocess:
    """How evaluation sees a picture: shorter side resized to S, centre crop, normalised; -> float32 3 x S x S."""

    def preprocess(image: Image.Image) -> Tensor:
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        pixels = np.array(resized.crop((left, top, left + image_size, top + image_size)))
        return normalise(torch.from_numpy(pixels).permute(2, 0, 1))

    return preprocess


def decode(data: bytes) -> Pixels:
    """Pixels uint8 height x width x 3 (RGB) of a compressed image.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None:
        raise ValueError(f"an image of {len(data)} bytes cannot be decoded")
    return np.asarray(pixels, np.uint8)


def random_square_crop(pixels: Pixels, image_size: int, share: float, at: tuple[float, float]) -> Pixels:
    """The paper's only augmentation: a square crop of the resized picture (section 2.3).

    Args:
        pixels: uint8 height x width x 3.
        image_size: S, side of the result.
        share: side of the crop as a share of the picture's shorter side.
        at: where the crop lies, from 0 (top, left) to 1 (bottom, right).

    Returns:
        uint8 3 x S x S.
    """
    height, width, _ = pixels.shape
    side = max(1, round(share * min(height, width)))
    top, left = (int(fraction * (room - side + 1)) for fraction, room in zip(at, (height, width), strict=True))
    crop = pixels[top : top + side, left : left + side]
    if side != image_size:
        kernel = cv2.INTER_AREA if side > image_size else cv2.INTER_CUBIC
        crop = np.asarray(cv2.resize(crop, (image_size, image_size), interpolation=kernel), np.uint8)
    return np.ascontiguousarray(crop.transpose(2, 0, 1))
