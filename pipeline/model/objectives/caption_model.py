"""Predict captions with a language model that reads the image: the objective that learns slowest in figure 2.

Shapes: B batch, M images, N captions, L tokens, D width, V vocabulary, E joint embedding.
"""

import torch
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ModelConfig
from pipeline.model.objectives.bag_of_words import before_end_mask
from pipeline.model.towers.image_tower import ImageTower
from pipeline.model.towers.text_tower import Block, initialise_blocks

_MAX_LOGITS = 2**26
"""Logits in memory at once when captions are scored: 256 MiB of float32. A single caption may exceed it."""


class Captioner(nn.Module):
    """An image tower and a causal transformer that predicts the caption's tokens, the end token last.

    The decoder has the layers of the text tower. Input and output embeddings are tied, which gives the paper's 63
    million parameters (12 layers of width 512 and 49,408 entries). The image enters as one token before the start
    token: a linear projection of the features that the contrastive objective compares. VirTex's decoder attends to the
    grid of features before the pooling instead. Pooled features are used here because every image tower has them, and
    because all objectives then share the same E numbers and differ in the objective alone.

    The zero-shot score of a prompt is its log-likelihood, summed over its tokens. A mean would favour long names: the
    later pieces of a name are predictable from the earlier ones, so they raise a mean but hardly change a sum.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.image_tower = ImageTower(config.image, config.embed_dim)
        self.image_projection = nn.Linear(config.embed_dim, text.width)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.position_embedding = nn.Parameter(torch.empty(text.context_length, text.width))
        self.blocks = nn.Sequential(*(Block(text.width, text.heads) for _ in range(text.layers)))
        self.final_norm = nn.LayerNorm(text.width)
        nn.init.normal_(self.image_projection.weight, std=config.embed_dim**-0.5)
        nn.init.zeros_(self.image_projection.bias)
        nn.init.normal_(self.token_embedding.weight, std=paper.TOKEN_EMBEDDING_STD.value)
        nn.init.normal_(self.position_embedding, std=paper.POSITION_EMBEDDING_STD.value)
        initialise_blocks(self.blocks, text)

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised images float B x 3 x S x S -> features float B x E, the decoder's only input from the images."""
        features: Tensor = self.image_tower(images)
        return features

    def log_likelihoods(self, image_features: Tensor, tokens: Tensor) -> Tensor:
        """The log-likelihood of each caption given its own image, summed over tokens: float B.

        Args:
            image_features: float B x E, from `encode_image`.
            tokens: int B x L, padded after the end token.
        """
        return self._score(self.image_projection(image_features), tokens)

    def score_captions(self, image_features: Tensor, tokens: Tensor) -> Tensor:
        """The log-likelihood of each of N captions for each of M images: float M x N.

        Args:
            image_features: float M x E, from `encode_image`.
            tokens: int N x L, padded after the end token.
        """
        num_captions, length = tokens.shape
        image_MD = self.image_projection(image_features)  # noqa: N806
        pairs = torch.arange(len(image_features) * num_captions, device=tokens.device)
        pairs_at_once = max(1, _MAX_LOGITS // (length * self.config.text.vocab_size))
        scores = [
            self._score(image_MD[group // num_captions], tokens[group % num_captions])
            for group in torch.split(pairs, pairs_at_once)
        ]
        return torch.cat(scores).view(len(image_features), num_captions)

    def num_targets(self, tokens: Tensor) -> int:
        """The divisor of the mean loss: the number of tokens to predict, end tokens included."""
        return int(before_end_mask(tokens, self.config.text.vocab_size - 1).sum())

    def summed_loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The loss summed over all targets: a scalar."""
        return -self.log_likelihoods(self.encode_image(images), tokens).sum()

    def _score(self, image_BD: Tensor, tokens_BL: Tensor) -> Tensor:  # noqa: N803
        """The log-likelihood of each row's caption, each token given the image and the tokens before it: float B."""
        inputs_BL, targets_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]  # noqa: N806
        x_BLD = self.token_embedding(inputs_BL) + self.position_embedding[: inputs_BL.shape[1]]  # noqa: N806
        x_BLD = self.blocks(torch.cat([image_BD[:, None].to(x_BLD.dtype), x_BLD], dim=1))[:, 1:]  # noqa: N806
        logits_BLV = self.final_norm(x_BLD) @ self.token_embedding.weight.T  # noqa: N806
        logits_BLV = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))  # noqa: N806
        chosen_BL = logits_BLV.gather(2, targets_BL[:, :, None])[:, :, 0]  # noqa: N806
        log_p_BL = chosen_BL - logits_BLV.logsumexp(dim=2)  # noqa: N806
        is_target_BL = before_end_mask(inputs_BL, self.config.text.vocab_size - 1)  # noqa: N806
        scores: Tensor = (log_p_BL * is_target_BL).sum(dim=1)
        return scores
