import re

import pytest
import torch
import torch.nn.functional as F

from pipeline.eval.own_pictures.own_texts import build_labels, check_labels, check_text, guess, search
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from tests.pipeline.eval.pictures import PAIRS
from tests.pipeline.model.models import CONFIG, small_clip

TEMPLATES = ("a photo of {}.", "{} in a picture")


@pytest.fixture(scope="module")
def model() -> CLIP:
    return small_clip().eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    captions = [text for pair in PAIRS for text in pair]
    return Tokenizer.train(captions, CONFIG.text.vocab_size, CONFIG.text.context_length)


@pytest.mark.parametrize(
    ("labels", "templates", "message"),
    [
        ([], ["{}"], "labels: give what may be in the images"),
        (["a dog", " "], ["{}"], "labels: a label is empty"),
        (["a dog", "a cat", "a dog"], ["{}"], "labels: 'a dog' is given more than once"),
        (["a dog"], ["{}"], "labels: 'a dog' is the only label, so its probability is always 100%"),
        (["a dog", "a cat"], [], "template: templates is empty"),
        (["a dog", "a cat"], ["a photo"], "template: template 'a photo' must have exactly one {}"),
    ],
)
def test_invalid_labels_and_templates_raise(labels: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_labels(labels, templates)


def test_an_empty_search_text_raises() -> None:
    with pytest.raises(ValueError, match="text: give what to look for"):
        check_text("\n")


def test_labels_that_the_model_cannot_distinguish_raise(model: CLIP, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="labels: 'a dog' and 'A  Dog' are the same to the model"):
        build_labels(model, tokenizer, ["a dog", "a cat", "A  Dog"], ["{}"], "cpu")


def test_probabilities_equal_those_of_the_model(model: CLIP, tokenizer: Tokenizer) -> None:
    """With the template "{}", a label is a plain caption, so a call of the model gives the reference."""
    labels = ["a red circle", "a blue square", "a green triangle"]
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, _ = model(images, tokenizer(labels))
        features = model.encode_image(images)
    classifier = build_labels(model, tokenizer, labels, ["{}"], "cpu")
    found = guess(features, classifier, labels, model.logit_scale.exp().item())
    for row, expected in zip(found, logits.softmax(dim=-1), strict=True):
        assert [guess.probability for guess in row] == sorted((guess.probability for guess in row), reverse=True)
        probabilities = {guess.label: guess.probability for guess in row}
        assert [probabilities[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-6)


def test_templates_are_averaged_as_unit_vectors(model: CLIP, tokenizer: Tokenizer) -> None:
    labels = ["a red circle", "a blue square"]
    classifier = build_labels(model, tokenizer, labels, TEMPLATES, "cpu")
    for direction, label in zip(classifier, labels, strict=True):
        prompts = [template.replace("{}", label) for template in TEMPLATES]
        with torch.inference_mode():
            mean = F.normalize(model.encode_text(tokenizer(prompts)), dim=-1).mean(dim=0)
        torch.testing.assert_close(direction, F.normalize(mean, dim=0))


def test_equal_labels_keep_their_order() -> None:
    (row,) = guess(torch.ones(1, 2), torch.full((3, 2), 0.5**0.5), ["c", "a", "b"], 10.0)
    assert [guess.label for guess in row] == ["c", "a", "b"]
    assert [guess.probability for guess in row] == pytest.approx([1 / 3] * 3)


def test_search_ranks_by_cosine_similarity(model: CLIP, tokenizer: Tokenizer) -> None:
    with torch.inference_mode():
        text = model.encode_text(tokenizer("a red circle"))[0]
    across = torch.randn(16, generator=torch.Generator().manual_seed(1))
    across -= (across @ text) / (text @ text) * text
    images = torch.stack([-text, 5 * text + across, text, 0.1 * across, text])
    found = search(model, tokenizer, "a red circle", images, 9, "cpu")
    assert [match.image for match in found] == [2, 4, 1, 3, 0]
    expected = F.cosine_similarity(images, text[None]).tolist()
    assert [match.similarity for match in found] == pytest.approx([expected[match.image] for match in found], abs=1e-5)
    assert search(model, tokenizer, "a red circle", images, 2, "cpu") == found[:2]
