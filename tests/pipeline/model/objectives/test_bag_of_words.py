from dataclasses import replace

import pytest
import torch

from pipeline.model.objectives.bag_of_words import BagPredictor, unique_word_mask, word_mask
from pipeline.model.objectives.clip import CLIP
from tests.pipeline.model.models import CONFIG, small_batch

START, END = CONFIG.text.vocab_size - 2, CONFIG.text.vocab_size - 1
TOKENS = torch.tensor(
    [
        [START, 7, 3, 7, 0, END, 0, 0],  # token 0 is a word before the end token and padding after it
        [START, END, 0, 0, 0, 0, 0, 0],
    ]
)


@pytest.fixture(scope="module")
def predictor() -> BagPredictor:
    torch.manual_seed(0)
    network = BagPredictor(replace(CONFIG, objective="bag")).eval()
    torch.nn.init.normal_(network.classifier.bias)
    return network


def pictures(size: int) -> torch.Tensor:
    return torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_special_tokens_and_padding_are_not_words() -> None:
    assert word_mask(TOKENS, CONFIG.text.vocab_size).int().tolist() == [[0, 1, 1, 1, 1, 0, 0, 0], [0] * 8]
    assert unique_word_mask(TOKENS, CONFIG.text.vocab_size).int().tolist() == [[0, 1, 1, 0, 1, 0, 0, 0], [0] * 8]


def test_the_loss_is_a_cross_entropy_against_the_uniform_distribution_over_unique_words(
    predictor: BagPredictor,
) -> None:
    """Compare with torch's cross-entropy on explicit probabilities. A caption without words adds nothing."""
    images, tokens, _ = pictures(3), *small_batch(3)[1:]
    target = torch.zeros(3, CONFIG.text.vocab_size)
    for row, own in enumerate(tokens.tolist()):
        bag = set(own[1 : own.index(END)]) - {START}
        target[row, list(bag)] = 1 / len(bag)
    tokens[:, 0] = START
    logits = predictor.classifier(predictor.image_tower(images))
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="sum")
    torch.testing.assert_close(predictor.summed_loss(images, tokens), expected)
    assert predictor.num_targets(tokens) == 3
    assert predictor.num_targets(TOKENS) == 1
    both = predictor.summed_loss(images[:2], TOKENS)
    torch.testing.assert_close(both, predictor.summed_loss(images[:1], TOKENS[:1]))


def test_the_product_of_features_is_the_mean_log_probability_up_to_a_constant_per_image(
    predictor: BagPredictor,
) -> None:
    images, (_, tokens, _) = pictures(4), small_batch(5, seed=2)
    products = predictor.encode_image(images) @ predictor.encode_text(tokens).T
    scores = torch.stack([predictor.log_likelihoods(images, row.expand(4, -1)) for row in tokens], dim=1)
    partition = predictor.classifier(predictor.image_tower(images)).logsumexp(dim=1, keepdim=True)
    torch.testing.assert_close(products - partition, scores)
    torch.testing.assert_close(products.softmax(dim=1), scores.softmax(dim=1))


def test_the_bag_tower_ignores_order_but_counts_repetitions() -> None:
    torch.manual_seed(0)
    clip = CLIP(replace(CONFIG, objective="contrastive-bag")).eval()
    caption, shuffled, once, padded = (
        torch.tensor([row])
        for row in (
            [START, 7, 3, 7, 9, END],
            [START, 9, 7, 7, 3, END],
            [START, 7, 3, 9, END, 0],
            [START, 7, 3, 7, 9, END, 0, 0],
        )
    )
    torch.testing.assert_close(clip.encode_text(caption), clip.encode_text(shuffled))
    torch.testing.assert_close(clip.encode_text(caption), clip.encode_text(padded))
    assert (clip.encode_text(caption) - clip.encode_text(once)).abs().max() > 1e-4
    expected = clip.text_tower.projection(clip.text_tower.token_embedding.weight[[7, 3, 7, 9]].mean(dim=0))
    torch.testing.assert_close(clip.encode_text(caption)[0], expected)


def test_a_caption_without_words_has_nonzero_features_and_a_finite_gradient() -> None:
    torch.manual_seed(0)
    clip = CLIP(replace(CONFIG, objective="contrastive-bag")).eval()
    features = clip.encode_text(TOKENS, normalize=True)
    assert features.norm(dim=1).tolist() == pytest.approx([1, 1])
    features.sum().backward()  # type: ignore[no-untyped-call]
    norms = [p.grad.norm().item() for p in clip.text_tower.parameters() if p.grad is not None]
    assert len(norms) == 3
    assert max(norms) < 1e4
