"""A language model that writes the caption of an image: the slowest of figure 2's objectives.

Shapes: B batch, M images, N captions, L tokens, D width, V vocabulary, E joint embedding.
"""

import torch
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import ModelConfig
from pipeline.model.objectives.bag_of_words import before_end
from pipeline.model.towers.image_tower import ImageTower
from pipeline.model.towers.text_tower import Block, initialise_blocks

_MAX_LOGITS = 2**26
"""As many are in memory at once when captions are scored: 256 MiB, or a single caption's."""


class Captioner(nn.Module):
    """An image tower and a causal transformer that predicts the caption's tokens, the end token last.

    The decoder has the layers of the text tower; with input and output embedding tied it is the paper's 63 million
    parameters (12 layers of 512 and 49,408 entries). The image enters as one token before the start token: the features
    that the contrastive objective compares, projected linearly. VirTex's decoder sees the grid before the pooling
    instead; pooled features are the same E numbers for all objectives, so that only the objective differs, and every
    image tower has them.

    Zero-shot, a prompt scores its log-likelihood, the sum over its tokens. Not the mean: pieces of a long name that
    follow from the piece before cost nothing in a sum, and would raise a mean.
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
        """Normalised images float B x 3 x S x S -> features float B x E, all that the decoder sees of them."""
        features: Tensor = self.image_tower(images)
        return features

    def log_likelihoods(self, image_features: Tensor, tokens: Tensor) -> Tensor:
        """Of each caption for its own image: float B, the sum over tokens.

        Args:
            image_features: of `encode_image`, float B x E.
            tokens: int B x L, padded behind the end token.
        """
        return self._score(self.image_projection(image_features), tokens)

    def score_captions(self, image_features: Tensor, tokens: Tensor) -> Tensor:
        """The log-likelihood of each of N captions for each of M images: float M x N.

        Args:
            image_features: of `encode_image`, float M x E.
            tokens: int N x L, padded behind the end token.
        """
        num_captions, length = tokens.shape
        image_MD = self.image_projection(image_features)  # noqa: N806
        pairs = torch.arange(len(image_features) * num_captions, device=tokens.device)
        pairs_at_once = max(1, _MAX_LOGITS // (length * self.config.text.vocab_size))
        scores = [
            self._score(image_MD[some // num_captions], tokens[some % num_captions])
            for some in torch.split(pairs, pairs_at_once)
        ]
        return torch.cat(scores).view(len(image_features), num_captions)

    def num_targets(self, tokens: Tensor) -> int:
        """What a mean loss is a mean over: tokens to predict, the end token among them."""
        return int(before_end(tokens, self.config.text.vocab_size - 1).sum())

    def summed_loss(self, images: Tensor, tokens: Tensor) -> Tensor:
        """The loss, summed over its targets: a scalar."""
        return -self.log_likelihoods(self.encode_image(images), tokens).sum()

    def _score(self, image_BD: Tensor, tokens_BL: Tensor) -> Tensor:  # noqa: N803
        """float B: the log-likelihood of each row's caption, given what stands before it."""
        inputs_BL, targets_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]  # noqa: N806
        x_BLD = self.token_embedding(inputs_BL) + self.position_embedding[: inputs_BL.shape[1]]  # noqa: N806
        x_BLD = self.blocks(torch.cat([image_BD[:, None].to(x_BLD.dtype), x_BLD], dim=1))[:, 1:]  # noqa: N806
        logits_BLV = self.final_norm(x_BLD) @ self.token_embedding.weight.T  # noqa: N806
        logits_BLV = logits_BLV.to(torch.promote_types(logits_BLV.dtype, torch.float32))  # noqa: N806
        chosen_BL = logits_BLV.gather(2, targets_BL[:, :, None])[:, :, 0]  # noqa: N806
        log_p_BL = chosen_BL - logits_BLV.logsumexp(dim=2)  # noqa: N806
        is_target_BL = before_end(inputs_BL, self.config.text.vocab_size - 1)  # noqa: N806
        scores: Tensor = (log_p_BL * is_target_BL).sum(dim=1)
        return scores
