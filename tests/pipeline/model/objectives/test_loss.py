import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.model.objectives import loss
from pipeline.model.objectives.loss import contrastive_loss, loss_gradients, sigmoid_loss
from tests.pipeline.model.loss_ranks import BIAS, batch, cases, run_ranks
from tests.pipeline.model.plain import plain_contrastive, plain_sigmoid


def leaves_of(num_rows: int, dtype: torch.dtype, log_scale: float, spread: float) -> tuple[Tensor, Tensor, Tensor]:
    images, texts, scale = batch(num_rows, dtype, spread)
    with torch.no_grad():
        scale.fill_(log_scale)
    return images, texts, scale


def assert_near(found: Tensor, expected: Tensor, slack: float = 1.0) -> None:
    """Relative tolerance 1e-10 in float64 and 1e-5 in float32; absolute tolerance `slack` times 1e-12 and 1e-6."""
    relative, absolute = (1e-10, 1e-12) if found.dtype == torch.float64 else (1e-5, 1e-6)
    torch.testing.assert_close(found.double(), expected.double(), rtol=relative, atol=slack * absolute)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.tuples(st.integers(1, 13), st.integers(1, 13)),
    st.sampled_from([0.0, 2.7, 4.6]),
    st.sampled_from([0.0, 0.3, 3.0]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_values_and_gradients_equal_those_of_the_full_matrix(
    num_rows: int, tile: tuple[int, int], log_scale: float, spread: float, dtype: torch.dtype
) -> None:
    leaves = leaves_of(num_rows, dtype, log_scale, spread)
    bias = torch.tensor(BIAS, dtype=dtype, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(loss.TILE, "cpu", tile)
        found = contrastive_loss(*leaves)
        found_sigmoid = sigmoid_loss(*leaves, bias)
        gradients = torch.autograd.grad(found, leaves)
        gradients_sigmoid = torch.autograd.grad(found_sigmoid, (*leaves, bias))
    exact = tuple(leaf.detach().double().requires_grad_() for leaf in (*leaves, bias))
    expected, expected_sigmoid = plain_contrastive(*exact[:3]), plain_sigmoid(*exact)
    assert_near(found, expected)
    assert_near(found_sigmoid, expected_sigmoid)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, exact[:3]), strict=True):
        assert_near(gradient, wanted, slack=100)
    for gradient, wanted in zip(gradients_sigmoid, torch.autograd.grad(expected_sigmoid, exact), strict=True):
        assert_near(gradient, wanted, slack=100)


def test_losses_equal_those_of_open_clip() -> None:
    open_clip_loss = pytest.importorskip("open_clip.loss")
    images, texts, log_scale = leaves_of(40, torch.float64, 2.0, 1.0)
    bias = torch.tensor(BIAS, dtype=torch.float64, requires_grad=True)
    for ours, theirs in (
        (contrastive_loss(images, texts, log_scale), open_clip_loss.ClipLoss()(images, texts, log_scale.exp())),
        (
            sigmoid_loss(images, texts, log_scale, bias),
            open_clip_loss.SigLipLoss()(images, texts, log_scale.exp(), bias),
        ),
    ):
        torch.testing.assert_close(ours, theirs)
        for gradient, wanted in zip(
            torch.autograd.grad(ours, (images, texts, log_scale), retain_graph=True),
            torch.autograd.grad(theirs, (images, texts, log_scale), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(gradient, wanted)


def test_all_ranks_compute_the_loss_of_the_global_batch(tmp_path: Path) -> None:
    by_rank = run_ranks(tmp_path)
    for name, shares, dtype, is_sigmoid in cases():
        leaves = list(batch(sum(shares), dtype, 1.0))
        if is_sigmoid:
            leaves.append(torch.tensor(BIAS, dtype=dtype, requires_grad=True))
        expected = (plain_sigmoid if is_sigmoid else plain_contrastive)(*leaves)
        d_images, d_texts, *d_scalars = torch.autograd.grad(expected, leaves)
        found = [results[name] for results in by_rank[: len(shares)]]
        for part in found:
            assert_near(part["loss"], expected.detach())
            assert torch.equal(part["loss"], found[0]["loss"])
            assert torch.equal(part["accuracies"], found[0]["accuracies"])
            for scalar, wanted in zip(part["gradients"][2:], d_scalars, strict=True):
                assert_near(scalar, wanted)
        assert_near(torch.cat([part["gradients"][0] for part in found]), d_images)
        assert_near(torch.cat([part["gradients"][1] for part in found]), d_texts)


def test_loss_of_perfect_and_of_identical_features() -> None:
    apart = torch.eye(5)
    alike = F.normalize(torch.ones(5, 5), dim=-1)
    log_scale = torch.tensor(100.0).log()
    assert 0 < contrastive_loss(apart, apart, log_scale / 2).item() < 1e-3
    assert contrastive_loss(apart, apart, log_scale).item() < 1e-30
    torch.testing.assert_close(contrastive_loss(alike, alike, log_scale), torch.tensor(5.0).log())


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
def test_large_scales_do_not_overflow(factor: float) -> None:
    images, texts, _ = leaves_of(30, torch.float32, 0.0, 2.0)
    log_scale = torch.tensor(math.log(100 * factor), requires_grad=True)
    found = contrastive_loss(images, texts, log_scale)
    gradients = torch.autograd.grad(found, (images, texts, log_scale))
    assert all(torch.isfinite(value).all() for value in (found, *gradients))
    expected = plain_contrastive(images.double(), texts.double(), log_scale.double())
    assert_near(found, expected)


def test_half_precision_features_are_computed_in_float32_with_half_precision_gradients() -> None:
    images, texts, log_scale = (leaf.detach() for leaf in leaves_of(9, torch.float32, 2.0, 1.0))
    halves = [images.bfloat16().requires_grad_(), texts.bfloat16().requires_grad_()]
    found = contrastive_loss(halves[0], halves[1], log_scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, contrastive_loss(halves[0].float(), halves[1].float(), log_scale))
    assert [g.dtype for g in torch.autograd.grad(found, halves)] == [torch.bfloat16] * 2


def test_accuracies_count_rows_most_similar_to_their_own_partner() -> None:
    images = torch.eye(4)
    texts = images[[0, 1, 3, 2]]  # two texts are swapped
    for bias in (None, torch.tensor(-1.0)):
        result = loss_gradients(images, texts, torch.tensor(0.0), bias)
        assert result.accuracy_image_to_text == result.accuracy_text_to_image == 0.5
        alike = loss_gradients(torch.ones(4, 4), torch.ones(4, 4), torch.tensor(0.0), bias)
        assert alike.accuracy_image_to_text == alike.accuracy_text_to_image == 0, "ties must not count as correct"


def test_the_loss_can_be_scaled_and_added() -> None:
    images, texts, log_scale = leaves_of(6, torch.float64, 1.0, 1.0)
    (plain,) = torch.autograd.grad(contrastive_loss(images, texts, log_scale), images)
    (mixed,) = torch.autograd.grad(3 * contrastive_loss(images, texts, log_scale) + images.sum(), images)
    torch.testing.assert_close(mixed, 3 * plain + 1)


def test_logits_too_far_apart_for_a_shared_exponential_are_exact() -> None:
    """With features of length two at the largest scale, logits reach 400; float32's exponential overflows above 88."""
    images, texts, log_scale = leaves_of(30, torch.float32, math.log(100), 1.0)
    images, texts = (2 * part.detach() for part in (images, texts))
    found = loss_gradients(images, texts, log_scale)
    exact = tuple(leaf.detach().double().requires_grad_() for leaf in (images, texts, log_scale))
    expected = plain_contrastive(*exact)
    logits = exact[2].exp() * exact[0] @ exact[1].T
    assert (logits.amax() - logits.amax(1).min()).item() > loss._SHARED_EXP_SPAN
    assert_near(found.loss, expected)
    gradients = (found.image_features, found.text_features, found.log_scale)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert_near(gradient, wanted, slack=1000)
