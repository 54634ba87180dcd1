"""Implement QuickGELU, the activation of the paper's transformers."""

from typing import Any

import torch
from torch import Tensor, nn

_SLOPE = 1.702


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), as in the released models. Keeps only x for the backward pass; autograd would keep more."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation; shape and dtype do not change."""
        activated: Tensor = _QuickGELU.apply(x)
        return activated


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.mul(x, _SLOPE).sigmoid_().mul_(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        d_x: Tensor = torch.ops.aten.silu_backward(gradient, _SLOPE * x)  # x sigmoid(a x) is silu(a x) / a
        return d_x
