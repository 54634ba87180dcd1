"""The image tower (timm) and the pictures it takes.

Shapes: B batch, S side of the square input, D width, E joint embedding.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ImageTowerConfig

Preprocess = Callable[[Image.Image], Tensor]


class ImageTower(nn.Module):
    """Normalised images float B x 3 x S x S -> features float B x E: a timm model and a linear projection."""

    def __init__(self, config: ImageTowerConfig, embed_dim: int) -> None:
        super().__init__()
        import timm  # takes seconds, which only those who build a tower should pay

        options = dict(config.options)
        if config.weight_standardisation:
            options["conv_layer"] = timm.layers.std_conv.StdConv2d
        self.trunk = timm.create_model(config.architecture, pretrained=False, num_classes=0, **options)
        width = int(self.trunk.num_features)  # type: ignore[arg-type]
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
