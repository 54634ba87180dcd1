"""What gradient caching has its own tests for, here for objectives whose loss is a sum over samples."""

from pathlib import Path

import pytest
import torch

from pipeline.model.config import Objective
from pipeline.model.image import normalise
from pipeline.model.objectives import Separable
from pipeline.train import gradients
from pipeline.train.grad_cache import Batch
from pipeline.train.gradients import set_gradients
from tests.pipeline.model.models import small_batch, small_clip
from tests.pipeline.train.ranks import double_network, step_on_ranks

SIZE = 12
SEPARABLE: tuple[Objective, ...] = ("bag", "caption")


@pytest.fixture(autouse=True)
def _double_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in float64, so that what differs is not rounding."""
    monkeypatch.setattr(gradients, "normalise", lambda images: normalise(images).double())


def gradients_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def plain(objective: Objective) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Autograd on the whole batch at once: the mean over its targets."""
    network = double_network(objective)
    assert isinstance(network, Separable)
    images, tokens, _ = small_batch(SIZE)
    loss = network.summed_loss(normalise(images).double(), tokens) / network.num_targets(tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), gradients_of(network)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name] - wanted).norm() <= 1e-10 * wanted.norm() + 1e-15, name


@pytest.mark.parametrize("objective", SEPARABLE)
@pytest.mark.parametrize("chunk_size", [1, 5, 100])
def test_any_chunk_size_gives_autograds_gradient(objective: Objective, chunk_size: int) -> None:
    network = double_network(objective)
    batch = Batch(*small_batch(SIZE))
    result = set_gradients(network, batch, chunk_size=chunk_size, num_workers=1, bf16=False)
    loss, expected = plain(objective)
    assert result.loss == pytest.approx(loss.item(), rel=1e-10)
    assert result.accuracy_image_to_text is None
    assert expected.keys() == dict(network.named_parameters()).keys()
    assert_same(gradients_of(network), expected)


def test_ranks_give_the_gradient_of_the_global_mean(tmp_path: Path) -> None:
    """Uneven shares with captions of different lengths: the mean of the ranks' means would be another."""
    found_on_ranks = step_on_ranks([8, 4], chunk_size=3, folder=tmp_path, objectives=SEPARABLE)
    for objective, found in zip(SEPARABLE, found_on_ranks, strict=True):
        loss, expected = plain(objective)
        assert found.pop("loss").item() == pytest.approx(loss.item(), rel=1e-10)
        assert_same(found, expected)


def test_bf16_keeps_the_gradients_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "normalise", normalise)
    for objective in SEPARABLE:
        network = double_network(objective).float()
        batch = Batch(*small_batch(SIZE))
        set_gradients(network, batch, chunk_size=5, num_workers=1, bf16=True)
        found, (_, expected) = gradients_of(network), plain(objective)
        first, second = (
            torch.cat([tensors[name].flatten().double() for name in expected]) for tensors in (found, expected)
        )
        assert all(tensor.dtype == torch.float32 for tensor in found.values())
        assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99


def test_a_clip_takes_the_cached_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "normalise", normalise)
    network = small_clip().eval()
    result = set_gradients(network, Batch(*small_batch(SIZE)), chunk_size=5, num_workers=1, bf16=False)
    assert result.accuracy_image_to_text is not None
    assert network.logit_scale.grad is not None


def test_captions_without_words_leave_a_bag_predictor_as_it_is() -> None:
    network = double_network("bag")
    images, tokens, lengths = small_batch(2)
    tokens[:] = 0
    tokens[:, :2] = torch.tensor([598, 599])
    batch = Batch(images, tokens, lengths.fill_(2))
    result = set_gradients(network, batch, chunk_size=2, num_workers=1, bf16=False)
    assert result.loss == 0
    assert all(not gradient.any() for gradient in gradients_of(network).values())
