"""Build the image tower from timm, and normalise its input.

Shapes: B batch, S side of the square input, D width, E joint embedding.
"""

from functools import cache, partial

import torch
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ImageTowerConfig
from pipeline.model.towers.activation import QuickGELU


class ImageTower(nn.Module):
    """A timm model and a linear projection: normalised images float B x 3 x S x S -> features float B x E.

    Image towers of the paper start from the initial values of the released code, all others from timm's. The projection
    has a bias in the paper's ResNets only, where it is the last layer of the attention pool.
    """

    def __init__(self, config: ImageTowerConfig, embed_dim: int) -> None:
        super().__init__()
        import timm  # takes seconds, so only building a tower imports it

        from pipeline.model.towers import initial_values  # imports timm

        options = dict(config.options)
        if config.weight_standardisation:
            options["conv_layer"] = timm.layers.std_conv.StdConv2d
        if "_quickgelu_" in config.architecture:
            options["act_layer"] = QuickGELU
        create = partial(timm.create_model, config.architecture, pretrained=False, num_classes=0, **options)
        if initial_values.is_paper_architecture(config.architecture):
            device = torch.get_default_device()
            with torch.device("meta"):  # skips timm's initial values, which are overwritten below
                trunk = create()
            self.trunk = trunk.to_empty(device=device)
            initial_values.initialise(self.trunk)
        else:
            self.trunk = create()
        width = int(self.trunk.num_features)  # type: ignore[arg-type]
        has_attention_pool = isinstance(getattr(self.trunk, "head", None), timm.layers.attention_pool2d.AttentionPool2d)
        self.projection = nn.Linear(width, embed_dim, bias=has_attention_pool)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, images: Tensor) -> Tensor:
        """Features float B x E, not normalised."""
        features: Tensor = self.projection(self.trunk(images))
        return features


def normalise(images: Tensor) -> Tensor:
    """uint8 ... x 3 x S x S -> float32 of the same shape, normalised with the paper's mean and deviation."""
    mean, std = _statistics(images.device)
    return images.float().div_(255).sub_(mean).div_(std)


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation on a device. Cached, because the CPU waits for every copy to a GPU."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values.value, device=device) for values in (paper.IMAGE_MEAN, paper.IMAGE_STD))
        return mean.view(3, 1, 1), std.view(3, 1, 1)
