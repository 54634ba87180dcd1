"""Attention in half precision on the CPU, where torch's own is slow to go backwards.

For the short sequences of CLIP's towers, 50 to 80 places, torch 2.15's fused kernel takes four to nine times as long as
three plain products for a pass forward and back in bfloat16 (docs/results.md); in float32 it is the faster one.
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
    """Within this context, `scaled_dot_product_attention` of half-precision tensors on the CPU is computed plainly.

    A mode, because it reaches timm's towers as well.
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
    """As torch's, of queries ... x L x K, keys ... x M x K and values ... x M x V; each query head has its own key."""
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
        scores = scores.masked_fill(later, -math.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return F.dropout(torch.softmax(scores, -1), dropout_p) @ value
