"""Rank images by texts and texts by images (CLIP paper, appendix E.1, table 13).

A query's rank is the number of wrong candidates that score at least as high as its best right one. A model with
constant scores or NaN therefore ranks last, not first. R@k is the share of queries with a rank below k.
Shape legend: N images, M texts (each belongs to one image; an image may have several), E joint embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RECALL_AT = (1, 5, 10)
_ROWS_AT_ONCE = 1_024


def text_ranks(image_features: Tensor, text_features: Tensor, image_of_text: Tensor) -> Tensor:
    """Image-to-text retrieval: for each image the rank of its best own text, int64 [N]; 0 is best.

    Args:
        image_features: unnormalised embeddings, [N, E].
        text_features: unnormalised embeddings, [M, E].
        image_of_text: index of the image each text belongs to, int64 [M]; every image has at least one text.
    """
    images, texts = _normalise(image_features), _normalise(text_features)
    ranks = []
    for start in range(0, len(images), _ROWS_AT_ONCE):
        scores = images[start : start + _ROWS_AT_ONCE] @ texts.T
        own = image_of_text[None, :] == torch.arange(start, start + len(scores))[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((~(scores < best) & ~own).sum(dim=1))
    return torch.cat(ranks)


def image_ranks(image_features: Tensor, text_features: Tensor, image_of_text: Tensor) -> Tensor:
    """Text-to-image retrieval: for each text the rank of its image, int64 [M]; 0 is best. Arguments as `text_ranks`."""
    images, texts = _normalise(image_features), _normalise(text_features)
    ranks = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        scores = texts[start : start + _ROWS_AT_ONCE] @ images.T
        own = scores.gather(1, image_of_text[start : start + _ROWS_AT_ONCE, None])
        ranks.append((~(scores < own)).sum(dim=1) - 1)
    return torch.cat(ranks)


def _normalise(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
