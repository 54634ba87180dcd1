"""Compute half-precision attention on the CPU without torch's fused kernel, whose backward pass is slow.

For the short sequences of CLIP's towers, 50 to 80 positions, a forward and backward pass of torch 2.15's fused kernel
in bfloat16 takes four to nine times as long as plain matrix products (docs/results.md). In float32 the fused kernel is
faster.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_HALF = (torch.bfloat16, torch.float16)


class PlainAttention(TorchFunctionMode):
    """Context in which `scaled_dot_product_attention` of half-precision CPU tensors uses plain matrix products.

    It is a function mode so that it also applies to timm's towers.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and args[0].device.type == "cpu" and args[0].dtype in _HALF:
            function = _attention
        return function(*args, **kwargs)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Compute `scaled_dot_product_attention` of queries ... x L x K, keys ... x M x K and values ... x M x V.

    Grouped-query attention is not supported: every query head needs its own key head.
    """
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        scores = scores.masked_fill(future, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(torch.softmax(scores, -1), dropout_p) @ value
