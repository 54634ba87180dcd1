"""Weights to start from: which ones are accepted, which ones are refused, and their hash."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster import storage
from pipeline.model.config import MODELS, ModelConfig
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import network_for
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import foreign_folders, model_folder
from pipeline.model.weights.convert import empty_clip, export_state, import_state
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.initial_weights import read_folder, read_start
from tests.pipeline.model.weights.test_convert import POSITIONS, TRANSFORMER

TEXT = TRANSFORMER.text


def resized(config: ModelConfig, size: int) -> ModelConfig:
    """The same model for images of another size."""
    options = {**config.image.options, "img_size": size}
    return replace(config, image=replace(config.image, image_size=size, options=options))


def same(first: Model, second: Model) -> bool:
    states = first.network.state_dict(), second.network.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red card", "a blue card"], 600, TEXT.context_length)


@pytest.fixture
def trained(tokenizer: Tokenizer, tmp_path: Path) -> tuple[Model, str]:
    """A model with its own vocabulary, and its folder."""
    torch.manual_seed(1)
    config = replace(TRANSFORMER, text=replace(TEXT, vocab_size=tokenizer.vocab_size))
    model = Model(CLIP(config), tokenizer)
    model_folder.save(model, tmp_path / "trained")
    return model, str(tmp_path / "trained")


def test_the_run_starts_from_the_weights_and_their_vocabulary(trained: tuple[Model, str]) -> None:
    model, folder = trained
    start, _ = read_start(folder, TRANSFORMER, storage)
    assert start.network.config == model.network.config
    assert start.network.config.text.vocab_size < TEXT.vocab_size, "the vocabulary comes with the weights"
    assert start.tokenizer.to_json() == model.tokenizer.to_json()
    assert same(start, model)
    assert all(weight.requires_grad for weight in start.network.parameters())


def test_another_resolution_changes_only_the_positions(trained: tuple[Model, str]) -> None:
    model, folder = trained
    start, _ = read_start(folder, resized(TRANSFORMER, 96), storage)
    assert start.network.config.image.image_size == 96
    state, before = start.network.state_dict(), model.network.state_dict()
    assert state[POSITIONS["ours"]].shape == (1, 37, 128)
    assert before[POSITIONS["ours"]].shape == (1, 17, 128)
    assert torch.equal(state[POSITIONS["ours"]][:, 0], before[POSITIONS["ours"]][:, 0]), "the class token's position"
    for name in before.keys() - {POSITIONS["ours"]}:
        assert torch.equal(state[name], before[name]), name
    assert start.network.encode_image(torch.zeros(1, 3, 96, 96)).shape == (1, 48)


def test_vit_l_14_weights_fit_vit_l_14_at_336_pixels() -> None:
    """Checks shapes only."""
    small, large = (empty_clip(MODELS[name]) for name in ("ViT-L/14", "ViT-L/14@336px"))
    state = small.state_dict() | {POSITIONS["ours"]: torch.zeros(1, 257, 1024)}
    import_state(large, state)
    assert large.state_dict()[POSITIONS["ours"]].shape == (1, 577, 1024)


def test_a_folder_at_a_uri_is_read_like_a_local_one(trained: tuple[Model, str], s3: str) -> None:
    model, folder = trained
    for name, data in model_folder.to_files(model).items():
        storage.write_bytes(f"{s3}/model/{name}", data)
    local, remote = (read_start(uri, TRANSFORMER, storage) for uri in (f"file://{folder}", f"{s3}/model"))
    assert local[1] == remote[1]
    assert same(local[0], remote[0])
    assert read_folder(f"{s3}/model", storage).network.config == model.network.config


def test_foreign_weights_come_with_the_released_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "mini", TRANSFORMER)
    torch.manual_seed(2)
    network = CLIP(TRANSFORMER)
    (tmp_path / "foreign").mkdir()
    for name, data in foreign_folders.to_files(network, "open_clip").items():
        (tmp_path / "foreign" / name).write_bytes(data)
    torch.save(export_state(network, "openai"), tmp_path / "weights.pt")
    for file in ("foreign", "weights.pt"):
        start, _ = read_start(str(tmp_path / file), resized(TRANSFORMER, 96), storage)
        name = "text_tower.projection.weight"
        assert torch.equal(start.network.state_dict()[name], network.state_dict()[name])
        assert start.tokenizer.to_json() == Tokenizer.released(600, TEXT.context_length).to_json()


def test_the_hash_covers_weights_and_vocabulary(trained: tuple[Model, str], tmp_path: Path) -> None:
    model, folder = trained

    def sha256_of(path: str | Path) -> str:
        return read_start(str(path), TRANSFORMER, storage)[1]

    before = sha256_of(folder)
    assert before == read_start(folder, resized(TRANSFORMER, 96), storage)[1], "the resolution does not matter"
    other = Tokenizer.train(["a red card", "a green card"], 600, TEXT.context_length)
    assert other.vocab_size == model.tokenizer.vocab_size
    model_folder.save(Model(model.network, other), tmp_path / "words")
    with torch.no_grad():
        model.network.state_dict()["image_tower.projection.weight"][0, 0] += 1e-4
    model_folder.save(model, tmp_path / "weights")
    assert len({before, sha256_of(tmp_path / "words"), sha256_of(tmp_path / "weights")}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, embed_dim=32), "embed_dim is 48 in the weights, 32 in the model"),
        (lambda c: replace(c, text=replace(c.text, heads=2)), "text.heads is 1 in the weights, 2 in the model"),
        (lambda c: replace(c, text=replace(c.text, layers=3)), "text.layers is 2 in the weights, 3 in the model"),
        (
            lambda c: replace(c, objective="contrastive-bag"),
            "objective is contrastive in the weights, contrastive-bag in the model",
        ),
        (
            lambda c: replace(c, image=replace(c.image, architecture="vit_base_patch32_clip_quickgelu_224")),
            (
                "image.architecture is vit_base_patch16_clip_quickgelu_224 in the weights, "
                "vit_base_patch32_clip_quickgelu_224 in the model"
            ),
        ),
        (
            lambda c: replace(c, image=replace(c.image, options={**c.image.options, "num_heads": 4})),
            "image.options is .*'num_heads': 2} in the weights, .*'num_heads': 4} in the model",
        ),
    ],
)
def test_weights_of_a_different_model_are_refused_with_the_differences(
    trained: tuple[Model, str], change: Callable[[ModelConfig], ModelConfig], message: str
) -> None:
    """Also if the weights have the same shapes."""
    with pytest.raises(
        ValueError, match=f"start_from=.*trained: the weights are not those of the configured model: {message}"
    ):
        read_start(trained[1], change(TRANSFORMER), storage)


def test_each_objective_starts_only_from_weights_of_the_same_objective(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(TRANSFORMER, objective="caption", text=replace(TEXT, vocab_size=tokenizer.vocab_size))
    model_folder.save(Model(network_for(config), tokenizer), tmp_path / "captions")
    start, _ = read_start(str(tmp_path / "captions"), resized(config, 96), storage)
    assert start.network.config == resized(config, 96)
    with pytest.raises(ValueError, match="objective is caption in the weights, contrastive in the model"):
        read_start(str(tmp_path / "captions"), TRANSFORMER, storage)


def test_a_missing_or_damaged_model_is_refused_by_name(trained: tuple[Model, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"start_from=ViT-L/14: this is the name of a model"):
        read_start("ViT-L/14", TRANSFORMER, storage)
    with pytest.raises(FileNotFoundError, match=r"start_from=.*nowhere: .* is not a model: it lacks model.safetensors"):
        read_start(str(tmp_path / "nowhere"), TRANSFORMER, storage)
    file = Path(trained[1]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"start_from=.*trained/model\.safetensors: damaged"):
        read_start(trained[1], TRANSFORMER, storage)
