from pathlib import Path

import pytest
import torch

from pipeline.model.clip import CLIP
from pipeline.model.image import normalise
from pipeline.train.grad_cache import Batch, accumulate_gradients
from tests.pipeline.model.models import small_batch, small_clip
from tests.pipeline.model.plain import plain_contrastive
from tests.pipeline.train.ranks import step_on_ranks

SIZE = 12


def gradients(model: CLIP) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Weight by weight, to float32's precision."""
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name] - wanted).norm() <= 2e-5 * wanted.norm() + 1e-7, name


def plain(model: CLIP) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Autograd on the whole batch at once."""
    images, tokens, _ = small_batch(SIZE)
    model.zero_grad()
    features = model.encode_image(normalise(images), normalize=True), model.encode_text(tokens, normalize=True)
    loss = plain_contrastive(*features, model.logit_scale)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), gradients(model)


def cached(model: CLIP, chunk_size: int, bf16: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    batch = Batch(*small_batch(SIZE))
    result = accumulate_gradients(model, batch, chunk_size=chunk_size, num_workers=1, bf16=bf16)
    return result.loss.item(), gradients(model)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 100])
def test_any_chunk_size_gives_autograds_gradient(chunk_size: int) -> None:
    model = small_clip().eval()
    loss, expected = plain(model)
    found_loss, found = cached(model, chunk_size)
    assert found_loss == pytest.approx(loss.item(), rel=1e-6)
    assert expected.keys() == dict(model.named_parameters()).keys()
    assert_same(found, expected)


@pytest.mark.parametrize("sizes", [[6, 6], [5, 4, 2, 1]], ids=["even", "uneven"])
def test_ranks_give_the_gradient_of_the_global_mean(sizes: list[int], tmp_path: Path) -> None:
    """The logit scale too: summed over ranks, as other implementations do, it would be too large by their number."""
    loss, expected = plain(small_clip().eval())
    (found,) = step_on_ranks(sizes, chunk_size=2, folder=tmp_path)
    assert found.pop("loss").item() == pytest.approx(loss.item(), rel=1e-6)
    alone = accumulate_gradients(
        small_clip().eval(), Batch(*small_batch(SIZE)), chunk_size=SIZE, num_workers=1, bf16=False
    )
    wanted = [alone.accuracy_image_to_text, alone.accuracy_text_to_image]
    assert found.pop("accuracies").tolist() == pytest.approx(wanted)
    assert_same(found, expected)


def test_dropout_is_replayed() -> None:
    """With the graph of each chunk kept instead of a second pass, the same draws give the same gradient."""
    images, tokens, lengths = small_batch(SIZE)
    model = small_clip().train()
    torch.manual_seed(5)
    loss, found = cached(model, 4)
    after = torch.rand(3)

    order = torch.argsort(lengths, stable=True)
    torch.manual_seed(5)
    model.zero_grad()
    image_features = torch.cat([model.encode_image(normalise(chunk), normalize=True) for chunk in images.split(4)])  # type: ignore[no-untyped-call]
    text_features = torch.empty_like(image_features)
    text_features[order] = model.encode_text(tokens[order], normalize=True)
    expected_loss = plain_contrastive(image_features, text_features, model.logit_scale)
    expected_loss.backward()  # type: ignore[no-untyped-call]
    assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
    assert torch.equal(torch.rand(3), after), "the second pass drew numbers of its own"
    expected = gradients(model)
    assert_same(found, expected)
    torch.manual_seed(6)
    assert cached(model, 4)[0] != pytest.approx(loss, rel=1e-4), "dropout is not active, this test shows nothing"


def test_bf16_keeps_the_gradients_direction() -> None:
    model = small_clip().eval()
    _, expected = plain(model)
    _, found = cached(model, 5, bf16=True)
    first, second = (torch.cat([tensors[name].flatten() for name in expected]) for tensors in (found, expected))
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99
