"""Reference losses, computed by autograd from the full matrix of logits as in the papers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_contrastive(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    logits = log_scale.exp() * images @ texts.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def plain_sigmoid(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    logits = log_scale.exp() * images @ texts.T + bias
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)
