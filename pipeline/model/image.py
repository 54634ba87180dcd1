"""The image tower (timm) and the scale of what it takes.

Shapes: B batch, S side of the square input, D width, E joint embedding.
"""

import torch
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ImageTowerConfig


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
