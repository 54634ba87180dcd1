import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pipeline
from pipeline.model.config import OBJECTIVES, ModelConfig, Objective
from pipeline.model.objectives.networks import network_for
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import Model
from tests.pipeline.model.models import CONFIG, small_clip


def model_of(objective: Objective) -> Model:
    tokenizer = Tokenizer.train(["a red card"], CONFIG.text.vocab_size, CONFIG.text.context_length)
    text = replace(CONFIG.text, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    return Model(network_for(replace(CONFIG, objective=objective, text=text)).eval(), tokenizer)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_saved_network_can_be_loaded(objective: Objective, tmp_path: Path) -> None:
    model = model_of(objective)
    model_folder.save(model, tmp_path)
    loaded = model_folder.load(tmp_path).network
    assert type(loaded) is type(model.network)
    assert loaded.config == model.network.config
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.network.state_dict().items())


def test_all_objectives_have_the_same_image_tower() -> None:
    shapes = [
        {name: p.shape for name, p in model_of(objective).network.image_tower.named_parameters()}
        for objective in OBJECTIVES
    ]
    assert all(own == shapes[0] for own in shapes)


def test_the_configuration_of_a_clip_does_not_name_its_objective() -> None:
    """Folders and runs are compared by the result of `to_dict`, so that of a CLIP must not change."""
    assert "objective" not in CONFIG.to_dict()
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    other = replace(CONFIG, objective="bag")
    assert ModelConfig.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    assert small_clip().state_dict().keys() == network_for(CONFIG).state_dict().keys()


def test_an_unknown_objective_raises() -> None:
    with pytest.raises(ValueError, match="the objective 'guess' is not one of contrastive, contrastive-bag, bag, cap"):
        ModelConfig.from_dict(CONFIG.to_dict() | {"objective": "guess"})


def test_load_accepts_clips_only(tmp_path: Path) -> None:
    for objective in ("contrastive-bag", "caption"):
        model_folder.save(model_of(objective), tmp_path / objective)
    network, _, tokenize = pipeline.load(tmp_path / "contrastive-bag")
    assert network.encode_text(tokenize("a red card")).shape == (1, CONFIG.embed_dim)
    with pytest.raises(ValueError, match="was trained with the objective caption: it is not a CLIP model"):
        pipeline.load(tmp_path / "caption")
