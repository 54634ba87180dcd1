"""Encode captions with a causal transformer, taking the features at the end token (section 2.4).

Shapes: B batch, L tokens, D width, H heads, K head width, V vocabulary, E joint embedding.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import paper
from pipeline.model.config import TextTowerConfig
from pipeline.model.towers.activation import QuickGELU


class Block(nn.Module):
    """A pre-norm residual block: causal self-attention, then an MLP of four times the width with QuickGELU."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.attention_in = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.activation = QuickGELU()
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:  # noqa: N803
        """Apply the block; shape and dtype do not change."""
        batch, length, width = x_BLD.shape
        q_k_v = self.attention_in(self.attention_norm(x_BLD)).view(batch, length, 3, self.heads, -1)
        q_BHLK, k_BHLK, v_BHLK = q_k_v.permute(2, 0, 3, 1, 4).unbind()  # noqa: N806
        attended_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, is_causal=True)  # noqa: N806
        x_BLD = x_BLD + self.attention_out(attended_BHLK.transpose(1, 2).reshape(batch, length, width))  # noqa: N806
        hidden = self.mlp_in(self.mlp_norm(x_BLD))
        residual: Tensor = self.mlp_out(self.activation(hidden))
        return x_BLD + residual


def initialise_blocks(blocks: nn.Sequential, config: TextTowerConfig) -> None:
    """Set the released code's initial values of the blocks."""
    width_std = config.width**-0.5
    residual_std = width_std * (2 * config.layers) ** -0.5
    for block in blocks:
        assert isinstance(block, Block)
        for layer, std in (
            (block.attention_in, width_std),
            (block.attention_out, residual_std),
            (block.mlp_in, (2 * config.width) ** -0.5),
            (block.mlp_out, residual_std),
        ):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)


class TokenTable(nn.Embedding):
    """An embedding whose output and gradients are at least float32, even if its weights are half precision.

    The gradient of a token's row is a sum over many captions, for which half precision is too coarse.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int ... -> embeddings ... x D."""
        if self.weight.dtype.itemsize >= 4:
            return super().forward(tokens)
        rows: Tensor = _HalfRows.apply(self.weight, tokens)
        return rows


class _HalfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.num_rows = len(weight)
        return F.embedding(tokens, weight).float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (tokens,) = ctx.saved_tensors
        return torch.ops.aten.embedding_dense_backward(gradient, tokens, ctx.num_rows, -1, False), None


class TextTower(nn.Module):
    """Tokens int B x L, padded after the end token -> features float B x E.

    Attention is causal, so the tokens after the end token have no effect, and any padding gives the same features. The
    end token is the last entry of the vocabulary.
    """

    def __init__(self, config: TextTowerConfig, embed_dim: int) -> None:
        super().__init__()
        self.end_token = config.vocab_size - 1
        self.token_embedding = TokenTable(config.vocab_size, config.width)
        self.position_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.Sequential(*(Block(config.width, config.heads) for _ in range(config.layers)))
        self.final_norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, embed_dim, bias=False)
        self._initialise(config)

    def _initialise(self, config: TextTowerConfig) -> None:
        """Set the released code's initial values of all parameters."""
        nn.init.normal_(self.token_embedding.weight, std=paper.TOKEN_EMBEDDING_STD.value)
        nn.init.normal_(self.position_embedding, std=paper.POSITION_EMBEDDING_STD.value)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)
        initialise_blocks(self.blocks, config)

    def forward(self, tokens_BL: Tensor) -> Tensor:  # noqa: N803
        """Features float B x E, not normalised."""
        x_BLD = self.token_embedding(tokens_BL) + self.position_embedding[: tokens_BL.shape[1]]  # noqa: N806
        x_BLD = self.blocks(x_BLD)  # noqa: N806
        end_B = (tokens_BL == self.end_token).int().argmax(dim=1)  # noqa: N806
        x_BD = x_BLD[torch.arange(len(x_BLD), device=x_BLD.device), end_B]  # noqa: N806
        features: Tensor = self.projection(self.final_norm(x_BD))
        return features
