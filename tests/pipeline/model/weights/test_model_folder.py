import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import pipeline
from pipeline.model.objectives.clip import CLIP
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from tests.pipeline.model.models import CONFIG


@pytest.fixture
def model() -> Model:
    captions = [f"{first}{second} {second}{first}" for first in "abcdefghijklm" for second in "nopqrstuvwxyz"]
    tokenizer = Tokenizer.train(captions, CONFIG.text.vocab_size, CONFIG.text.context_length)
    assert tokenizer.vocab_size == CONFIG.text.vocab_size
    return Model(CLIP(CONFIG).eval(), tokenizer)


def test_a_loaded_model_gives_the_same_logits(model: Model, tmp_path: Path) -> None:
    model_folder.save(model, tmp_path)
    network, preprocess, tokenize = pipeline.load(tmp_path)
    image = preprocess(Image.new("RGB", (50, 40), (10, 200, 30)))[None]
    tokens = tokenize(["a picture", "thing number 7"])
    assert not network.training
    assert image.shape == (1, 3, 32, 32)
    for loaded, saved in zip(network(image, tokens), model.network(image, tokens), strict=True):
        assert torch.equal(loaded, saved)


def test_a_missing_folder_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model at '.*nowhere'"):
        pipeline.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", model_folder.MODEL_FILES)
def test_a_missing_file_is_named(model: Model, tmp_path: Path, name: str) -> None:
    model_folder.save(model, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"is not a model: it lacks {name}"):
        model_folder.load(tmp_path)


def test_truncated_weights_raise(model: Model, tmp_path: Path) -> None:
    model_folder.save(model, tmp_path)
    file = tmp_path / model_folder.WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged"):
        model_folder.load(tmp_path)


@pytest.mark.parametrize("content", ["{", '{"embed_dim": 3}'])
def test_a_damaged_configuration_raises(model: Model, tmp_path: Path, content: str) -> None:
    model_folder.save(model, tmp_path)
    (tmp_path / model_folder.CONFIG_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        model_folder.load(tmp_path)


def test_weights_of_another_shape_raise(model: Model, tmp_path: Path) -> None:
    model_folder.save(model, tmp_path)
    config = CONFIG.to_dict() | {"embed_dim": 8}
    (tmp_path / model_folder.CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"model\.safetensors does not fit config\.json"):
        model_folder.load(tmp_path)


def test_a_damaged_tokenizer_raises(model: Model, tmp_path: Path) -> None:
    model_folder.save(model, tmp_path)
    (tmp_path / model_folder.TOKENIZER_FILE).write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: damaged"):
        model_folder.load(tmp_path)


def test_a_tokenizer_of_another_size_raises(model: Model, tmp_path: Path) -> None:
    model_folder.save(model, tmp_path)
    other = Tokenizer.train(["a b"], 520, CONFIG.text.context_length)
    (tmp_path / model_folder.TOKENIZER_FILE).write_text(other.to_json())
    with pytest.raises(ValueError, match=r"tokenizer\.json has \d+ entries, but the model has 600"):
        model_folder.load(tmp_path)
