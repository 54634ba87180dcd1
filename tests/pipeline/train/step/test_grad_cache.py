"""Gradient caching on plain tensors and small encoders. test_gradients.py tests it with CLIP towers and ranks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.model.objectives.loss import loss_gradients
from pipeline.train.step.grad_cache import Tower, cached_step, text_chunks
from pipeline.train.step.graph_budget import Budget
from tests.pipeline.model.plain import plain_contrastive

SCALE = torch.tensor(2.0, dtype=torch.float64)


class Pair(nn.Module):
    """Two encoders that share a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.images, self.texts, self.both = (nn.Linear(*size).double() for size in ((5, 4), (3, 4), (4, 6)))

    def encode_image(self, rows: Tensor) -> Tensor:
        return F.normalize(self.both(torch.tanh(self.images(rows))), dim=-1)

    def encode_text(self, rows: Tensor) -> Tensor:
        return F.normalize(self.both(torch.tanh(self.texts(rows))), dim=-1)


def inputs(num_rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows)
    images, texts = (torch.randn(num_rows, width, generator=generator, dtype=torch.float64) for width in (5, 3))
    return images, texts


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 11), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0, 200, 10**6]))
def test_the_gradient_equals_that_of_the_whole_batch(
    num_rows: int, image_chunk: int, text_chunk: int, budget_bytes: int
) -> None:
    images, texts = inputs(num_rows)
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(1))
    pair, budget = Pair(), Budget(budget_bytes)
    for _ in range(2):  # the first step measures graphs, the second keeps them
        result = cached_step(
            pair,
            Tower(pair.encode_image, images.split(image_chunk)),  # type: ignore[no-untyped-call]
            Tower(pair.encode_text, texts[order].split(text_chunk), order),  # type: ignore[no-untyped-call]
            lambda image_features, text_features: loss_gradients(image_features, text_features, SCALE),
            budget=budget,
        )
    plain = Pair()
    loss = plain_contrastive(plain.encode_image(images), plain.encode_text(texts), SCALE)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(result.loss, loss.detach())
    for (name, parameter), expected in zip(pair.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_chunks_are_cut_to_their_longest_caption() -> None:
    tokens = torch.arange(5 * 9).view(5, 9)
    chunks = text_chunks(tokens, torch.tensor([2, 3, 3, 7, 8]), 2)
    assert [tuple(chunk.shape) for chunk in chunks] == [(2, 3), (2, 7), (1, 8)]
    assert torch.equal(chunks[1], tokens[2:4, :7])


def test_how_often_each_chunk_is_embedded() -> None:
    """Without a budget, all chunks but the last are embedded twice; with a budget for all graphs, each chunk once."""
    images, texts = inputs(6)
    for budget, expected in ((Budget(0), 3 + 2), (Budget(10**6), 3)):
        pair = Pair()
        calls: list[int] = []

        def encode(rows: Tensor, pair: Pair = pair, calls: list[int] = calls) -> Tensor:
            calls.append(len(rows))
            return pair.encode_image(rows)

        for _ in range(2):
            calls.clear()
            cached_step(
                pair,
                Tower(encode, images.split(2)),  # type: ignore[no-untyped-call]
                Tower(pair.encode_text, [texts]),
                lambda image_features, text_features: loss_gradients(image_features, text_features, SCALE),
                budget=budget,
            )
        assert calls == [2] * expected


def test_an_error_of_an_encoder_is_raised() -> None:
    def broken(_rows: Tensor) -> Tensor:
        raise RuntimeError("no features")

    images, texts = inputs(2)
    pair = Pair()
    with pytest.raises(RuntimeError, match="no features"):
        cached_step(
            pair,
            Tower(broken, [images]),
            Tower(pair.encode_text, [texts]),
            lambda image_features, text_features: loss_gradients(image_features, text_features, SCALE),
        )
