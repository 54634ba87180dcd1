"""Define CLIP: two towers and a learned scale (sections 2.3 and 2.4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ModelConfig
from pipeline.model.objectives.bag_of_words import BagTower
from pipeline.model.towers.image_tower import ImageTower
from pipeline.model.towers.text_tower import TextTower

MAX_LOG_SCALE = math.log(paper.MAX_LOGIT_SCALE.value)


class CLIP(nn.Module):
    """An image tower and a text tower that map into one space of E dimensions.

    The text tower is a transformer, or a bag of words for the objective "contrastive-bag". A zero-shot prediction is
    the class whose prompt has the largest cosine similarity with the image (pipeline/eval/protocols/zero_shot.py).

    `logit_scale` is the logarithm of the factor that multiplies the cosine similarities, as in OpenAI's `clip`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image_tower = ImageTower(config.image, config.embed_dim)
        tower = BagTower if config.objective == "contrastive-bag" else TextTower
        self.text_tower = tower(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(paper.INITIAL_TEMPERATURE.value)))

    def encode_image(self, images: Tensor, *, normalize: bool = False) -> Tensor:
        """Normalised images float B x 3 x S x S -> features B x E.

        With `normalize` they have length one and at least float32 precision.
        """
        features: Tensor = self.image_tower(images)
        return _normalize(features) if normalize else features

    def encode_text(self, tokens: Tensor, *, normalize: bool = False) -> Tensor:
        """Tokens int B x L -> features B x E.

        With `normalize` they have length one and at least float32 precision.
        """
        features: Tensor = self.text_tower(tokens)
        return _normalize(features) if normalize else features

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled cosine similarities of M images and N texts, and their transpose: float32 M x N and N x M."""
        logits_per_image = self.logit_scale.exp() * (
            self.encode_image(images, normalize=True) @ self.encode_text(tokens, normalize=True).T
        )
        return logits_per_image, logits_per_image.T

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Limit the factor to 100 (section 2.5)."""
        self.logit_scale.clamp_(max=MAX_LOG_SCALE)


def _normalize(features: Tensor) -> Tensor:
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
