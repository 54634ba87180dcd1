"""Weights to start from: which are taken, which are refused, and by what a run knows them again."""

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
    """The same model for pictures of another size."""
    options = {**config.image.options, "img_size": size}
    return replace(config, image=replace(config.image, image_size=size, options=options))


def same(one: Model, other: Model) -> bool:
    states = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a red card", "a blue card"], 600, TEXT.context_length)


@pytest.fixture
def trained(tokenizer: Tokenizer, tmp_path: Path) -> tuple[Model, str]:
    """A model with a vocabulary of its own, and the folder it is in."""
    torch.manual_seed(1)
    config = replace(TRANSFORMER, text=replace(TEXT, vocab_size=tokenizer.vocab_size))
    model = Model(CLIP(config), tokenizer)
    model_folder.save(model, tmp_path / "trained")
    return model, str(tmp_path / "trained")


def test_weights_and_vocabulary_are_taken(trained: tuple[Model, str]) -> None:
    model, folder = trained
    start, _ = read_start(folder, TRANSFORMER, storage)
    assert start.network.config == model.network.config
    assert start.network.config.text.vocab_size < TEXT.vocab_size, "it has come with the weights"
    assert start.tokenizer.to_json() == model.tokenizer.to_json()
    assert same(start, model)
    assert all(weight.requires_grad for weight in start.network.parameters())


def test_another_resolution_changes_the_positions_alone(trained: tuple[Model, str]) -> None:
    model, folder = trained
    start, _ = read_start(folder, resized(TRANSFORMER, 96), storage)
    assert start.network.config.image.image_size == 96
    state, before = start.network.state_dict(), model.network.state_dict()
    assert state[POSITIONS["ours"]].shape == (1, 37, 128)
    assert before[POSITIONS["ours"]].shape == (1, 17, 128)
    assert torch.equal(state[POSITIONS["ours"]][:, 0], before[POSITIONS["ours"]][:, 0]), "the class token's place"
    for name in before.keys() - {POSITIONS["ours"]}:
        assert torch.equal(state[name], before[name]), name
    assert start.network.encode_image(torch.zeros(1, 3, 96, 96)).shape == (1, 48)


def test_the_papers_largest_vision_transformer_fits_its_successor() -> None:
    """By shapes alone: ViT-L/14's weights in ViT-L/14@336px."""
    small, large = (empty_clip(MODELS[name]) for name in ("ViT-L/14", "ViT-L/14@336px"))
    state = small.state_dict() | {POSITIONS["ours"]: torch.zeros(1, 257, 1024)}
    import_state(large, state)
    assert large.state_dict()[POSITIONS["ours"]].shape == (1, 577, 1024)


def test_a_folder_behind_a_uri(trained: tuple[Model, str], s3: str) -> None:
    model, folder = trained
    for name, data in model_folder.to_files(model).items():
        storage.write_bytes(f"{s3}/model/{name}", data)
    here, there = (read_start(place, TRANSFORMER, storage) for place in (f"file://{folder}", f"{s3}/model"))
    assert here[1] == there[1]
    assert same(here[0], there[0])
    assert read_folder(f"{s3}/model", storage).network.config == model.network.config


def test_weights_of_others_come_with_the_released_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "mini", TRANSFORMER)
    torch.manual_seed(2)
    network = CLIP(TRANSFORMER)
    (tmp_path / "theirs").mkdir()
    for name, data in foreign_folders.to_files(network, "open_clip").items():
        (tmp_path / "theirs" / name).write_bytes(data)
    torch.save(export_state(network, "openai"), tmp_path / "weights.pt")
    for place in ("theirs", "weights.pt"):
        start, _ = read_start(str(tmp_path / place), resized(TRANSFORMER, 96), storage)
        name = "text_tower.projection.weight"
        assert torch.equal(start.network.state_dict()[name], network.state_dict()[name])
        assert start.tokenizer.to_json() == Tokenizer.released(600, TEXT.context_length).to_json()


def test_the_hash_is_that_of_weights_and_vocabulary(trained: tuple[Model, str], tmp_path: Path) -> None:
    model, folder = trained

    def read(place: str | Path) -> str:
        return read_start(str(place), TRANSFORMER, storage)[1]

    before = read(folder)
    assert before == read_start(folder, resized(TRANSFORMER, 96), storage)[1], "whatever it is to become"
    other = Tokenizer.train(["a red card", "a green card"], 600, TEXT.context_length)
    assert other.vocab_size == model.tokenizer.vocab_size
    model_folder.save(Model(model.network, other), tmp_path / "words")
    with torch.no_grad():
        model.network.state_dict()["image_tower.projection.weight"][0, 0] += 1e-4
    model_folder.save(model, tmp_path / "weights")
    assert len({before, read(tmp_path / "words"), read(tmp_path / "weights")}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, embed_dim=32), "embed_dim is 48 there and 32 here"),
        (lambda c: replace(c, text=replace(c.text, heads=2)), "text.heads is 1 there and 2 here"),
        (lambda c: replace(c, text=replace(c.text, layers=3)), "text.layers is 2 there and 3 here"),
        (lambda c: replace(c, objective="contrastive-bag"), "objective is contrastive there and contrastive-bag here"),
        (
            lambda c: replace(c, image=replace(c.image, architecture="vit_base_patch32_clip_quickgelu_224")),
            "image.architecture is vit_base_patch16_clip_quickgelu_224 there and vit_base_patch32_clip_quickgelu_224",
        ),
        (
            lambda c: replace(c, image=replace(c.image, options={**c.image.options, "num_heads": 4})),
            "image.options is .*'num_heads': 2} there and .*'num_heads': 4} here",
        ),
    ],
)
def test_another_network_is_refused_by_what_differs(
    trained: tuple[Model, str], change: Callable[[ModelConfig], ModelConfig], message: str
) -> None:
    """Also where the weights have the same shapes."""
    with pytest.raises(
        ValueError, match=f"start_from=.*trained: the weights are those of another network.*: {message}"
    ):
        read_start(trained[1], change(TRANSFORMER), storage)


def test_a_rival_objective_starts_from_its_own(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = replace(TRANSFORMER, objective="caption", text=replace(TEXT, vocab_size=tokenizer.vocab_size))
    model_folder.save(Model(network_for(config), tokenizer), tmp_path / "captions")
    start, _ = read_start(str(tmp_path / "captions"), resized(config, 96), storage)
    assert start.network.config == resized(config, 96)
    with pytest.raises(ValueError, match="objective is caption there and contrastive here"):
        read_start(str(tmp_path / "captions"), TRANSFORMER, storage)


def test_places_where_there_is_nothing(trained: tuple[Model, str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"start_from=ViT-L/14: a model's name, which says no weights"):
        read_start("ViT-L/14", TRANSFORMER, storage)
    with pytest.raises(FileNotFoundError, match=r"start_from=.*nowhere: .* is not a model: model.safetensors"):
        read_start(str(tmp_path / "nowhere"), TRANSFORMER, storage)
    file = Path(trained[1]) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"start_from=.*trained/model\.safetensors: damaged"):
        read_start(trained[1], TRANSFORMER, storage)
