import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.train.network.cpu_attention import PlainAttention

MASK = torch.tensor([[True, False, True, True, False]] * 7)


def heads(length: int, seed: int) -> Tensor:
    """Random queries, keys or values: bfloat16 2 x 3 x length x 16."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, length, 16, generator=generator).bfloat16().requires_grad_()


@pytest.mark.parametrize(
    ("num_queries", "options"),
    [
        (5, {}),
        (5, {"is_causal": True}),
        (7, {"scale": 0.5}),
        (7, {"attn_mask": MASK}),
        (7, {"attn_mask": torch.where(MASK, 0.5, -math.inf).bfloat16()}),
    ],
)
def test_the_result_is_torchs_within_the_precision_of_bfloat16(num_queries: int, options: dict[str, Any]) -> None:
    leaves = heads(num_queries, 0), heads(5, 1), heads(5, 2)
    with PlainAttention():
        actual = F.scaled_dot_product_attention(*leaves, **options)
    exact: Any = [leaf.detach().double().requires_grad_() for leaf in leaves]
    if (mask := options.get("attn_mask")) is not None and mask.dtype != torch.bool:
        options = options | {"attn_mask": mask.double()}
    expected = F.scaled_dot_product_attention(*exact, **options)
    torch.testing.assert_close(actual.double(), expected, rtol=0.02, atol=0.02)
    assert actual.dtype == torch.bfloat16
    gradients = torch.autograd.grad(actual.square().sum(), leaves)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected.square().sum(), exact), strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=0.05, atol=0.1)


def test_dropout_is_applied() -> None:
    ones = torch.ones(1, 1, 4, 8, dtype=torch.bfloat16)
    torch.manual_seed(0)
    with PlainAttention():
        actual = F.scaled_dot_product_attention(ones, ones, ones, dropout_p=0.5)
    assert set(actual.flatten().tolist()) <= {0.0, 0.5, 1.0, 1.5, 2.0}
    assert actual.std() > 0


def test_float32_uses_torchs_kernel() -> None:
    query, key, value = (heads(5, seed).detach().float() for seed in range(3))
    with PlainAttention():
        actual = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.equal(actual, F.scaled_dot_product_attention(query, key, value, is_causal=True))
