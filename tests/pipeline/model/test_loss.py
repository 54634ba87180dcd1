import torch
import torch.nn.functional as F

from pipeline.model.loss import contrastive_gradients, contrastive_loss


def features(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(size, 6, generator=generator), dim=-1)


def test_loss_of_perfect_and_of_useless_features() -> None:
    apart = torch.eye(5)
    alike = F.normalize(torch.ones(5, 5), dim=-1)
    log_scale = torch.tensor(100.0).log()
    assert contrastive_loss(apart, apart, log_scale).item() < 1e-6
    torch.testing.assert_close(contrastive_loss(alike, alike, log_scale), torch.tensor(5.0).log())


def test_both_directions_count_half() -> None:
    images, texts, log_scale = features(7, 0), features(7, 1), torch.tensor(1.3)
    similarities = log_scale.exp() * images @ texts.T
    own = similarities.diagonal()
    expected = ((similarities.logsumexp(1) - own).mean() + (similarities.logsumexp(0) - own).mean()) / 2
    torch.testing.assert_close(contrastive_loss(images, texts, log_scale), expected)


def test_gradients_are_autograds() -> None:
    images, texts, log_scale = features(9, 0), features(9, 1), torch.tensor(2.0)
    leaves = [tensor.clone().requires_grad_() for tensor in (images, texts, log_scale)]
    loss = contrastive_loss(*leaves)
    expected = torch.autograd.grad(loss, leaves)
    result = contrastive_gradients(images, texts, log_scale, [9], 0)
    torch.testing.assert_close(torch.tensor(result.loss), loss.detach())
    for found, wanted in zip((result.image_features, result.text_features, result.logit_scale), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_accuracies_count_the_rows_that_prefer_their_own() -> None:
    images = torch.eye(4)
    texts = images[[0, 1, 3, 2]]  # two texts are swapped
    result = contrastive_gradients(images, texts, torch.tensor(0.0), [4], 0)
    assert result.accuracy_image_to_text == result.accuracy_text_to_image == 0.5
