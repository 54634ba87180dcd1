import io
import re
import tomllib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pipeline.data.safety.screening import SafetyConfig, find_classifier
from pipeline.eval.unsafe import ZeroShotClassifier
from pipeline.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from pipeline.model.images.preprocess import preprocess_for
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from tests.pipeline.eval.pictures import SHAPES, draw

COLOURS = ("red", "blue", "green")
PROMPTS = {colour: f"a {colour} shape" for colour in COLOURS}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model trained only to distinguish three colours."""
    tokenizer = Tokenizer.train(PROMPTS.values(), 600, 12)
    options = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "kernel_sizes": 3, "ls_init_value": None}
    config = ModelConfig(
        embed_dim=16,
        image=ImageTowerConfig(architecture="convnext_atto", image_size=32, options=options),
        text=TextTowerConfig(width=16, heads=2, layers=1, context_length=12, vocab_size=tokenizer.vocab_size),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CLIP(config)
    preprocess, tokens = preprocess_for(32), tokenizer(list(PROMPTS.values()))
    images = torch.stack(
        [
            preprocess(Image.open(io.BytesIO(draw(shape, colour))).convert("RGB"))
            for colour in COLOURS
            for shape in SHAPES
        ]
    )
    truth = torch.arange(len(COLOURS)).repeat_interleave(len(SHAPES))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(30):
        loss = F.cross_entropy(network(images, tokens)[0], truth)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    folder = tmp_path_factory.mktemp("model")
    model_folder.save(model_folder.Model(network, tokenizer), folder)
    return folder


def test_an_image_that_matches_an_unsafe_prompt_is_unsafe(model: Path) -> None:
    classifier = ZeroShotClassifier(str(model), unsafe=[PROMPTS["red"]], safe=[PROMPTS["blue"], PROMPTS["green"]])
    red, blue, green = classifier([draw("triangle", colour) for colour in COLOURS])
    assert red > 0.9
    assert max(blue, green) < 0.1


def test_the_probabilities_of_all_unsafe_prompts_are_added(model: Path) -> None:
    classifier = ZeroShotClassifier(
        str(model), unsafe=[PROMPTS["red"], PROMPTS["blue"]], safe=[PROMPTS["green"]], batch_size=2
    )
    images = [draw("triangle", colour) for colour in COLOURS]
    red, blue, green = classifier(images)
    assert min(red, blue) > 0.9
    assert green < 0.1
    opposite = ZeroShotClassifier(str(model), unsafe=[PROMPTS["green"]], safe=[PROMPTS["red"], PROMPTS["blue"]])
    assert [1 - score for score in opposite(images)] == pytest.approx([red, blue, green], abs=1e-5)


@pytest.mark.parametrize("prompts", [[], "a red shape"])
def test_prompts_must_be_lists(prompts: list[str], model: Path) -> None:
    with pytest.raises(ValueError, match=r"safety\.classifier_options\.safe = .* must be a list of prompts"):
        ZeroShotClassifier(str(model), unsafe=["a"], safe=prompts)
    with pytest.raises(ValueError, match=r"safety\.classifier_options\.unsafe = "):
        ZeroShotClassifier(str(model), unsafe=prompts, safe=["a"])


def test_an_unreadable_image_stops_the_job_and_is_named(model: Path) -> None:
    with pytest.raises(ValueError, match=r"safety\.classifier: the image of sample 1 cannot be read"):
        ZeroShotClassifier(str(model), unsafe=["a"], safe=["b"])([draw("circle", "red"), b"<html>"])


def test_the_configuration_in_the_documentation_is_valid() -> None:
    page = (Path(__file__).parents[3] / "docs" / "safety.md").read_text(encoding="utf-8")
    lists, classifier = (tomllib.loads(block)["safety"] for block in re.findall(r"```toml\n(.*?)```", page, re.DOTALL))
    assert find_classifier(SafetyConfig(**lists, **classifier)) is ZeroShotClassifier


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model at"):
        ZeroShotClassifier(str(tmp_path / "none"), unsafe=["a"], safe=["b"])
